"""The stages in plain NumPy: what every result is compared with.

Written for plainness. Its time is of interest for NMS alone, which people do write in
this way.
"""

import numpy as np
from inputs import encode, iou


def about():
    """Tell what runs here."""
    return {"numpy": np.__version__}


def greedy(boxes, scores, threshold, most, groups=None):
    """Take the best box, drop what it suppresses, repeat; returns indices kept."""
    order, kept = np.argsort(-scores, kind="stable"), []
    left, group = boxes[order], None if groups is None else groups[order]
    while len(order) and len(kept) < most:
        kept.append(order[0])
        stays = ~(iou(left[0], left) > np.float32(threshold))
        if group is not None:
            stays |= group != group[0]
            stays[0] = False
            group = group[stays]
        else:
            stays[0] = False
        order, left = order[stays], left[stays]
    return np.array(kept, np.int64)


def prepare_nms(arrays, options):
    """Greedy NMS, image by image."""
    boxes, scores, groups = arrays["boxes"], arrays["scores"], arrays.get("groups")
    threshold, most = options["threshold"], options["most"]

    def run():
        return [
            greedy(
                boxes[i],
                scores[i],
                threshold,
                most,
                None if groups is None else groups[i],
            )
            for i in range(len(boxes))
        ]

    return run, lambda kept: {"kept": pad(kept, most, -1)}, {}


