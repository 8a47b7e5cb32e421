import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models import RPNHead, SmallResNet, SqueezeNet

SMALL = SmallResNet(widths=(8, 16, 24), stem=8, strides=(4, 8, 16))
SIZES = [(64, 96), (65, 97), (79, 33)]


def shapes(module, height, width):
    x = jnp.zeros((2, height, width, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.eval_shape(module.apply, variables, x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "module",
    [SqueezeNet(), SqueezeNet(strides=(4, 8, 16)), SMALL, SmallResNet()],
    ids=["squeezenet", "squeezenet-all", "resnet-all", "resnet"],
)
def test_maps_cover_the_image_at_their_strides(module, size):
    maps = shapes(module, *size)
    assert len(maps) == len(module.strides)
    for features, stride in zip(maps, module.strides, strict=True):
        cells = tuple(-(-side // stride) for side in size)
        assert features.shape[:3] == (2, *cells)
        assert features.dtype == jnp.float32


@pytest.mark.parametrize(("padding", "cells"), [("same", 24), ("torchvision", 23)])
def test_squeezenet_of_the_detectors_image(padding, cells):
    (features,) = shapes(SqueezeNet(padding=padding), 384, 384)
    assert features.shape == (2, cells, cells, 512)


def test_squeezenet_gives_the_maps_that_its_strides_name(getkey):
    x = jax.random.normal(getkey(), (1, 32, 32, 3))
    params = jax.jit(SqueezeNet().init)(getkey(), x)
    deepest = SqueezeNet().apply(params, x)
    maps = SqueezeNet(strides=(4, 8, 16)).apply(params, x)
    assert [m.shape for m in maps] == [(1, 8, 8, 128), (1, 4, 4, 256), (1, 2, 2, 512)]
    np.testing.assert_array_equal(maps[-1], deepest[0])
    fine = jax.eval_shape(SqueezeNet(strides=(8,)).init, getkey(), x)["params"]
    assert "fire5" in fine and "fire6" not in fine
    with pytest.raises(ValueError, match=r"among \(4, 8, 16\), got \(8, 32\)"):
        SqueezeNet(strides=(8, 32)).apply(params, x)


each_trunk = pytest.mark.parametrize(
    "module",
    [
        pytest.param(SMALL, id="resnet"),
        pytest.param(SqueezeNet(), id="squeezenet", marks=pytest.mark.slow),
    ],
)


@each_trunk
def test_bfloat16_computes_near_float32_and_keeps_params_float32(module, getkey):
    x = jax.random.normal(getkey(), (1, 48, 48, 3))
    params = jax.jit(module.init)(getkey(), x)
    half = module.clone(dtype=jnp.bfloat16)
    init = jax.eval_shape(half.init, getkey(), x)
    assert {p.dtype for p in jax.tree.leaves(init)} == {jnp.dtype("float32")}
    wanted = jax.jit(module.apply)(params, x)
    for features, exact in zip(jax.jit(half.apply)(params, x), wanted, strict=True):
        assert features.dtype == jnp.float32
        scale = float(jnp.abs(exact).max())
        np.testing.assert_allclose(features, exact, atol=0.05 * scale)


def test_small_resnet_with_a_head_is_small():
    module, head = SmallResNet(), RPNHead(9)
    variables = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    (features,) = jax.eval_shape(module.apply, variables, jnp.zeros((1, 64, 64, 3)))
    both = (
        variables,
        jax.eval_shape(head.init, jax.random.key(0), jnp.zeros(features.shape)),
    )
    assert sum(p.size for p in jax.tree.leaves(both)) < 350_000


def test_an_image_does_not_depend_on_its_batch(getkey):
    module = SmallResNet(widths=(8, 16), blocks=(1, 1), stem=8, strides=(4, 8))
    apply = jax.jit(module.apply)
    x = jax.random.normal(getkey(), (3, 32, 32, 3))
    params = jax.jit(module.init)(getkey(), x)
    for alone, together in zip(apply(params, x[1:2]), apply(params, x), strict=True):
        np.testing.assert_allclose(alone[0], together[1], atol=1e-4)


@each_trunk
def test_gradients_reach_every_parameter(module, getkey):
    x = jax.random.normal(getkey(), (1, 48, 48, 3))
    # The norms that start at zero hold back what lies before them.
    params = jax.tree.map(lambda p: p + 0.01, jax.jit(module.init)(getkey(), x))

    @jax.jit
    @jax.grad
    def grads(params):
        return sum(jnp.sum(f**2) for f in module.apply(params, x))

    for path, grad in jax.tree_util.tree_leaves_with_path(grads(params)):
        assert jnp.isfinite(grad).all() and jnp.any(grad != 0), path


def test_wrong_options_are_named():
    x, key = jnp.zeros((1, 32, 32, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match='padding must be "same" or "torchvision"'):
        SqueezeNet(padding="valid").init(key, x)
    with pytest.raises(ValueError, match=r"strides must be among \(4, 8, 16\)"):
        SmallResNet(strides=(32,)).init(key, x)
    with pytest.raises(ValueError, match="blocks and widths"):
        SmallResNet(blocks=(1, 1)).init(key, x)
