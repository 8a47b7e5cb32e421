"""Parameters back into torchvision's names and layouts."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from rpn_jax.conventions import TORCHVISION
from rpn_jax.faster_rcnn import FasterRCNNConfig
from rpn_jax.pretrained import trunks
from rpn_jax.pretrained.convert import torch_dialect
from rpn_jax.pretrained.files import write_safetensors
from rpn_jax.pretrained.recognise import torchvision_name

_WITHOUT_CHOICE = {
    "anchors": ("order", "rounding", "offset", "stride"),
    "coding": ("weights", "max_log_scale"),
    "loss": ("objectness",),
    "proposals": ("filter_first", "inclusive"),
    "roi": ("pooling", "aligned", "level_rule", "background", "inclusive"),
    "image": ("color", "range"),
}
"""Fields of a convention that torchvision's classes have no option for."""


def torchvision_state_dict(
    config: FasterRCNNConfig,
    params: Mapping[str, Any],
    *,
    counts: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Name and lay out a detector's parameters as torchvision's Faster R-CNN does.

    The model there is built for as many classes, the background counted, and loads the
    result strictly. A box for the background, which nothing uses, gets zeros where the
    detector has none. What the arrays do not tell must be said to the model there: the
    numbers of its convention, and the epsilon of frozen batch norms, 1e-5 unless
    `torchvision.models.detection._utils.overwrite_eps(model, 0.0)` makes it that of
    COCO_V1 files (`config.rpn.backbone_options.norm_epsilon`).

    Args:
        config: of the detector, on a ResNet or MobileNetV3 with a pyramid.
        params: its variables dict.
        counts: batches that the norms have seen, `Loaded.counts`; where the model has
            batch norms that count and none are given, zeros.

    Returns:
        Arrays by torchvision's names.

    Raises:
        ValueError: torchvision has no such detector; names what it does otherwise.

    Example:
        >>> loaded = load("fasterrcnn_resnet50_fpn_v2.pth")  # doctest: +SKIP
        >>> arrays = torchvision_state_dict(loaded.config, params)  # doctest: +SKIP
    """
    trunk = _trunk_of(config)
    _check_rules(config)
    dialect = torch_dialect(partial(torchvision_name, trunk))
    arrays, counted = {}, dict(counts or {})
    for path, leaf in jax.tree.leaves_with_path(params):
        keys = tuple(key.key for key in path)
        name = dialect.name(keys)
        if name is None:
            raise ValueError(f"torchvision has no counterpart of {'/'.join(keys[1:])}")
        # torch flattens the map in front of a fully connected layer.
        flat = np.ndim(leaf) == 4 and keys[-2].startswith("fc")
        array = dialect.to_peer(np.asarray(leaf), flat=flat)
        if keys[-2] == "bbox_pred" and not config.box_background:
            array = np.concatenate([np.zeros_like(array[:4]), array])
        arrays[name] = array
        if config.rpn.backbone_options.fpn_norm and keys[-1] == "mean":
            counter = name.replace("running_mean", "num_batches_tracked")
            counted.setdefault(counter, np.array(0, np.int64))
    return arrays | counted


def save_torchvision(
    path: str | os.PathLike,
    config: FasterRCNNConfig,
    params: Mapping[str, Any],
    *,
    counts: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a detector as a `.safetensors` that torchvision's Faster R-CNN loads.

    `model.load_state_dict(safetensors.torch.load_file(path))` there.

    Args:
        path: the file.
        config: see `torchvision_state_dict`.
        params: likewise.
        counts: likewise.

    Raises:
        ValueError: torchvision has no such detector.
        ImportError: the package `safetensors` is missing.
    """
    write_safetensors(path, torchvision_state_dict(config, params, counts=counts))


def _trunk_of(config: FasterRCNNConfig) -> Callable[[str], str]:
    backbone = config.rpn.backbone
    if backbone.startswith("res") and backbone.endswith("_fpn"):
        return trunks.torchvision_resnet
    if backbone == "mobilenet_v3_large_fpn":
        return trunks.torchvision_mobilenet
    raise ValueError(
        "torchvision's detectors stand on a ResNet or MobileNetV3 with a pyramid, not "
        f"on {backbone}"
    )


def _check_rules(config: FasterRCNNConfig) -> None:
    """Refuse what torchvision's classes do in one way only, and which is another here.

    Raises:
        ValueError: names the first such field.
    """
    # MobileNet's maps are of one size, and all RoIs come from the first.
    levels = 1 if config.rpn.backbone.startswith("mobilenet") else 4
    in_1x1 = config.rpn.backbone_options.stride_in_1x1
    rules = [
        ("roi_levels", config.roi_levels, levels),
        ("stride_in_1x1", in_1x1, False),
    ]
    for group, names in _WITHOUT_CHOICE.items():
        ours, theirs = (getattr(c, group) for c in (config.convention, TORCHVISION))
        rules += [(f"{group}.{n}", getattr(ours, n), getattr(theirs, n)) for n in names]
    for name, ours, theirs in rules:
        if ours != theirs:
            raise ValueError(
                f"torchvision has no such detector: {name} is {ours!r} here and always "
                f"{theirs!r} there"
            )
