import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models import RPNHead, flatten_levels


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("logits", [1, 2])
def test_shapes_and_names(logits, getkey):
    head = RPNHead(num_anchors=9, channels=16, logits_per_anchor=logits)
    x = jnp.zeros((2, 5, 7, 8))
    params = head.init(getkey(), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "rpn_conv": {"kernel": (3, 3, 8, 16), "bias": (16,)},
        "rpn_cls_score": {"kernel": (1, 1, 16, 9 * logits), "bias": (9 * logits,)},
        "rpn_bbox_pred": {"kernel": (1, 1, 16, 36), "bias": (36,)},
    }
    scores, deltas = head.apply({"params": params}, x)
    assert scores.shape == (2, 5, 7, 9 * logits) and deltas.shape == (2, 5, 7, 36)


def test_weights_start_small_and_biases_at_zero(getkey):
    head = RPNHead(num_anchors=9, num_convs=2)
    params = head.init(getkey(), jnp.zeros((1, 4, 4, 64)))["params"]
    assert set(params) == {"rpn_conv", "rpn_conv_1", "rpn_cls_score", "rpn_bbox_pred"}
    for layer in params.values():
        assert not layer["bias"].any()
        assert np.std(layer["kernel"]) == pytest.approx(0.01, rel=0.1)


def test_one_instance_serves_every_level(getkey):
    head = RPNHead(num_anchors=3)
    maps = [jax.random.normal(getkey(), (1, n, n, 8)) for n in (8, 4)]
    params = head.init(getkey(), maps[0])
    outputs = [head.apply(params, x) for x in maps]
    logits, deltas = flatten_levels(*zip(*outputs, strict=True))
    assert [x.shape for x in logits] == [(1, 192), (1, 48)]
    assert [x.shape for x in deltas] == [(1, 192, 4), (1, 48, 4)]


def test_equals_loops_over_cells(getkey):
    head = RPNHead(num_anchors=2, channels=3, logits_per_anchor=2)
    x = jax.random.normal(getkey(), (1, 3, 4, 5))
    params = head.init(getkey(), x)
    params = jax.tree.map(lambda p: jax.random.normal(getkey(), p.shape), params)
    scores, deltas = head.apply(params, x)
    conv, score, box = (
        {k: np.asarray(v, np.float64) for k, v in params["params"][name].items()}
        for name in ("rpn_conv", "rpn_cls_score", "rpn_bbox_pred")
    )
    padded = np.pad(np.asarray(x, np.float64)[0], ((1, 1), (1, 1), (0, 0)))
    for row in range(3):
        for column in range(4):
            patch = padded[row : row + 3, column : column + 3]
            hidden = np.einsum("ijc,ijco->o", patch, conv["kernel"]) + conv["bias"]
            hidden = np.maximum(hidden, 0)
            for layer, out in ((score, scores), (box, deltas)):
                wanted = hidden @ layer["kernel"][0, 0] + layer["bias"]
                np.testing.assert_allclose(
                    out[0, row, column], wanted, rtol=1e-4, atol=1e-4
                )


def test_rows_run_over_rows_columns_anchors():
    # Each number says where it comes from: row, column, channel.
    scores = np.arange(2)[:, None, None] * 100 + np.arange(3)[:, None] * 10
    scores = jnp.asarray((scores + np.arange(4))[None], jnp.float32)
    deltas = jnp.repeat(scores, 4, axis=-1)
    (one,), (offsets,) = flatten_levels([scores], [deltas])
    np.testing.assert_array_equal(one[0, :6], [0, 1, 2, 3, 10, 11])
    assert one[0, 12] == 100
    np.testing.assert_array_equal(offsets[0, 5], 4 * [11])
    # Two logits an anchor: background, foreground, anchor by anchor.
    (two,), _ = flatten_levels([scores], [deltas[..., :8]], logits_per_anchor=2)
    np.testing.assert_array_equal(two[0, :3], [[0, 1], [2, 3], [10, 11]])


def test_bfloat16_gives_float32_outputs_and_parameters(getkey):
    x = jax.random.normal(getkey(), (1, 4, 4, 8))
    exact, half = RPNHead(3), RPNHead(3, dtype=jnp.bfloat16)
    params = half.init(getkey(), x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for a, b in zip(half.apply(params, x), exact.apply(params, x), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_works_as_an_nnx_module(getkey):
    try:
        from flax import nnx
    except (ImportError, AttributeError) as error:
        pytest.skip(f"this flax has no nnx for this jax: {error}")
    x = jax.random.normal(getkey(), (1, 4, 4, 8))
    head = RPNHead(num_anchors=3)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        bridged = nnx.bridge.ToNNX(head, rngs=nnx.Rngs(0)).lazy_init(x)
        outputs = bridged(x)
        params = nnx.to_pure_dict(nnx.state(bridged, nnx.Param))
    for a, b in zip(outputs, head.apply({"params": params}, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_wrong_options_are_named(getkey):
    with pytest.raises(ValueError, match="logits_per_anchor must be 1 or 2, got 3"):
        RPNHead(3, logits_per_anchor=3).init(getkey(), jnp.zeros((1, 4, 4, 8)))
    with pytest.raises(ValueError, match="same number of levels, got 1 and 0"):
        flatten_levels([jnp.zeros((1, 2, 2, 3))], [])
