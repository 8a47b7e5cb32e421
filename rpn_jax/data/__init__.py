"""Images with boxes: sources, transforms and the input pipeline. NumPy only.

Grain and tfds are imported when they are used: `make_dataset` needs the first,
`TfdsSource` and `prepare_tfds` the second.
"""

from rpn_jax.data.coco import CocoSource
from rpn_jax.data.export import coco_results, export_coco
from rpn_jax.data.faults import DataError
from rpn_jax.data.images import decode_image, load_image
from rpn_jax.data.pipeline import make_dataset, resize_record
from rpn_jax.data.records import Record, Source, check_record
from rpn_jax.data.shapes import ShapesSource
from rpn_jax.data.tfds_source import TfdsSource, prepare_tfds
from rpn_jax.data.transforms import Jitter, Resize
from rpn_jax.data.voc import VOC_CLASSES, VocSource

__all__ = [
    "VOC_CLASSES",
    "CocoSource",
    "DataError",
    "Jitter",
    "Record",
    "Resize",
    "ShapesSource",
    "Source",
    "TfdsSource",
    "VocSource",
    "check_record",
    "coco_results",
    "decode_image",
    "export_coco",
    "load_image",
    "make_dataset",
    "prepare_tfds",
    "resize_record",
]
