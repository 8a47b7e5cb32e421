"""Parameters back into torchvision's names and layouts."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from rpn_jax.faster_rcnn import FasterRCNNConfig
from rpn_jax.pretrained import trunks
from rpn_jax.pretrained.convert import torch_dialect
from rpn_jax.pretrained.files import write_safetensors
from rpn_jax.pretrained.recognise import torchvision_name


def torchvision_state_dict(
    config: FasterRCNNConfig,
    params: Mapping[str, Any],
    *,
    counts: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Name and lay out a detector's parameters as torchvision's Faster R-CNN does.

    The model there is built for as many classes, the background counted, and loads the
    result strictly.

    Args:
        config: of the detector, on a ResNet or MobileNetV3 with a pyramid.
        params: its variables dict.
        counts: batches that the norms have seen, `Loaded.counts`; where the model has
            batch norms that count and none are given, zeros.

    Returns:
        Arrays by torchvision's names.

    Raises:
        ValueError: torchvision has no such detector.

    Example:
        >>> loaded = load("fasterrcnn_resnet50_fpn_v2.pth")  # doctest: +SKIP
        >>> arrays = torchvision_state_dict(loaded.config, params)  # doctest: +SKIP
    """
    trunk = _trunk_of(config)
    dialect = torch_dialect(partial(torchvision_name, trunk))
    arrays, counted = {}, dict(counts or {})
    for path, leaf in jax.tree.leaves_with_path(params):
        keys = tuple(key.key for key in path)
        name = dialect.name(keys)
        if name is None:
            raise ValueError(f"torchvision has no counterpart of {'/'.join(keys[1:])}")
        # torch flattens the map in front of a fully connected layer.
        flat = np.ndim(leaf) == 4 and keys[-2].startswith("fc")
        arrays[name] = dialect.to_peer(np.asarray(leaf), flat=flat)
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
