"""Any source written as image files and a COCO json."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rpn_jax.data.images import load_image
from rpn_jax.data.records import Source


def export_coco(source: Source, folder: str | Path) -> Path:
    """Write a source's records as PNG files and a COCO json; return the json's path.

    The images go to `folder/images`, the json to `folder/annotations.json`.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(len(source)):
        record = source[index]
        pixels = load_image(record)
        name = f"{Path(record.name).stem}.png"
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
    return path
