"""What the ops compute, in plain NumPy: slow, short, and read as a specification.

Boxes are xyxy, continuous. Where the result has to agree to the bit, the arithmetic
is float32 in the order written here; the smooth functions are float64.
"""

import numpy as np

F = np.float32
MAX_LOG_SCALE = np.log(1000 / 16)


def split(boxes):
    return np.moveaxis(np.asarray(boxes), -1, 0)


# Boxes. a and b broadcast: pass a[:, None] and b[None] for every pair.


def area(boxes):
    x1, y1, x2, y2 = split(boxes)
    return np.maximum((x2 - x1) * (y2 - y1), F(0))


def intersection(a, b):
    ax1, ay1, ax2, ay2 = split(a)
    bx1, by1, bx2, by2 = split(b)
    w = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), F(0))
    h = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    return np.maximum(w * h, F(0))


def divide(part, whole):
    """Divide, 0 where the divisor is 0."""
    return np.where(whole == 0, F(0), part / np.where(whole == 0, F(1), whole))


def iou(a, b):
    inter = intersection(a, b)
    return divide(inter, (area(a) + area(b)) - inter)


def ioa(a, b):
    return divide(intersection(a, b), area(b))


def around(a, b):
    """Width and height of the smallest box around both."""
    ax1, ay1, ax2, ay2 = split(a)
    bx1, by1, bx2, by2 = split(b)
    width = np.maximum(ax2, bx2) - np.minimum(ax1, bx1)
    return width, np.maximum(ay2, by2) - np.minimum(ay1, by1)


def giou(a, b):
    a, b = np.float64(a), np.float64(b)
    width, height = around(a, b)
    union = area(a) + area(b) - intersection(a, b)
    return iou(a, b) - (width * height - union) / (width * height)


def diou(a, b, eps=1e-7):
    a, b = np.float64(a), np.float64(b)
    width, height = around(a, b)
    centres = (a[..., :2] + a[..., 2:]) / 2 - (b[..., :2] + b[..., 2:]) / 2
    return iou(a, b) - (centres**2).sum(-1) / (width**2 + height**2 + eps)


def ciou(a, b, eps=1e-7):
    a, b = np.float64(a), np.float64(b)
    aw, ah = split(a[..., 2:] - a[..., :2])
    bw, bh = split(b[..., 2:] - b[..., :2])
    v = 4 / np.pi**2 * (np.arctan(aw / ah) - np.arctan(bw / bh)) ** 2
    return diou(a, b, eps) - v * v / (1 - iou(a, b) + v + eps)


def is_finite(boxes):
    return np.isfinite(boxes).all(-1)


def is_proper(boxes):
    x1, y1, x2, y2 = split(boxes)
    return is_finite(boxes) & (x2 > x1) & (y2 > y1)


# Anchors.


def cell(sizes, ratios, size_major=False):
    """Anchors of one cell without rounding, centred on (0, 0)."""
    pairs = [(s, r) for r in ratios for s in sizes]
    if size_major:
        pairs = [(s, r) for s in sizes for r in ratios]
    sides = [(s / r**0.5, s * r**0.5) for s, r in pairs]
    return np.array([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])


def place(cell, grid_size, stride, offset):
    anchors = []
    for row in range(grid_size[0]):
        for column in range(grid_size[1]):
            y, x = (row + offset) * stride[0], (column + offset) * stride[1]
            anchors += [anchor + (x, y, x, y) for anchor in cell]
    return np.array(anchors)


# Coding.


def encode(box, anchor, weights=(1, 1, 1, 1)):
    (bx1, by1, bx2, by2), (ax1, ay1, ax2, ay2) = np.float64(box), np.float64(anchor)
    bw, bh, aw, ah = bx2 - bx1, by2 - by1, ax2 - ax1, ay2 - ay1
    dx = ((bx1 + bx2) - (ax1 + ax2)) / 2 / aw
    dy = ((by1 + by2) - (ay1 + ay2)) / 2 / ah
    return np.array([dx, dy, np.log(bw / aw), np.log(bh / ah)]) * weights


def decode(delta, anchor, weights=(1, 1, 1, 1), max_log_scale=MAX_LOG_SCALE):
    dx, dy, dw, dh = np.float64(delta) / weights
    x1, y1, x2, y2 = np.float64(anchor)
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    w = np.exp(min(dw, max_log_scale)) * (x2 - x1)
    h = np.exp(min(dh, max_log_scale)) * (y2 - y1)
    return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


# Selection.


def ranking(scores, valid):
    """Indices of what may be chosen, best first, ties to the lower index."""
    usable = valid & ~np.isnan(scores) & (scores != -np.inf)
    return sorted(np.flatnonzero(usable), key=lambda i: (-scores[i], i))


def pad(indices, length):
    indices = list(indices)[:length]
    return np.array(indices + [-1] * (length - len(indices)), np.int32)


def top_k(scores, k, valid):
    return pad(ranking(scores, valid), k)


def nms(boxes, scores, iou_threshold, max_outputs, valid, groups):
    """Greedy suppression; the indices that stay, best first, padded with -1."""
    kept = []
    for i in ranking(scores, valid & is_finite(boxes)):
        others = [j for j in kept if groups[j] == groups[i]]
        if not (iou(boxes[i], boxes[others]) > F(iou_threshold)).any():
            kept.append(i)
    return pad(kept, max_outputs)


