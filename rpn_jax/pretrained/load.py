"""A weight file in, a network's configuration and parameters out."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from rpn_jax.pretrained.convert import convert, paths_of, summarize
from rpn_jax.pretrained.files import read_state_dict
from rpn_jax.pretrained.recognise import Recognised, recognise
from rpn_jax.rpn import RPNConfig, rpn


class Report(NamedTuple):
    """What became of a file's arrays.

    Attributes:
        model: what the file was recognised as.
        matched: names in the file that are used.
        left_over: names in the file that are not.
        missing: paths of parameters that the file does not have.
        notes: what was assumed.
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
    """

    config: RPNConfig
    params: dict[str, Any]
    report: Report


def load(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    config: RPNConfig | None = None,
    allow: Sequence[str] = (),
) -> Loaded:
    """Load weights of torchvision, detectron2 or Keras.

    Recognised by their names: torchvision's Faster R-CNNs on ResNets and MobileNetV3
    (the RPN of them) and its classification networks (their trunk), detectron2's RPNs
    and Faster R-CNNs on ResNets, its converted ImageNet trunks, and SqueezeNet in
    Keras' layout.

    Args:
        source: a `.pth` (needs torch), `.safetensors`, `.pkl` or `.npz` file, or a
            state dict.
        config: of the network to fill; None: that which the file was made for. A trunk
            goes into any network with that trunk.
        allow: beginnings of names in the file that may be left over.

    Returns:
        `Loaded`. Print its report: it says what was assumed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, is of no known model, lacks arrays, has
            arrays of a wrong shape, or has some that nothing uses. Names all of them.

    Example:
        >>> loaded = load("fasterrcnn_resnet50_fpn.pth")  # doctest: +SKIP
        >>> model = rpn(loaded.config)  # doctest: +SKIP
        >>> model.propose(loaded.params, images, image_sizes)  # doctest: +SKIP
    """
    if isinstance(source, Mapping):
        name, arrays = "the state dict", source
    else:
        name, arrays = os.fspath(source), read_state_dict(source)
    found = recognise(arrays)
    if found is None:
        raise ValueError(
            f"{name} is of no model that is known here; its names begin with "
            f"{summarize(arrays)}"
        )
    return _fill(name, found, config or found.config, allow)


def _fill(
    name: str, found: Recognised, config: RPNConfig, allow: Sequence[str]
) -> Loaded:
    init = partial(rpn(config).init, image_size=(64, 64))
    paths = paths_of(jax.eval_shape(init, jax.random.key(0)))
    converted = convert(found.arrays, paths, found.dialect)
    left_out = re.compile("|".join(found.left_out) or r"(?!)")
    unknown = [
        key
        for key in converted.left_over
        if not left_out.fullmatch(key) and not key.startswith(tuple(allow))
    ]
    missing = converted.missing
    if found.trunk:
        # What only the pyramid and the head have is to be trained yet.
        trunk = "backbone/bottom_up/" if _has_pyramid(paths) else "backbone/"
        missing = [path for path in missing if path.startswith(trunk)]
        # A shorter trunk takes a part of the file.
        ours = {key.split(".")[0] for key in converted.matched}
        unknown = [key for key in unknown if key.split(".")[0] in ours]
    faults = []
    if missing:
        faults.append(f"lacks {summarize(missing)}")
    if unknown:
        faults.append(f"has what nothing uses (allow=...): {summarize(unknown)}")
    faults += converted.wrong[:6]
    if faults:
        raise ValueError(
            f"{name}, recognised as {found.model}, does not fit {config.backbone}: "
            + "; ".join(faults)
        )
    report = Report(
        found.model,
        converted.matched,
        converted.left_over,
        converted.missing,
        found.notes,
    )
    return Loaded(config, converted.params, report)


def _has_pyramid(paths) -> bool:
    return any(path[1:3] == ("backbone", "bottom_up") for path in paths)
