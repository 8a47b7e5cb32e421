import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models import FPN, SmallResNet

TRUNK = SmallResNet(widths=(8, 16, 24), stem=8, strides=(4, 8, 16))


@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
@pytest.mark.parametrize("smooth", [True, False])
def test_every_level_has_its_trunks_size_and_the_same_channels(size, smooth):
    module, x = (
        FPN(bottom_up=TRUNK, channels=12, smooth=smooth),
        jnp.zeros((1, *size, 3)),
    )
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    maps = jax.eval_shape(module.apply, variables, x)
    assert module.strides == TRUNK.strides
    for features, stride in zip(maps, module.strides, strict=True):
        assert features.shape == (1, *(-(-side // stride) for side in size), 12)


def test_fine_maps_hear_of_coarse_ones_but_not_the_reverse(getkey):
    module = FPN(bottom_up=TRUNK, channels=4, smooth=False)
    x = jax.random.normal(getkey(), (1, 32, 32, 3))
    params = jax.jit(module.init)(getkey(), x)
    apply, bias = jax.jit(module.apply), jnp.ones(4)

    def levels_changed(level):
        lateral = params["params"][f"lateral{level}"] | {"bias": bias}
        changed = {"params": params["params"] | {f"lateral{level}": lateral}}
        pairs = zip(apply(params, x), apply(changed, x), strict=True)
        return [bool(np.abs(a - b).max() > 0.5) for a, b in pairs]

    assert levels_changed(2) == [True, True, True]
    assert levels_changed(1) == [True, True, False]
    assert levels_changed(0) == [True, False, False]
