import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models import BoxPredictor, TwoFC


def test_fully_connected_layers_start_as_torch_starts_them(getkey):
    pooled = jnp.zeros((1, 3, 3, 8))
    head = TwoFC(64).init(getkey(), pooled)["params"]
    found = BoxPredictor(scores=4, boxes=3).init(getkey(), jnp.zeros((1, 64)))["params"]
    layers = [(head["fc6"], 72), (head["fc7"], 64)]
    layers += [(found["cls_score"], 64), (found["bbox_pred"], 64)]
    for layer, inputs in layers:
        bound = 1 / np.sqrt(inputs)
        assert not layer["bias"].any()
        assert np.abs(layer["kernel"]).max() == pytest.approx(bound, rel=0.05)
        assert np.std(layer["kernel"]) == pytest.approx(bound / np.sqrt(3), rel=0.1)
        assert abs(layer["kernel"].mean()) < 0.1 * bound


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
