"""A weight file in, a network's configuration and parameters out."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from rpn_jax.faster_rcnn import FasterRCNNConfig, make_network
from rpn_jax.pretrained.convert import Dialect, Path, convert, paths_of, summarize
from rpn_jax.pretrained.files import read_state_dict
from rpn_jax.pretrained.npz import is_own, load_params_npz
from rpn_jax.pretrained.recognise import Config, Recognised, recognise
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.config import config_from_json


class Report(NamedTuple):
    """What became of a file's arrays.

    Attributes:
        model: what the file was recognised as.
        matched: names in the file that are used.
        left_over: names in the file that are not.
        missing: paths of parameters that the file does not have.
        notes: what was assumed; of a trunk in a network of yours, what it learned with
            and gets otherwise there.
    """

    model: str
    matched: tuple[str, ...]
    left_over: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [f"{self.model}: {len(self.matched)} arrays used"]
        if self.left_over:
            lines.append(f"left over: {summarize(self.left_over)}")
        if self.missing:
            lines.append(f"not in the file: {summarize(self.missing)}")
        return "\n".join([*lines, *self.notes])


class Loaded(NamedTuple):
    """A network out of a weight file.

    Attributes:
        config: of the network.
        params: its variables dict, NumPy arrays. From a file of a trunk it holds the
            trunk alone; `overlay(model.init(...), params)` completes it.
        report: what matched, what was left over, what is missing.
        counts: batches that the file's norms have seen, by their names there; nothing
            here uses them, and a file for torchvision has them.
    """

    config: Config
    params: dict[str, Any]
    report: Report
    counts: dict[str, Any] = {}


def load(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    config: Config | None = None,
    parts: Sequence[str] | None = None,
    allow: Sequence[str] = (),
) -> Loaded:
    """Load weights of torchvision, detectron2, Keras or this library.

    Recognised by their names: torchvision's Faster R-CNNs on ResNets and MobileNetV3
    and its classification networks (their trunk), detectron2's RPNs and Faster R-CNNs
    on ResNets, its converted ImageNet trunks, SqueezeNet in Keras' layout, and what a
    run of this library wrote. The RPN of a detector is `rpn(loaded.config.rpn)`; it
    takes the detector's parameters.

    Args:
        source: a `.pth` (needs torch), `.safetensors`, `.pkl`, `.npz` or `.h5` file, or
            a state dict.
        config: of the network to fill; None: that which the file was made for. A trunk
            goes into any network with that trunk, the RPN of a detector into an RPN.
        parts: of the network to fill, such as `("backbone",)`; None: all that the file
            is of.
        allow: beginnings of names in the file that may be left over.

    Returns:
        `Loaded`. Print its report: it says what was assumed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, is of no known model, lacks arrays, has
            arrays of a wrong shape, or has some that nothing uses. Names them.

    Example:
        >>> loaded = load("fasterrcnn_resnet50_fpn.pth")  # doctest: +SKIP
        >>> model = faster_rcnn(loaded.config)  # doctest: +SKIP
        >>> model.detect(loaded.params, images, image_sizes)  # doctest: +SKIP
    """
    if isinstance(source, Mapping):
        name, found = "the state dict", recognise(source)
        first = summarize(source)
    elif is_own(source):
        name, found, first = os.fspath(source), _own(source), ""
    else:
        name, arrays = os.fspath(source), read_state_dict(source)
        found, first = recognise(arrays), summarize(arrays)
    if found is None:
        raise ValueError(
            f"{name} is of no model that is known here; its names begin with {first}"
        )
    parts = (parts,) if isinstance(parts, str) else parts
    allow = (allow,) if isinstance(allow, str) else allow
    return _fill(name, found, config or found.config, parts, allow)


def network_config(values: Mapping[str, Any]) -> Config:
    """Build the configuration of a network from json: an RPN's or a detector's."""
    kind = FasterRCNNConfig if "rpn" in values else RPNConfig
    return config_from_json(kind, dict(values))


def _own(file: str | os.PathLike) -> Recognised:
    """Recognise a file of `save_params_npz` that says its network."""
    params, metadata = load_params_npz(file)
    if "model" not in metadata:
        raise ValueError(
            f"{os.fspath(file)} holds weights, but not the config of their network"
        )
    arrays = {
        "/".join(key.key for key in p): x for p, x in jax.tree.leaves_with_path(params)
    }
    try:
        config = network_config(metadata["model"])
        layers = (config if isinstance(config, RPNConfig) else config.rpn).head_convs
        if layers > len(arrays):  # nor is the time taken to build them
            raise ValueError(f"it has {len(arrays)} arrays and wants {layers} layers")
    except Exception as error:  # json of any kind meets the types of the fields
        raise _no_network(os.fspath(file), error) from error
    # What an RPN leaves of a detector.
    left_out = (r"(params|constants)/box_(head|predictor)/.*",)
    dialect = Dialect("/".join, torch=False)
    return Recognised("weights of rpn_jax", config, dialect, arrays, left_out=left_out)


def _no_network(name: str, error: Exception) -> ValueError:
    reason = re.split(r"\n|\. ", str(error))[0][:200]
    return ValueError(
        f"{name} holds a config that is of no network here: "
        f"{type(error).__name__}: {reason}"
    )


def _fill(
    name: str,
    found: Recognised,
    config: Config,
    parts: Sequence[str] | None,
    allow: Sequence[str],
) -> Loaded:
    key = jax.random.key(0)
    try:
        init = partial(make_network(config).init, image_size=(64, 64))
        paths = paths_of(jax.eval_shape(init, key))
    except Exception as error:
        if config is not found.config:  # the caller's
            raise
        raise _no_network(name, error) from error
    known = {found.dialect.name(path) for path in paths}
    if parts is not None:
        paths = {path: shape for path, shape in paths.items() if path[1] in parts}
        if not paths:
            raise ValueError(f"the network has no part {', '.join(parts)}")
    converted = convert(found.arrays, paths, found.dialect)
    left_out = re.compile("|".join(found.left_out) or r"(?!)")
    unknown = [
        key
        for key in converted.left_over
        if key not in known
        and not left_out.fullmatch(key)
        and not key.startswith(tuple(allow))
    ]
    missing = converted.missing
    if found.trunk:
        # What only the pyramid and the head have is to be trained yet, and a network
        # may end before the trunk's last stage.
        trunk = "backbone/bottom_up/" if _has_pyramid(paths) else "backbone/"
        missing = [x for x in missing if x.startswith((trunk, "box_head/res5"))]
        stages = {key.split(".")[0] for key in converted.matched}
        unknown = [key for key in unknown if key.split(".")[0] in stages]
    faults = []
    if missing:
        faults.append(f"lacks {summarize(missing)}")
    if unknown:
        faults.append(f"has what nothing uses (allow=...): {summarize(unknown)}")
    if converted.wrong:
        faults.append("; ".join(converted.wrong[:3]))
    if faults:
        network = (config if isinstance(config, RPNConfig) else config.rpn).backbone
        raise ValueError(
            f"{name}, recognised as {found.model}, does not fit {network}: it "
            + "; ".join(faults)
        )
    report = Report(
        found.model,
        converted.matched,
        converted.left_over,
        converted.missing,
        # What was assumed is in the configuration that was not given.
        found.notes if config is found.config else _differences(found, config),
    )
    counts = {
        key: np.asarray(found.arrays[key])
        for key in converted.left_over
        if key.endswith("num_batches_tracked")
    }
    return Loaded(config, converted.params, report, counts)


def _differences(found: Recognised, config: Config) -> tuple[str, ...]:
    """Say what a trunk learned with and gets otherwise in the network of `config`."""
    if not found.trunk:
        return ()
    theirs, ours = _surroundings(found.config), _surroundings(config)
    return tuple(
        f"it learned with {name} {was!r}, here that is {ours[name]!r}"
        for name, was in theirs.items()
        if was != ours[name]
    )


def _surroundings(config: Config) -> dict[str, Any]:
    """What a trunk's weights depend on and do not hold."""
    rpn = config if isinstance(config, RPNConfig) else config.rpn
    options, image = rpn.backbone_options, rpn.convention.image
    return {
        "padding": "ceil" if rpn.backbone == "squeezenet_torchvision" else "same",
        "stride_in_1x1": options.stride_in_1x1,
        "norm_epsilon": options.norm_epsilon,
        "color": image.color,
        "range": image.range,
        "mean": image.mean,
        "std": image.std,
    }


def _has_pyramid(paths: Iterable[Path]) -> bool:
    return any(path[1:3] == ("backbone", "bottom_up") for path in paths)
