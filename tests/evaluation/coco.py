"""COCO's dicts: random scenes, padded arrays of them, and what pycocotools counts."""

import contextlib
import io

import numpy as np
import pytest


def pad(arrays, length):
    """Stack arrays of different length, zeros behind; and which rows are real."""
    arrays = [np.asarray(a) for a in arrays]
    out = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, a in zip(out, arrays, strict=True):
        row[: len(a)] = a
    return out, np.arange(length) < np.array([[len(a)] for a in arrays])


def xyxy(items):
    boxes = np.array([a["bbox"] for a in items], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], -1)


def detection_arrays(truth, results):
    """COCO's dicts as padded arrays, images by id, the rest in the order of the dicts.

    boxes, scores, labels, valid; boxes, labels, valid, crowd, areas of the objects.
    """
    classes = sorted(c["id"] for c in truth["categories"])
    images = sorted(i["id"] for i in truth["images"])

    def padded(items, *fields):
        rows = {i: [] for i in images}
        for item in items:
            rows[item["image_id"]].append(item)
        most = max(1, *map(len, rows.values()))
        boxes, valid = pad([xyxy(r) for r in rows.values()], most)
        labels = [[classes.index(a["category_id"]) for a in r] for r in rows.values()]
        columns = [[[a[f] for a in r] for r in rows.values()] for f in fields]
        labels, *columns = (
            pad([np.array(r, dtype) for r in column], most)[0]
            for column, dtype in zip(
                (labels, *columns), (np.int32, float, float), strict=False
            )
        )
        return boxes, labels, valid, *columns

    boxes, labels, valid, scores = padded(results, "score")
    *objects, crowd, areas = padded(truth["annotations"], "iscrowd", "area")
    return boxes, scores, labels, valid, *objects, crowd.astype(bool), areas


def pycocotools(truth, results, *, classes, most):
    """Run pycocotools; give its evaluation, accumulated and summarized."""
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO()
        gt.dataset = truth
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(results), "bbox")
        evaluation.params.useCats = int(classes)
        evaluation.params.maxDets = list(most)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def random_coco(seed, images=12, grid=None):
    """Scenes with crowd, empty images, equal scores, several classes."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, images + 1):
        objects = rng.integers(0, 15)
        corner = rng.uniform(0, 500, (objects, 2))
        sides = np.exp(rng.uniform(1.5, 5.5, (objects, 2)))
        boxes = np.concatenate([corner, sides], -1)
        if grid:
            boxes = np.maximum(np.round(boxes / grid), 1) * grid
        for box in boxes:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=int(rng.integers(1, 4)),
                    bbox=box.tolist(),
                    area=float(box[2] * box[3] * rng.uniform(0.5, 1)),
                    iscrowd=int(rng.random() < 0.2),
                )
            )
        count = rng.integers(0, 130)
        noise = rng.normal(0, 0.1, (count, 4)) if objects else None
        near = boxes[rng.integers(0, objects, count)] if objects else None
        far = np.concatenate(
            [rng.uniform(0, 500, (count, 2)), rng.uniform(5, 200, (count, 2))], -1
        )
        if objects:
            near = near + noise * np.tile(near[:, 2:], 2)
            far = np.where(rng.random((count, 1)) < 0.7, near, far)
        if grid:
            far = np.maximum(np.round(far / grid), 1) * grid
        for box in far:
            results.append(
                dict(
                    image_id=image,
                    category_id=int(rng.integers(1, 4)),
                    bbox=box.tolist(),
                    score=float(np.round(rng.random(), 2)),
                )
            )
    truth = dict(
        info={},
        images=[dict(id=i) for i in range(1, images + 1)],
        annotations=annotations,
        categories=[dict(id=c, name=str(c)) for c in (1, 2, 3)],
    )
    return truth, results
