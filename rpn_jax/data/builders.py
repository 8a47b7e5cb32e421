"""Builders of tfds directories that need no TensorFlow; importing this imports tfds.

The images' bytes pass through untouched. The features bear the names, dtypes and
conventions of tfds's own `coco` and `voc`, so that `TfdsSource` reads a directory
prepared here as it reads one prepared by tfds.
"""

import abc
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rpn_jax.data.faults import DataError, Faults, OnBad
from rpn_jax.data.images import header_size, image_size, load_image
from rpn_jax.data.records import Record, Source


class _RecordBuilder(tfds.core.GeneratorBasedBuilder):
    """What both builders share: splits are sources of records."""

    VERSION = tfds.core.Version("1.0.0")
    SKIP_REGISTERING = True
    # tfds 4.9.10 would look for this file by a package that it does not require.
    code_path = None

    def __init__(
        self,
        *,
        sources: Mapping[str, Source],
        on_bad: OnBad = "raise",
        **kwargs: Any,
    ):
        self._sources = sources
        self._on_bad: OnBad = on_bad
        self._classes = next(iter(sources.values())).classes
        for split, source in sources.items():
            if source.classes != self._classes:
                raise DataError(
                    f"split {split} has other classes than the first: "
                    f"{source.classes} against {self._classes}; give VocSource the "
                    "first split's classes"
                )
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {k: self._generate_examples(s) for k, s in self._sources.items()}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict]]:
        faults = Faults(self._on_bad)
        for index in range(len(source)):
            try:
                example = self._example(source[index])
            except DataError as error:
                faults.add(error)
                continue
            yield index, example
        faults.report("left out")

    @abc.abstractmethod
    def _example(self, record: Record) -> dict[str, Any]:
        """Return the record in the features of the dataset."""


class RpnCoco(_RecordBuilder):
    """Records with the features of tfds's `coco`."""

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(
            self,
            {
                "id": np.int64,
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=self._classes),
                "is_crowd": np.bool_,
            },
            {"image/id": np.int64},
        )

    def _example(self, record: Record) -> dict[str, Any]:
        rows = zip(
            _relative(record, record.boxes),
            record.labels,
            record.areas,
            record.ignore,
            strict=True,
        )
        return {
            "image": io.BytesIO(_encoded(record)),
            "image/filename": record.name,
            "image/id": record.image_id,
            "objects": [
                {
                    # tfds wants an id; the record does not keep the json's.
                    "id": (record.image_id << 16) + number,
                    "area": round(float(area)),
                    "bbox": box,
                    "label": int(label),
                    "is_crowd": bool(ignore),
                }
                for number, (box, label, area, ignore) in enumerate(rows)
            ],
        }


class RpnVoc(_RecordBuilder):
    """Records with the features of tfds's `voc`: 1-based inclusive boxes."""

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=self._classes)
        return _info(
            self,
            {
                "label": label,
                "bbox": tfds.features.BBoxFeature(),
                "pose": tfds.features.ClassLabel(names=["unspecified"]),
                "is_truncated": np.bool_,
                "is_difficult": np.bool_,
            },
            {
                "labels": tfds.features.Sequence(label),
                "labels_no_difficult": tfds.features.Sequence(label),
            },
        )

    def _example(self, record: Record) -> dict[str, Any]:
        boxes = _relative(record, record.boxes + np.array([1, 1, 0, 0], np.float32))
        rows = zip(boxes, record.labels, record.ignore, strict=True)
        easy = record.labels[~record.ignore]
        return {
            "image": io.BytesIO(_encoded(record)),
            "image/filename": record.name,
            "objects": [
                {
                    "label": int(label),
                    "bbox": box,
                    # Not kept in records.
                    "pose": "unspecified",
                    "is_truncated": False,
                    "is_difficult": bool(ignore),
                }
                for box, label, ignore in rows
            ],
            "labels": sorted(set(record.labels.tolist())),
            "labels_no_difficult": sorted(set(easy.tolist())),
        }


def _info(builder: Any, objects: dict, more: dict) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        disable_shuffling=True,  # records keep their source's order
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image/filename": tfds.features.Text(),
                "objects": tfds.features.Sequence(objects),
                **more,
            }
        ),
    )


def _relative(record: Record, boxes: np.ndarray) -> list[tfds.features.BBox]:
    height, width = image_size(record)
    scale = np.array([width, height, width, height], np.float64)
    relative = np.clip(boxes / scale, 0, 1)
    return [
        tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2)
        for x1, y1, x2, y2 in relative.tolist()
    ]


def _encoded(record: Record) -> bytes:
    """The file as it is, unless tfds's readers would see another image than ours."""
    data = record.image
    if not isinstance(data, np.ndarray):
        header_size(data, record.name)  # says so where it is broken
    if isinstance(data, Path):
        data = data.read_bytes()
    if isinstance(data, bytes):
        with Image.open(io.BytesIO(data)) as image:
            plain = image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L")
            if plain and record.size in (None, (image.height, image.width)):
                return data
    out = io.BytesIO()
    Image.fromarray(load_image(record)).save(out, "PNG")
    return out.getvalue()
