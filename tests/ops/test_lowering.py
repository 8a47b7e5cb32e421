"""Every op on every platform, in every transformation, on every kind of mesh."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import rpn_jax as rj
from tests import strategies

B, N, M = 8, 24, 6


class Case(NamedTuple):
    """A function of one image, and arguments for B of them."""

    function: Callable
    args: tuple


def random_boxes(seed: int, count: int = N) -> np.ndarray:
    xywh = np.random.default_rng(seed).uniform(1, 40, (B * count, 4))
    return strategies.from_corner_and_size(xywh).reshape(B, count, 4)


def random_scores(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(B, *shape)).astype(np.float32)


def random_masks(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random((B, *shape)) < 0.7


def random_labels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (B, *shape)).astype(np.int32)


KEYS = jax.random.split(jax.random.key(0), B)
BOXES, OTHERS, TRUTH = random_boxes(0), random_boxes(1), random_boxes(2, M)
SIZES = np.full((B, 2), 50, np.int32)
LEVELS = (16, 8)


def proposals(boxes, logits, deltas, size):
    split = partial(jnp.split, indices_or_sections=[LEVELS[0]])
    return rj.generate_proposals(
        tuple(split(boxes)),
        tuple(split(logits)),
        tuple(split(deltas)),
        size,
        pre_nms_top_n=12,
        post_nms_top_n=10,
        iou_threshold=0.5,
    )


def match_shared(gt_boxes, gt_valid):
    """Match anchors that are the same in all images, as those of one map are."""
    return rj.match_anchors(BOXES[0], gt_boxes, gt_valid)


def losses(scores, labels, mask):
    return rj.rpn_losses(scores[None] ** 2, scores[None] ** 2, labels[None], mask[None])


align = partial(
    rj.roi_align, output_size=(2, 3), spatial_scale=0.25, sampling_ratio=2, aligned=True
)
align_adaptively = partial(align, sampling_ratio=0, aligned=False)
pool = partial(rj.roi_pool, output_size=(2, 3), spatial_scale=0.25)


def align_levels(fine, coarse, boxes, valid):
    levels = rj.assign_levels(boxes, min_level=2, max_level=3, canonical_size=80)
    return rj.multilevel_roi_align(
        (fine, coarse),
        boxes,
        levels,
        output_size=2,
        spatial_scales=(0.25, 0.125),
        sampling_ratio=0,
        aligned=True,
        valid=valid,
    )


def features_gradient(pooling, *args):
    return jax.grad(lambda features: (pooling(features, *args[1:]) ** 2).sum())(args[0])


FINE, COARSE = random_scores(29, 9, 11, 3), random_scores(30, 5, 6, 3)

CASES = {
    "anchor_targets": Case(
        partial(rj.anchor_targets, sample_size=8),
        (KEYS, BOXES, TRUTH, random_masks(3, M), SIZES),
    ),
    "assign_levels": Case(
        partial(rj.assign_levels, min_level=2, max_level=5, canonical_size=20), (BOXES,)
    ),
    "box_area": Case(rj.box_area, (BOXES,)),
    "box_convert": Case(
        partial(rj.box_convert, in_fmt="xyxy", out_fmt="cxcywh"), (BOXES,)
    ),
    "box_ioa": Case(rj.box_ioa, (BOXES, TRUTH)),
    "box_iou": Case(rj.box_iou, (BOXES, TRUTH)),
    "ciou_loss": Case(rj.ciou_loss, (BOXES, OTHERS)),
    "clip_boxes_to_image": Case(rj.clip_boxes_to_image, (BOXES, SIZES)),
    "complete_box_iou": Case(rj.complete_box_iou, (BOXES, TRUTH)),
    "decode_boxes": Case(rj.decode_boxes, (random_scores(4, N, 4), BOXES)),
    "diou_loss": Case(rj.diou_loss, (BOXES, OTHERS)),
    "distance_box_iou": Case(rj.distance_box_iou, (BOXES, TRUTH)),
    "encode_boxes": Case(rj.encode_boxes, (OTHERS, BOXES)),
    "generalized_box_iou": Case(rj.generalized_box_iou, (BOXES, TRUTH)),
    "generate_detections": Case(
        rj.generate_detections,
        (
            BOXES,
            random_masks(31, N),
            random_scores(32, N, 4),
            random_scores(33, N, 3, 4),
            SIZES,
        ),
    ),
    "generate_proposals": Case(
        proposals, (BOXES, random_scores(5, N), random_scores(6, N, 4), SIZES)
    ),
    "giou_loss": Case(rj.giou_loss, (BOXES, OTHERS)),
    # Anchors have no array to start from; the shift keeps an argument to batch.
    "grid_anchors": Case(
        lambda x: rj.grid_anchors((3, 2)) + x, (random_scores(7, 1, 1),)
    ),
    "match_anchors": Case(rj.match_anchors, (BOXES, TRUTH, random_masks(8, M))),
    "match_anchors, shared": Case(match_shared, (TRUTH, random_masks(8, M))),
    "multiclass_nms": Case(
        lambda boxes, scores, valid: rj.multiclass_nms(
            boxes, scores, iou_threshold=0.3, max_outputs=10, valid=valid
        ),
        (BOXES, random_scores(23, N, 3), random_masks(24, N)),
    ),
    "multiclass_nms, cut": Case(
        partial(
            rj.multiclass_nms, iou_threshold=0.3, max_outputs=10, max_candidates=30
        ),
        (BOXES[:, :, None] + np.zeros((3, 1), np.float32), random_scores(25, N, 3)),
    ),
    "multilevel_roi_align": Case(
        align_levels, (FINE, COARSE, BOXES, random_masks(31, N))
    ),
    "nms": Case(
        lambda boxes, scores, valid: rj.nms(
            boxes, scores, iou_threshold=0.3, max_outputs=10, valid=valid
        ),
        (BOXES, random_scores(9, N), random_masks(10, N)),
    ),
    "pyramid_anchors": Case(
        lambda x: rj.pyramid_anchors([(3, 2)], sizes=[(32,)], strides=[16])[0] + x,
        (random_scores(11, 1, 1),),
    ),
    "roi_align": Case(align, (FINE, BOXES)),
    "roi_align, adaptive": Case(align_adaptively, (FINE, BOXES)),
    "roi_align, gradient": Case(partial(features_gradient, align), (FINE, BOXES)),
    "roi_align, adaptive gradient": Case(
        partial(features_gradient, align_adaptively), (FINE, BOXES)
    ),
    "roi_pool": Case(pool, (FINE, BOXES)),
    "roi_pool, gradient": Case(partial(features_gradient, pool), (FINE, BOXES)),
    "roi_targets": Case(
        partial(rj.roi_targets, sample_size=8),
        (
            KEYS,
            BOXES,
            random_masks(34, N),
            TRUTH,
            np.abs(random_labels(35, M)),
            random_masks(36, M),
        ),
    ),
    "rpn_losses": Case(
        losses, (random_scores(12, N), random_labels(13, N), random_masks(14, N))
    ),
    "sample_balanced": Case(
        partial(rj.sample_balanced, size=8, positive_fraction=0.5),
        (KEYS, random_labels(15, N)),
    ),
    "sigmoid_objectness_loss": Case(
        rj.sigmoid_objectness_loss, (random_scores(16, N), random_labels(17, N))
    ),
    "smooth_l1_loss": Case(
        rj.smooth_l1_loss, (random_scores(18, N), random_scores(19, N))
    ),
    "soft_nms": Case(
        lambda boxes, scores, valid: rj.soft_nms(
            boxes, scores, max_outputs=10, valid=valid
        ),
        (BOXES, random_scores(26, N) ** 2, random_masks(27, N)),
    ),
    "soft_nms, gaussian": Case(
        partial(rj.soft_nms, max_outputs=30, method="gaussian"),
        (BOXES, random_scores(28, N) ** 2),
    ),
    "softmax_objectness_loss": Case(
        rj.softmax_objectness_loss, (random_scores(20, N, 2), random_labels(21, N))
    ),
    "top_k": Case(partial(rj.top_k, k=7), (random_scores(22, N),)),
}
HOST = {"cell_anchors"}  # NumPy in, NumPy out
each_op = pytest.mark.parametrize("name", CASES)


def image(args, i: int):
    return jax.tree.map(lambda x: x[i], args)


def close(ours, expected):
    """Equal, but for the last bits of floats: programs may contract differently."""

    def compare(a, b):
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_array_equal(a, b)

    jax.tree.map(lambda a, b: compare(np.asarray(a), np.asarray(b)), ours, expected)


@pytest.fixture(scope="module")
def expected():
    """Images one by one, compiled: what all other ways have to give."""
    found = {}

    def of(name: str):
        if name not in found:
            function = jax.jit(CASES[name].function)
            rows = [function(*image(CASES[name].args, i)) for i in range(B)]
            found[name] = jax.tree.map(
                lambda *x: np.stack([np.asarray(y) for y in x]), *rows
            )
        return found[name]

    return of


def test_no_public_op_is_forgotten():
    public = {name for name in rj.__all__ if inspect.isfunction(getattr(rj, name))}
    assert {name.split(",")[0] for name in CASES} | HOST == public


@each_op
@pytest.mark.parametrize("batched", [False, True], ids=["image", "batch"])
def test_lowers_for_every_platform(name, batched):
    function, args = CASES[name]
    program = jax.jit(jax.vmap(function) if batched else function)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape if batched else x.shape[1:], x.dtype),
        args,
    )
    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(program, platforms=platforms)(*shapes)
    assert exported.platforms == platforms


@each_op
def test_compiled_equals_eager(name, expected):
    function, args = CASES[name]
    close(function(*image(args, 0)), image(expected(name), 0))


@each_op
def test_mapped_equals_a_loop(name, expected):
    function, args = CASES[name]
    close(jax.jit(jax.vmap(function))(*args), expected(name))


@each_op
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_batch_split_over_a_mesh(devices, name, kind, expected):
    function, args = CASES[name]
    kind = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((B,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        split = jax.device_put(args, jax.NamedSharding(mesh, jax.P("data")))
        ours = jax.device_get(jax.jit(jax.vmap(function))(*split))
    close(ours, expected(name))


@each_op
def test_inside_shard_map(devices, name, expected):
    function, args = CASES[name]
    mesh = jax.make_mesh(
        *((B // 2,), ("data",), (jax.sharding.AxisType.Auto,)),
        devices=devices[: B // 2],
    )
    program = jax.shard_map(
        jax.vmap(function), mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data")
    )
    close(jax.device_get(jax.jit(program)(*args)), expected(name))


@pytest.mark.parametrize("name", CASES)
def test_with_x64_enabled_results_are_the_same_and_of_32_bits(name):
    case = CASES[name]
    args = jax.tree.map(lambda x: x[0], case.args)
    usual = jax.jit(case.function)(*args)
    with jax.enable_x64(True):
        found = jax.jit(case.function)(*args)
    for a, b in zip(jax.tree.leaves(usual), jax.tree.leaves(found), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
