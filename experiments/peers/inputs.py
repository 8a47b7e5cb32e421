"""Inputs that the benchmark gives to every peer, made by NumPy alone.

Boxes are float32 `x1, y1, x2, y2` in pixels, continuous. Everything is drawn from a
seed, so that each machine and each peer gets the same arrays.
"""

import numpy as np

REGIMES = ("rpn", "rpn_tight", "uniform", "disjoint", "identical", "chain")

# The pyramid of the detectors: one size a level, three ratios.
STRIDES = (4, 8, 16, 32, 64)
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
RATIOS = (0.5, 1.0, 2.0)


def nms_boxes(regime, count, seed=0, width=1333.0, height=800.0):
    """Draw boxes [count, 4] and scores [count], in no order, for NMS.

    Args:
        regime: "rpn": 60 % jittered copies of 20 to 50 objects, the rest clutter;
            "rpn_tight": 85 % copies that lie closer, as after training; "uniform":
            independent boxes; "disjoint": none overlaps; "identical": one box, many
            times; "chain": each suppresses the next but not the one after it (at 0.7).
        count: how many boxes.
        seed: of the draw.
        width: of the image.
        height: of the image.
    """
    random, index = np.random.RandomState(seed), np.arange(count)
    if regime in ("rpn", "rpn_tight"):
        share, spread = (0.6, 0.18) if regime == "rpn" else (0.85, 0.07)
        boxes, scores = _copies_and_clutter(
            random, count, share, spread, (width, height)
        )
    elif regime == "uniform":
        boxes = _clutter(random, count, (width, height))
        boxes, scores = _clip(boxes, width, height), random.uniform(0, 1, count)
    elif regime == "disjoint":
        side = int(np.ceil(np.sqrt(count)))
        x, y = 10.0 * (index % side), 10.0 * (index // side)
        boxes = np.stack([x, y, x + 8, y + 8], 1)
        scores = random.permutation(count) / count
    elif regime == "identical":
        boxes = np.tile([[10.0, 20.0, 110.0, 220.0]], (count, 1))
        scores = random.permutation(count) / count
    elif regime == "chain":
        # Shifted by 0.12 of the width the IoU is 0.79, by twice that it is 0.61.
        x, zero = 12.0 * index, 0.0 * index
        boxes = np.stack([x, zero, x + 100, zero + 100], 1)
        scores = 1 - (index + 1) / (count + 1)
    else:
        raise ValueError(f"regime must be one of {', '.join(REGIMES)}, got {regime!r}")
    return boxes.astype(np.float32), scores.astype(np.float32)


def by_score(boxes, scores):
    """Put boxes and scores in descending order, ties as they were."""
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order]


