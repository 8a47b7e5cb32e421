import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.conventions import get_convention
from rpn_jax.models import BoxPredictor, ConvFC, TwoFC


def initial_layers(init, key):
    """Return name -> kernel, bias and number of inputs."""
    pooled, hidden = jnp.zeros((1, 3, 3, 8)), jnp.zeros((1, 64))
    layers = TwoFC(64, box_init=init).init(key, pooled)["params"]
    layers |= ConvFC(1, 64, box_init=init).init(key, pooled)["params"]
    layers |= BoxPredictor(40, 30, box_init=init).init(key, hidden)["params"]
    inputs = {"fc6": 72, "fc7": 64, "fc": 72, "cls_score": 64, "bbox_pred": 64}
    return {
        name: (layers[name]["kernel"], layers[name]["bias"], n)
        for name, n in inputs.items()
    }


def check_uniform(kernel, bound):
    assert np.abs(kernel).max() <= bound
    assert np.abs(kernel).max() == pytest.approx(bound, rel=0.05)
    assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert abs(kernel.mean()) < 0.1 * bound


def test_as_in_torchvision_layers_start_as_torch_starts_them(getkey):
    biases = []
    for kernel, bias, inputs in initial_layers("torchvision", getkey()).values():
        check_uniform(kernel, 1 / np.sqrt(inputs))
        biases.append(bias * np.sqrt(inputs))
    check_uniform(np.concatenate(biases), 1)


def test_as_in_detectron2_the_predictor_starts_close_to_zero(getkey):
    layers = initial_layers("detectron2", getkey())
    assert not any(bias.any() for _, bias, _ in layers.values())
    for name in ("fc6", "fc7", "fc"):
        kernel, _, inputs = layers[name]
        check_uniform(kernel, np.sqrt(3 / inputs))
    for name, std in (("cls_score", 0.01), ("bbox_pred", 0.001)):
        kernel, *_ = layers[name]
        assert np.std(kernel) == pytest.approx(std, rel=0.1)
        assert np.abs(kernel).max() > 2 * std  # no uniform draw reaches that


def test_a_preset_starts_as_its_peer():
    names = {"torchvision": "torchvision", "detectron2": "detectron2"}
    for preset, init in (names | {"py_faster_rcnn": "detectron2"}).items():
        assert get_convention(preset).roi.box_init == init


def test_a_layer_on_maps_is_one_on_vectors_with_channels_first(getkey):
    pooled = jax.random.normal(getkey(), (5, 3, 2, 4))
    head = TwoFC(6)
    params = head.init(getkey(), pooled)
    flat = jax.tree.map(np.asarray, params["params"])
    # torch flattens [C, P, Q].
    kernel = flat["fc6"]["kernel"].transpose(2, 0, 1, 3).reshape(24, 6)
    rows = np.asarray(pooled).transpose(0, 3, 1, 2).reshape(5, 24)
    hidden = np.maximum(rows @ kernel + flat["fc6"]["bias"], 0)
    expected = np.maximum(hidden @ flat["fc7"]["kernel"] + flat["fc7"]["bias"], 0)
    np.testing.assert_allclose(
        head.apply(params, pooled), expected, rtol=1e-4, atol=1e-6
    )