def pad(rows, most, value):
    """Stack rows of different lengths, filled up with a value."""
    shape = np.shape(rows[0])[1:]
    out = np.full((len(rows), most, *shape), value, np.asarray(rows[0]).dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def prepare_topk(arrays, options):
    """Sort everything, take the first k."""
    scores, k = arrays["scores"], options["k"]

    def run():
        return np.argsort(-scores, kind="stable")[:k]

    return run, lambda best: {"chosen": best[None], "values": scores[best]}, {}


def match(anchors, boxes):
    """Label anchors 1, 0 or -1 and name each one's best object."""
    best = np.full(len(anchors), -1, np.float32)
    index = np.zeros(len(anchors), np.int64)
    claimed = np.zeros(len(anchors), bool)
    for i, box in enumerate(boxes):
        overlap = iou(box, anchors)
        index[overlap > best] = i
        best = np.maximum(best, overlap)
        claimed |= (overlap == overlap.max()) & (overlap > 0)
    labels = np.where(best < np.float32(0.3), 0, -1)
    labels[(best >= np.float32(0.7)) | claimed] = 1
    return labels, index


def prepare_match(arrays, options):
    """Matching alone."""

    def run():
        return match(arrays["anchors"], arrays["gt"])

    return run, lambda found: named_matches(*found), {}


def named_matches(labels, index):
    """What matching is compared by: the object counts where there is one."""
    labels, index = np.asarray(labels), np.asarray(index)
    return {"labels": labels, "gt_index": np.where(labels == 1, index, -1)}


def state_dict(arrays):
    """The weights among the arrays of a case, by their names."""
    start = "weights/"
    named = ((name, x) for name, x in arrays.items() if name.startswith(start))
    return {name.removeprefix(start): x for name, x in named}


def boxes_alone(boxes):
    """Rows [B, K, 5] without scores, which vary in the fifth place among networks."""
    return np.pad(boxes, ((0, 0), (0, 0), (0, 1)))


def count_sample(labels, size=256, fraction=0.5):
    """How many positives and negatives a balanced sample holds."""
    positives = min(int((labels == 1).sum()), int(size * fraction))
    return np.array([positives, min(int((labels == 0).sum()), size - positives)])


def prepare_sample(arrays, options):
    """Nothing is drawn here: the numbers are what can be compared."""

    def run():
        return count_sample(arrays["labels"])

    return run, lambda counts: {"counts": counts}, {}


def prepare_encode(arrays, options):
    """Coding of all anchors."""

    def run():
        return encode(arrays["boxes"], arrays["anchors"])

    return run, lambda deltas: {"deltas": deltas}, {}


def prepare_targets(arrays, options):
    """Matching, sampling, coding."""
    anchors, gt = arrays["anchors"], arrays["gt"]

    def run():
        labels, index = match(anchors, gt)
        deltas = encode(gt[index], anchors)
        return labels, count_sample(labels), np.where(labels[:, None] == 1, deltas, 0)

    names = ("labels", "counts", "deltas")
    return run, lambda out: dict(zip(names, out, strict=True)), {}


def decode(deltas, anchors):
    """Move anchors [..., A, 4] by deltas; a side grows 62.5-fold at most."""
    sides = anchors[..., 2:] - anchors[..., :2]
    middles = anchors[..., :2] + np.float32(0.5) * sides
    middles = middles + deltas[..., :2] * sides
    most = np.float32(np.log(1000 / 16))
    half = np.exp(np.minimum(deltas[..., 2:], most)) * sides / 2
    return np.concatenate([middles - half, middles + half], -1)


def prepare_decode(arrays, options):
    """Decoding of all anchors."""

    def run():
        return decode(arrays["deltas"], arrays["anchors"])

    return run, lambda boxes: {"boxes": boxes}, {}


def propose(anchors, logits, deltas, options):
    """Proposals of one image, as rows of box and score."""
    height, width = options["size"]
    chosen = []
    for at, end in options["levels"]:
        best = at + np.argsort(-logits[at:end], kind="stable")[: options["pre"]]
        chosen.append(best)
    group = np.repeat(np.arange(len(chosen)), [len(best) for best in chosen])
    best = np.concatenate(chosen)
    boxes = np.clip(decode(deltas[best], anchors[best]), 0, [width, height] * 2)
    boxes, scores = boxes.astype(np.float32), 1 / (1 + np.exp(-logits[best]))
    large = (boxes[:, 2:] - boxes[:, :2] >= options["min_size"]).all(1)
    boxes, scores, group = boxes[large], scores[large], group[large]
    kept = greedy(boxes, scores, options["threshold"], options["most"], group)
    return np.concatenate([boxes[kept], scores[kept, None]], 1)


def prepare_proposals(arrays, options):
    """The whole stage."""

    def run():
        return [
            propose(arrays["anchors"], logits, deltas, options)
            for logits, deltas in zip(arrays["logits"], arrays["deltas"], strict=True)
        ]

    return run, lambda rows: {"rows": pad(rows, options["most"], 0)}, {}


def roi_weights(first, last, bins, length, sampling, aligned):
    """How much each of `length` cells in a row weighs in each bin [bins, length].

    All is float32, in the order of torchvision.
    """
    shift, least = (0.5, 0) if aligned else (0, 1)
    start, end = (x - np.float32(shift) for x in (first, last))
    size = max(end - start, np.float32(least)) / np.float32(bins)
    number = sampling or int(np.ceil(size))
    weights = np.zeros((bins, length), np.float32)
    if not number:
        return weights
    p, k = (np.arange(x, dtype=np.float32) for x in (bins, number))
    samples = start + p[:, None] * size + (k + np.float32(0.5)) * size / number
    row, _ = np.nonzero((samples >= -1) & (samples <= length))
    samples = samples[(samples >= -1) & (samples <= length)].clip(0, length - 1)
    low = samples.astype(int)
    part = samples - low
    np.add.at(weights, (row, low), (1 - part) / number)
    np.add.at(weights, (row, np.minimum(low + 1, length - 1)), part / number)
    return weights


def prepare_roi(arrays, options):
    """RoIAlign as a product of two matrices with what the RoI covers of the map."""
    features = arrays["features"]
    bins, sampling, aligned = (options[x] for x in ("bins", "sampling", "aligned"))

    def run():
        pooled, gradient = [], np.zeros_like(features)
        for i, box in enumerate(arrays["boxes"] * np.float32(options["scale"])):
            wy, wx = (
                roi_weights(box[at], box[at + 2], bins, length, sampling, aligned)
                for at, length in ((1, features.shape[0]), (0, features.shape[1]))
            )
            (y, wy), (x, wx) = (covered(weights) for weights in (wy, wx))
            rows = np.tensordot(wy, features[y, x], 1)  # [bins, w, C]
            pooled.append(np.einsum("qw,pwc->pqc", wx, rows, optimize=True))
            if "cotangent" in arrays:
                back = np.einsum("qw,pqc->pwc", wx, arrays["cotangent"][i])
                gradient[y, x] += np.tensordot(wy.T, back, 1)
        return np.stack(pooled), gradient

    def collect(result):
        pooled, gradient = result
        found = {"pooled": pooled}
        return found | ({"gradient": gradient} if "cotangent" in arrays else {})

    return run, collect, {}


def covered(weights):
    """Cut off the columns before the first and after the last that weigh anything."""
    some = np.flatnonzero(weights.any(axis=0))
    part = slice(some[0], some[-1] + 1) if len(some) else slice(0, 0)
    return part, weights[:, part]


STAGES = {
    "nms": prepare_nms,
    "topk": prepare_topk,
    "match": prepare_match,
    "sample": prepare_sample,
    "encode": prepare_encode,
    "targets": prepare_targets,
    "decode": prepare_decode,
    "proposals": prepare_proposals,
    "filter": prepare_proposals,
    "roi": prepare_roi,
}
