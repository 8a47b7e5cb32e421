"""Presets are data: their fields are options of the ops, their values the peers'."""

import dataclasses
import inspect

import numpy as np
import pytest

import rpn_jax
from rpn_jax.conventions import PRESETS, get_convention, options
from tests.ops.test_anchors import CLASSIC_NINE

FEEDS = {
    "anchors": (rpn_jax.pyramid_anchors, {"stride"}),
    "targets": (rpn_jax.anchor_targets, set()),
    "coding": (rpn_jax.decode_boxes, set()),
    "proposals": (
        rpn_jax.generate_proposals,
        # How many, by phase, and in whose pixels: what the batch level decides.
        {"train_pre_nms", "train_post_nms", "test_pre_nms", "test_post_nms"}
        | {"min_size_scaled"},
    ),
}


@pytest.mark.parametrize("group", FEEDS)
def test_fields_are_keyword_options_of_the_op_that_they_feed(group):
    op, others = FEEDS[group]
    convention = getattr(get_convention("torchvision"), group)
    fields = set(options(convention, *others))
    taken = {
        name
        for name, p in inspect.signature(op).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    assert fields <= taken


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_hashable_and_printable(name):
    convention = get_convention(name)
    assert hash(convention) == hash(dataclasses.replace(convention))
    assert eval(repr(convention), vars(rpn_jax.conventions) | {"inf": float("inf")})


def test_an_unknown_preset_is_named_with_those_there_are():
    with pytest.raises(
        ValueError, match="torchvision, detectron2, py_faster_rcnn.*yolo"
    ):
        get_convention("yolo")


@pytest.mark.parametrize(
    ("name", "sizes", "strides"),
    [("tv", None, "from_grid"), ("d2", None, "nominal")],
)
@pytest.mark.parametrize("image", ["320x480", "333x517", "333x517_unpadded"])
@pytest.mark.parametrize("kind", ["fpn", "single"])
def test_anchors_of_a_preset_equal_the_peers_bit_for_bit(
    golden, name, sizes, strides, image, kind
):
    file = f"anchors_{name}_{kind}_{image}" + ("_offset00" if name == "d2" else "")
    z = golden(file)
    convention = get_convention({"tv": "torchvision", "d2": "detectron2"}[name]).anchors
    assert convention.stride == strides
    grids = [tuple(g) for g in z["grid_sizes"].tolist()]
    if convention.stride == "from_grid":
        height, width = z["tensor_size"].tolist()
        steps = [(height // h, width // w) for h, w in grids]
    else:
        steps = z["strides"].tolist()
    found = rpn_jax.pyramid_anchors(
        grids,
        sizes=z["sizes"].tolist(),
        ratios=z["aspect_ratios"].tolist(),
        strides=steps,
        **options(convention, "stride"),
    )
    np.testing.assert_array_equal(np.concatenate(found), z["anchors"])


def test_the_preset_of_the_original_makes_the_published_nine():
    convention = get_convention("py_faster_rcnn").anchors
    found = rpn_jax.grid_anchors((1, 1), **options(convention, "stride"))
    np.testing.assert_array_equal(found, CLASSIC_NINE - np.float32([1, 1, 0, 0]))


def test_loss_and_image_of_each_preset_are_the_peers():
    tv, d2, py = (get_convention(n) for n in PRESETS)
    losses = [(c.loss.objectness, c.loss.beta, c.loss.normalizer) for c in (tv, d2, py)]
    assert losses == [
        ("sigmoid", 1 / 9, "sampled"),
        ("sigmoid", 0.0, "batch_size"),
        ("softmax", 1 / 9, "sampled"),
    ]
    assert [c.image.color for c in (tv, d2, py)] == ["rgb", "bgr", "bgr"]
    assert [c.image.min_size for c in (tv, d2, py)] == [800, 800, 600]
    assert [c.image.resize for c in (tv, d2, py)] == [
        "torch_bilinear",
        "pil_bilinear",
        "cv2_bilinear",
    ]


@pytest.mark.parametrize(
    ("group", "field", "wrong"),
    [
        ("loss", "box", "giuo"),
        ("loss", "objectness", "softmx"),
        ("loss", "normalizer", "mean"),
        ("image", "color", "BGR"),
        ("anchors", "stride", "grid"),
        ("proposals", "score", "odds"),
        ("targets", "low_quality", "yes"),
    ],
)
def test_a_misspelt_choice_is_refused_with_the_choices(group, field, wrong):
    values = getattr(get_convention("torchvision"), group)
    with pytest.raises(ValueError, match=f"{field} must be one of .*, got '{wrong}'"):
        dataclasses.replace(values, **{field: wrong})
