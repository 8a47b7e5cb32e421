"""What the benchmark measures: for each case a stage, its arrays and its options."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.peers import inputs
from experiments.peers.networks import random_detector

THRESHOLD = 0.7
IMAGE = (800, 1088)  # 217,413 anchors
SMALLER = ((256, 320), (384, 512), (544, 736), IMAGE)  # 20k, 49k, 100k, 217k anchors
TINY = (128, 160)


class Case(NamedTuple):
    """One row of the tables.

    Attributes:
        name: what `--only` searches, `stage/what/size`.
        stage: a key of the modules' `STAGES`.
        make: makes the arrays.
        options: what else the stage wants.
        x: of the plots: the axis, which curve, and where on it; or None.
        slow: a call takes a second or more: fewer samples.
        note: what a reader must know.
    """

    name: str
    stage: str
    make: Callable[[], dict[str, np.ndarray]]
    options: dict[str, Any] = {}
    x: tuple[str, float] | None = None
    slow: bool = False
    note: str = ""


def all_cases(quick: bool = False) -> list[Case]:
    """List the cases; `quick` ones are tiny and show only that everything runs."""
    return [
        *nms_cases(quick),
        *topk_cases(quick),
        *target_cases(quick),
        *proposal_cases(quick),
        *roi_cases(quick),
        *train_cases(quick),
        *network_cases(quick),
    ]


def nms_cases(quick: bool) -> list[Case]:
    """NMS by regime, number, order, groups and batch."""
    sizes = (50, 200) if quick else (1000, 2000, 4000, 6000, 12000)
    regimes = ("rpn", "chain") if quick else inputs.REGIMES
    options = {"threshold": THRESHOLD, "most": 100 if quick else 1000}

    def case(name, images, count, *, ordered=False, groups=0, x=None):
        def make():
            drawn = [
                inputs.nms_boxes(regime, count, seed=i)
                for i, regime in enumerate(images)
            ]
            if ordered:
                drawn = [inputs.by_score(*image) for image in drawn]
            boxes, scores = (np.stack(x) for x in zip(*drawn, strict=True))
            random = np.random.default_rng(0)
            group = random.integers(0, max(groups, 1), scores.shape, np.int32)
            arrays = {"boxes": boxes, "scores": scores}
            return arrays | ({"groups": group} if groups else {})

        return Case(name, "nms", make, options, x)

    cases = []
    for regime in regimes:
        for n in sizes:
            x = (f"nms, {regime}: boxes", n)
            cases.append(case(f"nms/{regime}/{n}", [regime], n, x=x))
            cases.append(case(f"nms/{regime}/{n}/sorted", [regime], n, ordered=True))
    for n in sizes:
        cases.append(case(f"nms/rpn/{n}/5 groups", ["rpn"], n, groups=5))
    for n in sizes[1:3]:
        for batch in (1, 2, 8):
            x = (f"nms, rpn, {n} boxes: images", batch)
            name = f"nms/rpn/{n}/batch {batch}"
            cases.append(case(name, ["rpn"] * batch, n, x=x))
        # One image with work, seven that end after a box.
        uneven = ["rpn"] + ["identical"] * 7
        cases.append(case(f"nms/rpn/{n}/uneven batch 8", uneven, n))
    return cases


def topk_cases(quick: bool) -> list[Case]:
    """Top-k of as many scores as the finest level has."""
    count, ks = (5000, (100,)) if quick else (200_000, (1000, 2000, 6000))

    def make():
        # Without ties, which torch.topk breaks in any way.
        scores = np.random.default_rng(0).permutation(count) / count
        return {"scores": scores.astype(np.float32)}

    return [Case(f"topk/{count}/{k}", "topk", make, {"k": k}) for k in ks]


def target_cases(quick: bool) -> list[Case]:
    """Targets, whole and in parts, by objects and by anchors."""
    image = TINY if quick else IMAGE
    cases = []

    def make(image, count):
        height, width = image
        anchors = np.concatenate(inputs.pyramid(height, width))
        most = min(480.0, 0.9 * height)
        truth = inputs.objects(count, 1, height, width, most=most)
        random = np.random.default_rng(2)
        return {
            "anchors": anchors,
            "gt": truth,
            "labels": inputs.labels(len(anchors), 10 * count),
            "boxes": truth[random.integers(0, count, len(anchors))],
        }

    for count in (1, 10) if quick else (1, 10, 64, 500):
        options = {"size": image}
        for part in ("whole", "match"):
            stage = "targets" if part == "whole" else "match"
            name = f"targets/{part}/{count} objects"
            slow = count > 100
            cases.append(
                Case(name, stage, lambda n=count: make(image, n), options, slow=slow)
            )
    for part in ("sample", "encode"):
        cases.append(Case(f"targets/{part}", part, lambda: make(image, 10)))
    for small in [TINY] if quick else SMALLER:
        count = sum(map(len, inputs.pyramid(*small)))
        cases.append(
            Case(
                f"targets/whole/10 objects/{count} anchors",
                "targets",
                lambda size=small: make(size, 10),
                {"size": small},
                ("targets, 10 objects: anchors", count),
            )
        )
    return cases


def proposal_cases(quick: bool) -> list[Case]:
    """Proposals from head outputs, as trained and unrelated."""
    image, most = (TINY, 50) if quick else (IMAGE, 1000)
    levels = inputs.pyramid(*image)
    anchors = np.concatenate(levels)
    ends = np.cumsum([0, *map(len, levels)]).tolist()
    options = {
        "size": image,
        "levels": list(zip(ends[:-1], ends[1:], strict=True)),
        "pre": most,
        "most": most,
        "threshold": THRESHOLD,
        "min_size": 1e-3,
    }

    def make(kind, batch):
        if kind == "trained":
            truth = inputs.objects(30, 7, *image, least=16.0, most=0.6 * image[0])
            drawn = [inputs.trained_outputs(anchors, truth, i) for i in range(batch)]
        else:
            drawn = [inputs.unrelated_outputs(len(anchors), i) for i in range(batch)]
        logits, deltas = (np.stack(x) for x in zip(*drawn, strict=True))
        return {"anchors": anchors, "logits": logits, "deltas": deltas}

    cases = []
    for kind in ("trained", "unrelated"):
        for batch in (1, 2) if quick else (1, 2, 8):

            def arrays(kind=kind, batch=batch):
                return make(kind, batch)

            name, x = f"{kind}/batch {batch}", (f"proposals, {kind}: images", batch)
            cases.append(
                Case(f"proposals/whole/{name}", "proposals", arrays, options, x)
            )
            note = "torchvision gets decoded boxes; rpn_jax decodes within its time"
            cases.append(
                Case(f"proposals/filter/{name}", "filter", arrays, options, note=note)
            )
            if kind == "unrelated":
                note = "of all anchors; within its stage rpn_jax decodes the best alone"
                name = f"proposals/decode/batch {batch}"
                cases.append(Case(name, "decode", arrays, options, note=note))
    return cases


def roi_cases(quick: bool) -> list[Case]:
    """RoIAlign of proposals on the finest map, 256 channels at stride 4."""
    image, channels, count = (TINY, 8, 20) if quick else (IMAGE, 256, 1000)
    bins, stride = 7, 4

    def make(backward):
        random = np.random.default_rng(0)
        height, width = image
        boxes, _ = inputs.nms_boxes("rpn", count, width=width, height=height)
        shape = (height // stride, width // stride, channels)
        arrays = {"features": random.normal(size=shape), "boxes": boxes}
        if backward:
            arrays["cotangent"] = random.normal(size=(count, bins, bins, channels))
        return {name: x.astype(np.float32) for name, x in arrays.items()}

    note = "torchvision gets channels first, rpn_jax last"
    cases = []
    for kind, sampling, aligned in (("2 samples", 2, False), ("adaptive", 0, True)):
        for what, backward in (("forward", False), ("forward and backward", True)):
            options = {"bins": bins, "scale": 1 / stride}
            options |= {"sampling": sampling, "aligned": aligned}
            slow = backward or not sampling
            arrays = partial(make, backward)
            name = f"roi/{kind}/{what}"
            cases.append(Case(name, "roi", arrays, options, None, slow, note))
    return cases


def train_cases(quick: bool) -> list[Case]:
    """The training step of the config `bccd`: 8 images in squares of 384 pixels."""
    side, batch = (128, 1) if quick else (384, 8)

    def make():
        random = np.random.default_rng(0)
        sizes = np.full((batch, 2), (3 * side // 4, side), np.int32)
        boxes = np.zeros((batch, 100, 4), np.float32)
        count = 15  # cells on an image of the data set
        for i in range(batch):
            boxes[i, :count] = inputs.objects(
                count, i, 3 * side // 4, side, most=side / 3
            )
        valid = np.tile(np.arange(100) < count, (batch, 1))
        images = random.integers(0, 256, (batch, side, side, 3), np.uint8)
        return {"images": images, "sizes": sizes, "boxes": boxes, "valid": valid}

    made = "torchvision makes proposals in the step, as its users get it; rpn_jax none"
    return [
        Case(f"train/{name}", "train", make, {"proposals": proposals}, None, True, note)
        for name, proposals, note in (
            ("step", False, "neither makes proposals"),
            ("step as published", True, made),
        )
    ]


def network_cases(quick: bool) -> list[Case]:
    """Faster R-CNN on ResNet-50 with a pyramid, one image, the same weights."""
    height, width = TINY if quick else IMAGE

    def make():
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (1, height, width, 3), np.uint8)
        weights = random_detector().items()
        return {"images": images, **{f"weights/{name}": x for name, x in weights}}

    note = "random weights; resizing is in neither's time"
    return [
        Case(f"network/{what}", "network", make, {"what": what}, None, True, note)
        for what in ("proposals", "detections")
    ]
