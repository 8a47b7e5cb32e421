import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.conventions import get_convention
from rpn_jax.models import BoxPredictor, ConvFC, TwoFC


def initial_kernels(init, key):
    """Return name -> kernel and number of inputs, after a check of the biases."""
    pooled, hidden = jnp.zeros((1, 3, 3, 8)), jnp.zeros((1, 64))
    layers = TwoFC(64, box_init=init).init(key, pooled)["params"]
    layers |= ConvFC(1, 64, box_init=init).init(key, pooled)["params"]
    layers |= BoxPredictor(40, 30, box_init=init).init(key, hidden)["params"]
    inputs = {"fc6": 72, "fc7": 64, "fc": 72, "cls_score": 64, "bbox_pred": 64}
    assert not any(layers[name]["bias"].any() for name in inputs)
    return {name: (layers[name]["kernel"], n) for name, n in inputs.items()}


def check_uniform(kernel, bound):
    assert np.abs(kernel).max() <= bound
    assert np.abs(kernel).max() == pytest.approx(bound, rel=0.05)
    assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert abs(kernel.mean()) < 0.1 * bound


def test_as_in_torchvision_layers_start_as_torch_starts_them(getkey):
    for kernel, inputs in initial_kernels("torchvision", getkey()).values():
        check_uniform(kernel, 1 / np.sqrt(inputs))


def test_as_in_detectron2_the_predictor_starts_close_to_zero(getkey):
    kernels = initial_kernels("detectron2", getkey())
    for name in ("fc6", "fc7", "fc"):
        kernel, inputs = kernels[name]
        check_uniform(kernel, np.sqrt(3 / inputs))
    for name, std in (("cls_score", 0.01), ("bbox_pred", 0.001)):
        kernel, _ = kernels[name]
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
    flat = {
        name: np.asarray(layer["kernel"]) for name, layer in params["params"].items()
    }
    # torch flattens [C, P, Q].
    kernel = flat["fc6"].transpose(2, 0, 1, 3).reshape(24, 6)
    rows = np.asarray(pooled).transpose(0, 3, 1, 2).reshape(5, 24)
    hidden = np.maximum(rows @ kernel, 0)
    expected = np.maximum(hidden @ flat["fc7"], 0)
    np.testing.assert_allclose(
        head.apply(params, pooled), expected, rtol=1e-4, atol=1e-6
    )
