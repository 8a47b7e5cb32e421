"""Ways to make proposals of one image: parts left out, or without a network."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.conventions import Convention
from rpn_jax.data.transforms import pad_rows
from rpn_jax.objective import RPNOutputs
from rpn_jax.proposals import generate_proposals, proposal_options
from rpn_jax.rpn import RPNConfig

FULL, AS_IS, SEARCH = "all parts", "as configured", "selective search"
THRESHOLDS = (0.3, 0.5, 0.6, 0.8, 0.9)
"""Of NMS, beside the network's own."""


class Proposed(NamedTuple):
    """Boxes of one image, best first: `[N, 4]` xyxy in its pixels, and `[N]` bool."""

    boxes: Any
    valid: Any


class Image(NamedTuple):
    """One image as the network sees it.

    Attributes:
        pixels: `[h, w, 3]` RGB, without padding.
        size: `[2]` (height, width).
        scale: network size / original size.
        outputs: of the network: for each level anchors, foreground logits, deltas.
        key: for what is random about it.
    """

    pixels: np.ndarray
    size: Any
    scale: Any
    outputs: RPNOutputs
    key: jax.Array


class Variant(NamedTuple):
    """A way to make proposals: `propose(*prepare(image))`; the former is timed."""

    prepare: Callable[[Image], tuple[Any, ...]]
    propose: Callable[..., Proposed]


def variants(model: RPNConfig, *, pre_nms: int, most: int) -> dict[str, Variant]:
    """Name the ways to make proposals of a network's outputs.

    They share three compiled programs.

    Args:
        model: the network.
        pre_nms: best anchors a level that go on to NMS.
        most: proposals an image.
    """
    convention = model.convention
    own = convention.proposals.iou_threshold
    more = dict(pre_nms_top_n=pre_nms, post_nms_top_n=most)
    with_nms = proposer(convention, **more)
    without = proposer(convention, **more, iou_threshold=None)

    def same(outputs: RPNOutputs, key: jax.Array) -> RPNOutputs:
        return outputs

    def shuffled(outputs: RPNOutputs, key: jax.Array) -> RPNOutputs:
        logits = tuple(
            jax.random.normal(jax.random.fold_in(key, i), x.shape)
            for i, x in enumerate(outputs.logits)
        )
        return outputs._replace(logits=logits)

    def anchors_alone(outputs: RPNOutputs, key: jax.Array) -> RPNOutputs:
        return outputs._replace(deltas=tuple(map(jnp.zeros_like, outputs.deltas)))

    def some_anchors(masks: list[np.ndarray]) -> Callable[..., RPNOutputs]:
        def change(outputs: RPNOutputs, key: jax.Array) -> RPNOutputs:
            logits = tuple(
                jnp.where(np.resize(mask, x.shape), x, -jnp.inf)  # never chosen
                for mask, x in zip(masks, outputs.logits, strict=True)
            )
            return outputs._replace(logits=logits)

        return change

    def variant(propose, change=same, threshold=own) -> Variant:
        def prepare(image: Image) -> tuple[Any, ...]:
            outputs = change(image.outputs, image.key)
            return jax.block_until_ready(outputs), image.size, image.scale, threshold

        return Variant(prepare, propose)

    found = {
        FULL: variant(with_nms),
        AS_IS: variant(proposer(convention)),
        "without NMS": variant(without),
        "without scores and NMS": variant(without, shuffled),
        "without regression": variant(with_nms, anchors_alone),
    }
    for name, masks in parts_of_cells(model).items():
        found[name] = variant(with_nms, some_anchors(masks))
    for threshold in THRESHOLDS:
        if threshold != own:
            found[f"NMS at {threshold:g}"] = variant(with_nms, threshold=threshold)
    return found


def proposer(convention: Convention, **changes) -> Callable[..., Proposed]:
    """Compile `(outputs, size, scale, iou_threshold) -> Proposed`.

    Args:
        convention: how, as in inference.
        **changes: options of `generate_proposals` that differ.
    """

    @jax.jit
    def propose(outputs: RPNOutputs, size, scale, iou_threshold) -> Proposed:
        rules = proposal_options(convention, image_scale=scale)
        rules |= {"iou_threshold": iou_threshold} | changes
        anchors, logits, deltas = outputs
        found = generate_proposals(anchors, logits, deltas, size, **rules)
        return Proposed(found.boxes, found.valid)

    return propose


def parts_of_cells(model: RPNConfig) -> dict[str, list[np.ndarray]]:
    """Name the anchors of one size and those of one ratio: for each level `[C]` bool.

    A cell's anchors repeat along a level.
    """
    ratio_major = model.convention.anchors.order == "ratio_major"
    cells = []
    for sizes in model.sizes:
        size, ratio = np.meshgrid(sizes, model.ratios)  # ratio slow, size fast
        order = "C" if ratio_major else "F"
        cells.append((size.ravel(order), ratio.ravel(order)))
    every = sorted({size for sizes in model.sizes for size in sizes})
    parts = {f"size {s:g} alone": [size == s for size, _ in cells] for s in every}
    for r in model.ratios:
        parts[f"ratio {r:g} alone"] = [ratio == r for _, ratio in cells]
    return parts


def selective_search(mode: str, most: int) -> Variant | None:
    """Make boxes as selective search does; None, and a sentence, without OpenCV.

    Args:
        mode: "fast", "quality" or "off", which gives None.
        most: boxes an image. Their order is that of OpenCV, which is partly random.
    """
    if mode == "off":
        return None
    try:
        cv2: Any = importlib.import_module("cv2")
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    except (ImportError, AttributeError):
        print(
            "selective search is left out: it needs opencv-contrib-python-headless, "
            "pip install 'rpn_jax[selective-search]'"
        )
        return None

    def prepare(image: Image) -> tuple[Any, ...]:
        bgr = np.rint(image.pixels).astype(np.uint8)[..., ::-1]
        return (np.ascontiguousarray(bgr),)

    def propose(pixels: np.ndarray) -> Proposed:
        search.setBaseImage(pixels)
        if mode == "fast":
            search.switchToSelectiveSearchFast()
        else:
            search.switchToSelectiveSearchQuality()
        found = np.asarray(search.process(), np.float32).reshape(-1, 4)[:most]
        found[:, 2:] += found[:, :2]
        return Proposed(pad_rows(found, most), np.arange(most) < len(found))

    return Variant(prepare, propose)