# Matching.


def match(
    anchors,
    gt_boxes,
    gt_valid,
    gt_ignore,
    anchor_valid,
    *,
    high_threshold,
    low_threshold,
    low_quality,
    low_quality_above,
    ignore_threshold,
):
    """Labels, object and best IoU of each anchor; best IoU of each object."""
    usable = gt_valid & is_proper(gt_boxes)
    objects = np.flatnonzero(usable & ~gt_ignore)
    regions = np.flatnonzero(usable & gt_ignore)
    those = np.flatnonzero(anchor_valid)

    labels = np.full(len(anchors), -1)
    index = np.full(len(anchors), -1)
    best = np.zeros(len(anchors), F)
    gt_best = np.zeros(len(gt_boxes), F)
    boxes = np.where(usable[:, None], gt_boxes, F(0))
    overlap = iou(anchors[:, None], boxes[None])
    share = ioa(boxes[:, None], anchors[None])

    for a in those:
        labels[a] = 0
        for g in objects:
            if index[a] < 0 or overlap[a, g] > best[a]:
                index[a], best[a] = g, overlap[a, g]
        if len(objects) and best[a] >= F(low_threshold):
            labels[a] = -1
        if len(objects) and best[a] >= F(high_threshold):
            labels[a] = 1
    for g in objects:
        gt_best[g] = max((overlap[a, g] for a in those), default=0)
        for a in those:
            claimed = overlap[a, g] == gt_best[g] > F(low_quality_above)
            if claimed and low_quality != "off":
                labels[a] = 1
                if low_quality == "overwrite":
                    index[a] = g
    for a in those:
        for g in regions:
            if labels[a] == 0 and share[g, a] >= F(ignore_threshold):
                labels[a] = -1
    return labels, index, best, gt_best


# RoI pooling. Where samples and bins lie is float32, in the order of torchvision.


def roi_weights(first, last, bins, length, sampling, aligned):
    """How much each of `length` cells in a row weighs in each bin, [bins, length]."""
    shift = F(0.5) if aligned else F(0)
    start, end = first - shift, last - shift
    size = max(end - start, F(0) if aligned else F(1)) / F(bins)
    number = sampling or int(np.ceil(size))
    weights = np.zeros((bins, length))
    for p in range(bins):
        for k in range(number):
            sample = start + F(p) * size + (F(k) + F(0.5)) * size / F(number)
            if -1 <= sample <= length:
                sample = np.clip(sample, F(0), F(length - 1))
                low = int(sample)
                high = min(low + 1, length - 1)
                weights[p, low] += (1 - (sample - low)) / number
                weights[p, high] += (sample - low) / number
    return weights


def roi_align(
    features,
    boxes,
    valid,
    cotangent,
    *,
    output_size,
    spatial_scale,
    sampling_ratio,
    aligned,
):
    """Pooled boxes, and the gradient of features by a cotangent of them."""
    (height, width, channels), (rows, columns) = features.shape, output_size
    pooled = np.zeros((len(boxes), rows, columns, channels))
    gradient = np.zeros(features.shape)
    for r in np.flatnonzero(valid & is_finite(boxes)):
        x1, y1, x2, y2 = boxes[r] * F(spatial_scale)
        wy = roi_weights(y1, y2, rows, height, sampling_ratio, aligned)
        wx = roi_weights(x1, x2, columns, width, sampling_ratio, aligned)
        pooled[r] = np.einsum("ph,qw,hwc->pqc", wy, wx, features)
        gradient += np.einsum("ph,qw,pqc->hwc", wy, wx, cotangent[r])
    return pooled, gradient


def away_from_zero(x):
    """Round, halves away from 0."""
    whole = np.trunc(x)
    return whole + np.sign(x) * (np.abs(x - whole) >= 0.5)


def roi_pool(features, boxes, valid, cotangent, *, output_size, spatial_scale):
    """Pooled boxes, and the gradient of features by a cotangent of them."""
    (height, width, channels), (rows, columns) = features.shape, output_size
    pooled = np.zeros((len(boxes), rows, columns, channels))
    gradient = np.zeros(features.shape)

    def span(first, last, bins, p, length):
        first, last = away_from_zero(first), away_from_zero(last)
        size = max(last - first + F(1), F(1)) / F(bins)
        low, high = first + np.floor(F(p) * size), first + np.ceil(F(p + 1) * size)
        return range(int(np.clip(low, 0, length)), int(np.clip(high, 0, length)))

    for r in np.flatnonzero(valid & is_finite(boxes)):
        x1, y1, x2, y2 = boxes[r] * F(spatial_scale)
        for p, q, c in np.ndindex(rows, columns, channels):
            cells = [
                (y, x)
                for y in span(y1, y2, rows, p, height)
                for x in span(x1, x2, columns, q, width)
            ]
            if cells:
                best = max(cells, key=lambda cell: features[*cell, c])
                pooled[r, p, q, c] = features[*best, c]
                gradient[*best, c] += cotangent[r, p, q, c]
    return pooled, gradient
