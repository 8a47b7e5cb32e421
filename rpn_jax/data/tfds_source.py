"""TensorFlow Datasets directories, read and written without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rpn_jax.data.faults import DataError, OnBad, OnFault, count_and_warn
from rpn_jax.data.images import header_size
from rpn_jax.data.records import Record, Source, check_record
from rpn_jax.data.voc import VocSource


class TfdsSource:
    """Records of a directory that tfds has prepared as array_record or parquet.

    It reads the features of tfds's own `coco` and `voc` (`objects/bbox` relative
    y, x, y, x; `is_crowd` or `is_difficult`, which become `ignore`). tfds's voc keeps
    the 1-based inclusive pixels, so that 1 is taken off xmin and ymin.

    The directory gives no image sizes; they are read from the image headers. Records
    are checked as they are read, as `check_record` says.

    Args:
        dir: The version's directory, the one with `dataset_info.json`.
        split: tfds's split syntax, as "train" or "train[:50%]".
        on_bad: "raise" a `DataError` at a faulty box, or "skip" and count it in the
            log, or what is told of it. A record whose image header is broken has no
            boxes and no size where "skip" is chosen; who reads the image skips it.

    Attributes:
        classes: Class names.
    """

    def __init__(self, dir: str | Path, split: str, on_bad: OnFault = "raise"):
        import tensorflow_datasets as tfds

        self.dir, self.split = Path(dir), split
        self.on_bad: OnFault = on_bad
        if not (self.dir / "dataset_info.json").is_file():
            raise DataError(
                f"{self.dir}: there is no dataset_info.json; give the directory of a "
                "prepared version, as .../voc/2012/5.0.0"
            )
        try:
            builder: Any = tfds.builder_from_directory(self.dir)
        except Exception as error:  # whatever is wrong with its json files
            raise _broken(self.dir, "the directory", error) from error
        features: Any = builder.info.features or {}
        objects: Any = features["objects"].feature if "objects" in features else {}
        if "bbox" not in objects or "label" not in objects:
            raise DataError(f"{self.dir}: needs the features objects/bbox and /label")
        self.classes = tuple(objects["label"].names)
        self._ignore = next(
            (k for k in ("is_crowd", "is_difficult") if k in objects), ""
        )
        try:
            self._data: Any = builder.as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
            len(self._data)
        except NotImplementedError as error:
            raise DataError(
                f"{self.dir} is stored as {builder.info.file_format}, which has no "
                "random access; where TensorFlow is installed, convert it with "
                "`python -m tensorflow_datasets.scripts.convert_format "
                f"--dataset_version_dir={self.dir} --out_file_format=array_record "
                "--out_dir=NEW_DIR`."
            ) from error
        except Exception as error:  # a split that is not there, a missing file, ...
            raise _broken(self.dir, f"split {split}", error) from error

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        """Read one record; its image is encoded bytes."""
        index = range(len(self))[index]
        try:
            example = self._data[index]
        except Exception as error:  # the readers raise anything on damaged files
            raise _broken(self.dir, f"record {index}", error) from error
        name = example.get("image/filename", f"record {index}")
        name = name.decode() if isinstance(name, bytes) else str(name)
        image_id = int(example.get("image/id", index))
        try:
            size = header_size(example["image"], f"{self.dir}: {name}")
        except DataError:
            if self.on_bad != "skip":
                raise
            none = np.zeros(0, np.float32)
            return Record(
                example["image"],
                image_id,
                name,
                None,
                none.reshape(0, 4),
                none.astype(np.int32),
                none > 0,
                none,
            )
        height, width = size
        objects = example["objects"]
        relative = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
        boxes = relative[:, [1, 0, 3, 2]] * [width, height, width, height]
        if self._ignore == "is_difficult":
            boxes[:, :2] -= 1
        boxes = boxes.astype(np.float32)
        number = len(boxes)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        ignore = objects[self._ignore] if self._ignore else np.zeros(number)
        record = Record(
            example["image"],
            image_id,
            name,
            size,
            boxes,
            np.asarray(objects["label"], np.int32).reshape(number),
            np.asarray(ignore, bool).reshape(number),
            np.asarray(objects.get("area", areas), np.float32).reshape(number),
        )
        record, counts = check_record(record, len(self.classes), on_bad=self.on_bad)
        if not callable(self.on_bad):
            for what, count in counts.items():
                count_and_warn(f"{self.dir}: {what}", count)
        return record


def _broken(folder: Path, what: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(
        f"{folder}: {what} cannot be read ({reason}); prepare the data again",
        "record that cannot be read",
    )


def prepare_tfds(
    sources: Mapping[str, Source], folder: str | Path, on_bad: OnBad = "raise"
) -> Path:
    """Write splits as one tfds dataset in array_record files, without TensorFlow.

    Image files pass through byte for byte, records keep their order.

    Args:
        sources: A source for every split name, all with the same classes. If all are
            `VocSource`s the dataset has the features of tfds's voc, else coco's.
        folder: tfds's data directory; the dataset goes into a folder below.
        on_bad: A record that cannot be read is a `DataError`, or is skipped and counted
            in the log. Pixels are not decoded where the file can be copied.

    Returns:
        The directory to give to `TfdsSource`.

    Raises:
        DataError: The classes differ, or the dataset exists already.
    """
    from rpn_jax.data.builders import RpnCoco, RpnVoc

    voc = all(isinstance(source, VocSource) for source in sources.values())
    builder = (RpnVoc if voc else RpnCoco)(
        sources=sources,
        on_bad=on_bad,
        data_dir=str(folder),
        file_format="array_record",
    )
    if Path(builder.data_dir).exists():  # tfds would silently keep the old data
        raise DataError(f"{builder.data_dir} exists already; remove it or take another")
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)
