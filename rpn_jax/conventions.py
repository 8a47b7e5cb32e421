"""Every choice on which the peers differ, grouped by stage, and one preset per peer.

The ops know nothing of conventions: the fields here bear the names of the options of
the op that they feed, so that `op(..., **options(convention.targets))` says it all.
Boxes are continuous everywhere (width = x2 - x1). Inclusive boxes, "+1" in
py-faster-rcnn, become continuous at the border by adding 1 to x2 and y2.
"""

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

BoxInit = Literal["torchvision", "detectron2"]
ResizeRule = Literal["torch_bilinear", "pil_bilinear", "cv2_bilinear"]


class Checked:
    """A dataclass that refuses values outside its `Literal` fields."""

    def __post_init__(self):
        """Raise ValueError naming the field, the choices and what was given."""
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                choices = ", ".join(get_args(hint))
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorConvention(Checked):
    """How anchors are made from sizes and ratios.

    Attributes:
        order: "ratio_major" or "size_major", the order within a cell.
        rounding: "none", "corners" or "base16", see `cell_anchors`.
        offset: where in its cell an anchor is centred, in strides.
        stride: "nominal", the backbone's; "from_grid", padded size // grid size, per
            axis, which can be less than nominal where the grid was rounded up.
    """

    order: Literal["ratio_major", "size_major"] = "ratio_major"
    rounding: Literal["none", "corners", "base16"] = "none"
    offset: float = 0.0
    stride: Literal["nominal", "from_grid"] = "nominal"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetConvention(Checked):
    """How anchors are matched and sampled, see `match_anchors`, `anchor_targets`.

    Attributes:
        high_threshold: IoU from which an anchor is positive.
        low_threshold: IoU below which an anchor is negative.
        low_quality: "off", "label" or "overwrite".
        low_quality_above: the low-quality rule serves objects with a best IoU above.
        ignore_threshold: share of an anchor in an ignore region from which it is
            not used. The peers know no such regions: there an anchor on a crowd is a
            negative, as it is here with inf.
        boundary: pixels by which an anchor may leave the image; inf: it may.
        boundary_first: leave such anchors out before matching (else after it).
        sample_size: anchors sampled an image.
        positive_fraction: the most that positives may take of them.
    """

    high_threshold: float = 0.7
    low_threshold: float = 0.3
    low_quality: Literal["off", "label", "overwrite"] = "label"
    low_quality_above: float = 0.0
    ignore_threshold: float = 0.5
    boundary: float = math.inf
    boundary_first: bool = False
    sample_size: int = 256
    positive_fraction: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodingConvention(Checked):
    """How a box is coded against an anchor, see `encode_boxes` and `decode_boxes`.

    Attributes:
        weights: factors of (dx, dy, dw, dh).
        max_log_scale: clamp of dw and dh from above.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    max_log_scale: float = math.log(1000 / 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConvention(Checked):
    """How the loss is computed, see `rpn_losses`.

    Attributes:
        objectness: "sigmoid", one logit an anchor, or "softmax", two (background
            first).
        box: "smooth_l1", "giou", "diou" or "ciou".
        beta: of smooth-L1; 0 is L1.
        normalizer: "sampled" or "batch_size".
        box_weight: factor of the box loss.
    """

    objectness: Literal["sigmoid", "softmax"] = "sigmoid"
    box: Literal["smooth_l1", "giou", "diou", "ciou"] = "smooth_l1"
    beta: float = 1 / 9
    normalizer: Literal["sampled", "batch_size"] = "sampled"
    box_weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProposalConvention(Checked):
    """How proposals are chosen, see `generate_proposals`.

    Attributes:
        train_pre_nms: best anchors a level that go on, in training.
        train_post_nms: proposals an image, in training.
        test_pre_nms: likewise in inference.
        test_post_nms: likewise in inference.
        iou_threshold: of NMS.
        score: "probability" or "logit": what NMS ranks by and what is returned.
        score_threshold: least score; -inf lets all pass.
        min_size: least side of a box, pixels of the network input.
        min_size_strict: whether a side must exceed it.
        min_size_scaled: whether it is in pixels of the original image.
        filter_first: drop small boxes before the top-k instead of after it.
        inclusive: decoded x2, y2 are the last pixel inside, and clipped to W - 1,
            H - 1; they become continuous by adding 1.
    """

    train_pre_nms: int = 2000
    train_post_nms: int = 2000
    test_pre_nms: int = 1000
    test_post_nms: int = 1000
    iou_threshold: float = 0.7
    score: Literal["probability", "logit"] = "probability"
    score_threshold: float = -math.inf
    min_size: float = 0.0
    min_size_strict: bool = True
    min_size_scaled: bool = False
    filter_first: bool = False
    inclusive: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoIConvention(Checked):
    """How a detector pools, samples, codes and scores RoIs, see `faster_rcnn`.

    Attributes:
        pooling: "align" or "pool", see `roi_align` and `roi_pool`.
        sampling_ratio: of `roi_align`.
        aligned: of `roi_align`.
        level_rule: of `assign_levels`: "torchvision" or "detectron2".
        box_init: initial weights of the fully connected layers, of n inputs:
            "torchvision" U(+-1 / sqrt(n)), biases too; "detectron2"
            U(+-sqrt(3 / n)), but N(0, 0.01) for class scores and N(0, 0.001) for
            deltas, biases 0.
        iou_threshold: IoU with an object from which a RoI is of its class.
        sample_size: RoIs an image that are trained on.
        positive_fraction: the most that RoIs on objects may take of them.
        weights: factors of (dx, dy, dw, dh).
        max_log_scale: clamp of dw and dh from above.
        beta: of smooth-L1; 0 is L1.
        background: "first" or "last" among the class scores.
        inclusive: RoIs are pooled, and detections clipped, as boxes whose x2, y2 are
            the last pixel inside.
        score_threshold: a detection's score must exceed it.
        min_size: least side of a detection, pixels of the network input; reached.
        nms_threshold: IoU above which NMS within a class suppresses.
        max_detections: detections kept of an image.
    """

    pooling: Literal["align", "pool"] = "align"
    sampling_ratio: int = 2
    aligned: bool = False
    level_rule: Literal["torchvision", "detectron2"] = "torchvision"
    box_init: BoxInit = "torchvision"
    iou_threshold: float = 0.5
    sample_size: int = 512
    positive_fraction: float = 0.25
    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    max_log_scale: float = math.log(1000 / 16)
    beta: float = 1 / 9
    background: Literal["first", "last"] = "first"
    inclusive: bool = False
    score_threshold: float = 0.05
    min_size: float = 0.01
    nms_threshold: float = 0.5
    max_detections: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConvention(Checked):
    """What the network wants as its input.

    Attributes:
        color: "rgb" or "bgr".
        range: pixels run from 0 to this before mean and std apply.
        mean: subtracted, in the order of `color`.
        std: divided by, likewise.
        min_size: the shorter side is resized to this, pixels...
        max_size: ...unless the longer one would exceed this.
        pad_to: both sides are padded (with zeros after normalisation) to multiples.
        resize: "torch_bilinear", "pil_bilinear" or "cv2_bilinear".
    """

    color: Literal["rgb", "bgr"] = "rgb"
    range: float = 1.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    min_size: int = 800
    max_size: int = 1333
    pad_to: int = 32
    resize: ResizeRule = "torch_bilinear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convention:
    """All choices of one peer.

    Attributes:
        anchors: how anchors are made.
        targets: how anchors are matched and sampled.
        coding: how a box is coded against an anchor.
        loss: how the loss is computed.
        proposals: how proposals are chosen.
        roi: how a detector pools, samples, codes and scores RoIs.
        image: what the network wants as its input.
    """

    anchors: AnchorConvention = AnchorConvention()
    targets: TargetConvention = TargetConvention()
    coding: CodingConvention = CodingConvention()
    loss: LossConvention = LossConvention()
    proposals: ProposalConvention = ProposalConvention()
    roi: RoIConvention = RoIConvention()
    image: ImageConvention = ImageConvention()


# torchvision 0.28, models/detection: rpn.py, anchor_utils.py, _utils.py, transform.py
TORCHVISION = Convention(
    anchors=AnchorConvention(rounding="corners", stride="from_grid"),
    # No guard: an object that overlaps no anchor makes all of them positive.
    targets=TargetConvention(low_quality_above=-1.0),
    proposals=ProposalConvention(
        score_threshold=0.0, min_size=1e-3, min_size_strict=False
    ),
)

# detectron2 0.6, config/defaults.py and configs/Base-RCNN-FPN.yaml
DETECTRON2 = Convention(
    anchors=AnchorConvention(order="size_major"),
    targets=TargetConvention(low_quality_above=-1.0),
    loss=LossConvention(beta=0.0, normalizer="batch_size"),
    proposals=ProposalConvention(train_post_nms=1000, score="logit"),
    roi=RoIConvention(
        sampling_ratio=0,
        aligned=True,
        level_rule="detectron2",
        box_init="detectron2",
        beta=0.0,
        background="last",
        min_size=0.0,
    ),
    image=ImageConvention(
        color="bgr",
        range=255.0,
        mean=(103.53, 116.28, 123.675),
        std=(1.0, 1.0, 1.0),
        resize="pil_bilinear",
    ),
)

# py-faster-rcnn, lib/rpn and lib/fast_rcnn/config.py, the lineage of the original
PY_FASTER_RCNN = Convention(
    anchors=AnchorConvention(rounding="base16", offset=0.5),
    targets=TargetConvention(low_quality_above=-1.0, boundary=0.0, boundary_first=True),
    coding=CodingConvention(max_log_scale=math.inf),
    loss=LossConvention(objectness="softmax"),
    proposals=ProposalConvention(
        train_pre_nms=12000,
        test_pre_nms=6000,
        test_post_nms=300,
        min_size=16.0,
        min_size_strict=False,
        min_size_scaled=True,
        filter_first=True,
        inclusive=True,
    ),
    roi=RoIConvention(
        pooling="pool",
        # Its predictor starts likewise, fc6 and fc7 from ImageNet.
        box_init="detectron2",
        sample_size=128,
        beta=1.0,
        max_log_scale=math.inf,
        inclusive=True,
        min_size=0.0,
        nms_threshold=0.3,
    ),
    image=ImageConvention(
        color="bgr",
        range=255.0,
        mean=(102.9801, 115.9465, 122.7717),
        std=(1.0, 1.0, 1.0),
        min_size=600,
        max_size=1000,
        pad_to=1,
        resize="cv2_bilinear",
    ),
)

PRESETS = {
    "torchvision": TORCHVISION,
    "detectron2": DETECTRON2,
    "py_faster_rcnn": PY_FASTER_RCNN,
}


def get_convention(name: str) -> Convention:
    """Look up a preset by name.

    Args:
        name: "torchvision", "detectron2" or "py_faster_rcnn".

    Returns:
        The `Convention`; change single fields with `dataclasses.replace`.

    Raises:
        ValueError: there is no such preset.

    Example:
        >>> get_convention("detectron2").loss.beta
        0.0
    """
    if name not in PRESETS:
        raise ValueError(
            f"convention must be one of {', '.join(PRESETS)}, got {name!r}"
        )
    return PRESETS[name]


def options(group: Any, *leave_out: str) -> dict[str, Any]:
    """Turn a group of a convention into keyword options of the op that it feeds.

    Args:
        group: one of the groups of a `Convention`.
        *leave_out: fields that the op does not take.

    Returns:
        Field names and values.

    Example:
        >>> options(CodingConvention(), "max_log_scale")
        {'weights': (1.0, 1.0, 1.0, 1.0)}
    """
    return {
        field.name: getattr(group, field.name)
        for field in dataclasses.fields(group)
        if field.name not in leave_out
    }