def pyramid(height, width):
    """Make the anchors of five levels, as torchvision makes them: a list of [A, 4]."""
    levels = []
    for stride, size in zip(STRIDES, SIZES, strict=True):
        root = np.sqrt(np.array(RATIOS, np.float32))
        half = np.stack([1 / root, root], 1) * np.float32(size) / 2
        cell = np.round(np.concatenate([-half, half], 1))
        x, y = (np.arange(-(-side // stride)) * stride for side in (width, height))
        x, y = np.meshgrid(x, y)
        points = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
        levels.append((points + cell).reshape(-1, 4).astype(np.float32))
    return levels


def objects(count, seed=0, height=800, width=1088, least=24.0, most=480.0):
    """Draw objects [count, 4] within the image, log-uniform in size and ratio."""
    random = np.random.default_rng(seed)
    size = np.exp(random.uniform(np.log(least), np.log(most), count))
    root = np.sqrt(np.exp(random.uniform(-np.log(2.5), np.log(2.5), count)))
    w = np.minimum(size / root, 0.95 * width)
    h = np.minimum(size * root, 0.95 * height)
    x, y = random.uniform(0, width - w), random.uniform(0, height - h)
    return np.stack([x, y, x + w, y + h], 1).astype(np.float32)


def labels(count, positives, seed=0):
    """Draw labels [count] as of matching: so many 1, 2 % -1, the others 0."""
    random = np.random.default_rng(seed)
    result = np.zeros(count, np.int32)
    special = random.permutation(count)[: positives + count // 50]
    result[special] = -1
    result[special[:positives]] = 1
    return result


def trained_outputs(anchors, truth, seed=0):
    """Draw logits [A] and deltas [A, 4] as a trained head gives them.

    The better an anchor overlaps an object, the higher it scores and the closer it
    points to it; the others score -4 and point anywhere.
    """
    random = np.random.default_rng(seed)
    best, nearest = np.zeros(len(anchors)), np.zeros(len(anchors), np.int64)
    for i, box in enumerate(truth):
        overlap = iou(box, anchors)
        nearest[overlap > best] = i
        best = np.maximum(best, overlap)
    sure = np.clip(best / 0.7, 0, 1)
    logits = -4 + 8 * sure + random.normal(0, 0.7, len(anchors))
    exact = encode(truth[nearest], anchors) * (0.6 + 0.4 * sure[:, None])
    aimed = exact + random.normal(0, 0.08, exact.shape)
    anywhere = random.normal(0, 0.15, exact.shape)
    deltas = np.where(best[:, None] > 0.15, aimed, anywhere)
    return logits.astype(np.float32), deltas.astype(np.float32)


def unrelated_outputs(count, seed=0):
    """Draw logits [count] and deltas [count, 4] that know nothing of each other."""
    random = np.random.default_rng(seed)
    logits, deltas = random.normal(0, 2, count), random.normal(0, 0.15, (count, 4))
    return logits.astype(np.float32), deltas.astype(np.float32)


def iou(box, boxes):
    """IoU of one box [4] with each of boxes [N, 4], in their own precision."""
    w = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    h = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    inter = np.maximum(w, 0) * np.maximum(h, 0)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return inter / ((box[2] - box[0]) * (box[3] - box[1]) + area - inter)


def encode(boxes, anchors):
    """Code boxes [A, 4] against anchors [A, 4]."""
    sides, anchor_sides = (x[:, 2:] - x[:, :2] for x in (boxes, anchors))
    middles, anchor_middles = (
        x[:, :2] + s / 2 for x, s in ((boxes, sides), (anchors, anchor_sides))
    )
    shift = (middles - anchor_middles) / anchor_sides
    return np.concatenate([shift, np.log(sides / anchor_sides)], 1)


def _copies_and_clutter(random, count, share, spread, image):
    """Copies of objects, whose score follows their IoU with it, among clutter."""
    num_objects, copies = random.randint(20, 51), int(count * share)
    size = np.exp(random.uniform(np.log(24), np.log(420), num_objects))
    ratio = np.exp(random.uniform(-0.7, 0.7, num_objects))
    w, h = size * np.sqrt(ratio), size / np.sqrt(ratio)
    x, y = (
        random.uniform(side / 2, np.maximum(whole - side / 2, side / 2 + 1))
        for side, whole in zip((w, h), image, strict=True)
    )
    of = random.randint(0, num_objects, copies)
    x, y, w, h = x[of], y[of], w[of], h[of]
    jitter = np.abs(random.normal(0, spread, copies))
    near_x, near_y = (
        middle + random.normal(0, 1, copies) * jitter * side
        for middle, side in ((x, w), (y, h))
    )
    near_w, near_h = (
        side * np.exp(random.normal(0, 1, copies) * jitter) for side in (w, h)
    )
    near = _corners(near_x, near_y, near_w, near_h)
    truth = _corners(x, y, w, h)
    shared = np.minimum(near[:, 2:], truth[:, 2:]) - np.maximum(
        near[:, :2], truth[:, :2]
    )
    inter = np.maximum(0, shared).prod(1)
    overlap = inter / (near_w * near_h + w * h - inter)
    logit = 8 * (overlap - 0.5) + random.normal(0, 1.2, copies)
    clutter = _clutter(random, count - copies, image)
    logit = np.concatenate([logit, random.normal(-2.5, 1.2, count - copies)])
    boxes = _clip(np.concatenate([near, clutter]), *image)
    order = random.permutation(count)
    return boxes[order], 1 / (1 + np.exp(-logit[order]))


def _clutter(random, count, image):
    """Independent boxes with their middle in the image."""
    size = np.exp(random.uniform(np.log(16), np.log(500), count))
    root = np.sqrt(np.exp(random.uniform(-0.7, 0.7, count)))
    x, y = (random.uniform(0, side, count) for side in image)
    return _corners(x, y, size * root, size / root)


def _corners(x, y, w, h):
    """Boxes [N, 4] of middles and sides."""
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def _clip(boxes, width, height):
    """Cut what leaves the image."""
    return np.clip(boxes, 0, [width, height, width, height])
