"""What COCO's tools read: any source as images and a json, detections as results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rpn_jax.data.faults import DataError, Faults, OnBad
from rpn_jax.data.images import load_image
from rpn_jax.data.records import Source


def export_coco(source: Source, folder: str | Path, on_bad: OnBad = "raise") -> Path:
    """Write a source's records as PNG files and a COCO json; return the json's path.

    The images go to `folder/images`, the json to `folder/annotations.json`. A record
    that cannot be read is a `DataError`, or is skipped and counted in the log.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations, names, faults = [], [], set(), Faults(on_bad)
    for index in range(len(source)):
        try:
            record = source[index]
            pixels = load_image(record)
        except DataError as error:
            faults.add(error)
            continue
        name = f"{Path(record.name).stem}.png"
        while name in names:  # of another folder or with another ending
            name = f"{Path(name).stem}_{record.image_id}.png"
        names.add(name)
        Image.fromarray(pixels).save(folder / "images" / name, compress_level=1)
        height, width = pixels.shape[:2]
        images.append(
            dict(id=record.image_id, file_name=name, height=height, width=width)
        )
        for box, label, ignore, area in zip(
            record.boxes, record.labels, record.ignore, record.areas, strict=True
        ):
            x1, y1, x2, y2 = box.astype(np.float64)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=record.image_id,
                    category_id=int(label) + 1,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=float(area),
                    iscrowd=int(ignore),
                )
            )
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(source.classes)]
    path = folder / "annotations.json"
    content = dict(images=images, annotations=annotations, categories=categories)
    path.write_text(json.dumps(content))
    faults.report(folder)
    return path


def coco_results(
    image_ids: Any,
    boxes: Any,
    scores: Any,
    labels: Any,
    valid: Any,
    *,
    category_ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Turn the detections of a batch into COCO results.

    Join the lists of all batches and write them with `json.dumps`: pycocotools'
    `loadRes` reads the file, or the list itself.

    Args:
        image_ids: [B] ids of the images; a negative one only fills the batch.
        boxes: [B, N, 4] xyxy in pixels of the original images.
        scores: [B, N].
        labels: [B, N] 0-based classes.
        valid: [B, N] bool.
        category_ids: COCO's id of each class, as `CocoSource.category_ids`; detections
            of a class with a negative one are left out. Default: the class + 1, as
            `export_coco` writes it.

    Returns:
        A dict of `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`
        for every other valid detection, image by image in the order given.

    Raises:
        ValueError: a label has no category id.
    """
    image_ids, scores, labels = map(np.asarray, (image_ids, scores, labels))
    valid = np.asarray(valid) & (image_ids >= 0)[:, None]
    images, rows = np.nonzero(valid)
    classes = labels[images, rows]
    highest = classes.max(initial=-1)
    ids = np.arange(1, highest + 2) if category_ids is None else category_ids
    if classes.min(initial=0) < 0 or highest >= len(ids):
        raise ValueError(
            f"labels must be 0 to {len(ids) - 1}, one category id for each, got "
            f"{classes.min()} to {highest}"
        )
    corners = np.asarray(boxes, np.float64)[images, rows]
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return [
        dict(image_id=i, category_id=int(ids[c]), bbox=box, score=score)
        for i, c, box, score in zip(
            image_ids[images].tolist(),
            classes.tolist(),
            xywh.tolist(),
            scores[images, rows].astype(np.float64).tolist(),
            strict=True,
        )
        if ids[c] >= 0
    ]
