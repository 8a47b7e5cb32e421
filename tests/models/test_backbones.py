import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models import (
    FPN,
    BackboneOptions,
    FrozenBatchNorm,
    MobileNetV3,
    ResNet,
    SmallResNet,
    backbone_names,
    make_backbone,
)
from rpn_jax.models.resnet import ResidualBlock

PYRAMID = (4, 8, 16, 32, 64)
STRIDES = {
    "mobilenet_v3_large_fpn": (32, 32, 64),
    "small_resnet_fpn": (8, 16, 32),
    "squeezenet_fpn": (8, 16, 32),
}
# Weights of the convolutions, as the papers and the peers' models have them.
PARAMETERS = {
    "vgg16": 14_714_688,
    "squeezenet": 722_496,
    "resnet50_dc5": 23_454_912,
    "resnext101_32x8d_dc5": 86_539_456,
}


def strides_of(name):
    return STRIDES.get(name, PYRAMID if name.endswith("_fpn") else (16,))


def build(name, **options):
    return make_backbone(
        name,
        strides=strides_of(name),
        options=BackboneOptions(**options),
        dtype=jnp.float32,
    )


def shapes(module, height, width):
    x = jnp.zeros((2, height, width, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return variables, jax.eval_shape(module.apply, variables, x)


@pytest.mark.parametrize("name", backbone_names())
def test_maps_have_the_strides_that_are_stated(name):
    module = build(name)
    assert module.strides == strides_of(name)
    variables, maps = shapes(module, 64, 96)
    for features, stride in zip(maps, module.strides, strict=True):
        if name != "squeezenet_torchvision":  # it pads nothing
            assert features.shape[1:3] == (64 // stride, -(-96 // stride))
        assert features.dtype == jnp.float32
    if name in PARAMETERS:
        count = sum(p.size for p in jax.tree.leaves(variables["params"]))
        assert count == PARAMETERS[name]


@pytest.mark.parametrize("name", ["resnet18_fpn", "mobilenet_v3_large_fpn"])
def test_odd_images_have_a_cell_for_what_is_left(name):
    module = build(name)
    for features, stride in zip(shapes(module, 65, 97)[1], module.strides, strict=True):
        assert features.shape[1:3] == (-(-65 // stride), -(-97 // stride))


def test_only_bottlenecks_dilate():
    names = [name for name in backbone_names() if name.endswith("dc5")]
    assert names == ["resnet50_dc5", "resnet101_dc5", "resnext101_32x8d_dc5"]


def test_a_squeezenet_pyramid_heeds_its_options():
    variables, _ = shapes(
        build("squeezenet_fpn", fpn_norm=True, fpn_top_conv=True), 64, 64
    )
    params, constants = variables["params"], variables["constants"]
    assert set(params) == {"bottom_up", "lateral0", "lateral1", "top0"}
    assert set(constants) == {"lateral0_norm", "lateral1_norm"}


def test_norms_are_constants_and_the_rest_is_trained():
    variables, _ = shapes(build("resnet18_fpn"), 64, 64)
    assert set(variables) == {"params", "constants"}
    names = {path[-1].key for path, _ in jax.tree.leaves_with_path(variables["params"])}
    assert names == {"kernel", "bias"}
    leaves = jax.tree.leaves_with_path(variables["constants"])
    assert {path[-1].key for path, _ in leaves} == {"scale", "bias", "mean", "var"}


def test_frozen_batch_norm_by_hand():
    norm = FrozenBatchNorm(epsilon=0.5)
    vectors = {"scale": [2.0], "bias": [1.0], "mean": [3.0], "var": [3.5]}
    constants = {"constants": {k: jnp.array(v) for k, v in vectors.items()}}
    y = norm.apply(constants, jnp.array([[3.0], [5.0]]))
    np.testing.assert_allclose(y, [[1.0], [3.0]])  # (5 - 3) / sqrt(4) * 2 + 1


def test_remat_changes_neither_values_nor_gradients(getkey):
    plain = ResNet(depth=18, stages=("res2", "res3"))
    x = jax.random.normal(getkey(), (1, 32, 32, 3))
    variables = jax.jit(plain.init)(getkey(), x)

    def value_and_grad(module):
        def loss(params):
            maps = module.apply({**variables, "params": params}, x)
            return sum(jnp.sum(jnp.sin(m)) for m in maps)

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    ours, wanted = value_and_grad(plain.clone(remat=True)), value_and_grad(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), ours, wanted)


@pytest.mark.parametrize("name", ["vgg16", "resnet50_c4", "mobilenet_v3_large_fpn"])
def test_remat_keeps_the_names(name):
    plain, remat = (shapes(build(name, remat=r), 64, 64)[0] for r in (False, True))
    assert plain == remat


def test_dilation_keeps_the_resolution_and_the_weights():
    plain, dilated = ResNet(stages=("res5",)), ResNet(stages=("res5",), dilated=True)
    (plain_variables, (small,)), (variables, (large,)) = (
        shapes(module, 64, 64) for module in (plain, dilated)
    )
    assert variables == plain_variables
    assert small.shape[1:3] == (2, 2) and large.shape[1:3] == (4, 4)
    assert (plain.strides, dilated.strides) == ((32,), (16,))


def test_stride_lies_in_the_convolution_that_is_named(getkey):
    """With the stride in the 1 x 1 convolution the odd pixels are never seen."""
    x = jax.random.normal(getkey(), (1, 8, 8, 4))
    moved = x.at[:, 1::2, 1::2].add(1.0)
    for stride_in_1x1 in (True, False):
        block = ResidualBlock(8, 4, stride=2, stride_in_1x1=stride_in_1x1)
        variables = block.init(getkey(), x)
        same = jnp.array_equal(block.apply(variables, x), block.apply(variables, moved))
        assert same == stride_in_1x1


def test_levels_on_top_of_a_pyramid(getkey):
    trunk = SmallResNet(widths=(8, 16), blocks=(1, 1), stem=8, strides=(4, 8))
    x = jax.random.normal(getkey(), (1, 40, 24, 3))
    pooled = FPN(bottom_up=trunk, channels=8, top=2)
    assert pooled.strides == (4, 8, 16, 32)
    maps = pooled.apply(pooled.init(getkey(), x), x)
    np.testing.assert_array_equal(maps[2], maps[1][:, ::2, ::2])
    np.testing.assert_array_equal(maps[3], maps[2][:, ::2, ::2])
    convolved = FPN(bottom_up=trunk, channels=8, top=2, top_conv=True)
    variables = convolved.init(getkey(), x)
    assert {"top0", "top1"} <= set(variables["params"])
    assert [m.shape[1:3] for m in convolved.apply(variables, x)] == [
        (10, 6),
        (5, 3),
        (3, 2),
        (2, 1),
    ]


def test_maps_of_equal_size_are_added_cell_by_cell(getkey):
    class Flat(MobileNetV3):
        """Two equal maps, instead of MobileNet's."""

        def __call__(self, x):
            return (x, x)

    x = jax.random.normal(getkey(), (1, 3, 5, 4))
    pyramid = FPN(bottom_up=Flat(), channels=4, smooth=False)
    variables = pyramid.init(getkey(), x)
    fine, coarse = pyramid.apply(variables, x)
    params = variables["params"]
    ours = x @ (params["lateral0"]["kernel"] + params["lateral1"]["kernel"])[0, 0]
    np.testing.assert_allclose(fine, ours, atol=1e-5)
    np.testing.assert_allclose(
        coarse, x @ params["lateral1"]["kernel"][0, 0], atol=1e-5
    )


def test_options_reach_the_modules():
    options = dataclasses.asdict(
        BackboneOptions(stride_in_1x1=True, norm_epsilon=0.0, fpn_norm=True)
    )
    pyramid = build("resnet50_fpn", **options)
    assert pyramid.norm and pyramid.bottom_up.stride_in_1x1
    assert pyramid.bottom_up.epsilon == 0.0
    variables, _ = shapes(pyramid, 64, 64)
    assert "lateral0_norm" in variables["constants"]
    assert "bias" not in variables["params"]["lateral0"]


def test_unknown_backbones_are_named():
    with pytest.raises(ValueError, match="backbone must be one of .*vgg16.* 'vgg19'"):
        build("vgg19")
