"""ImageNet weights for the SqueezeNet 1.1 trunk, from Keras and torchvision files."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rpn_jax.models.squeezenet import FIRES
from rpn_jax.pretrained.npz import read_npz, unflatten

# Index of fire2 to fire9 in torchvision's `features`, where pools take indices too.
_TORCHVISION_FIRES = (3, 4, 6, 7, 9, 10, 11, 12)
_TORCHVISION_CLASSIFIER = ("classifier.1.weight", "classifier.1.bias")


def load_squeezenet_npz(path: str | os.PathLike) -> dict[str, Any]:
    """Load trunk weights from an `.npz` with Keras' names and layouts.

    Keys are `conv1/kernel`, `fire2/squeeze1x1/bias` and so on, kernels HWIO. The
    published file expects BGR images of 0 to 255 less (103.939, 116.779, 123.68) and
    `SqueezeNet(padding="same")`.

    Args:
        path: The file.

    Returns:
        The trunk's parameters, nested dicts of float32 NumPy arrays: the "params" of
        `SqueezeNet`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or of another kind, or arrays are
            missing, unknown or of a wrong shape: all are listed.
    """
    flat = read_npz(path)
    _check(flat, _shapes(), os.fspath(path))
    return unflatten({key: flat[key].astype(np.float32) for key in _shapes()})


def from_torchvision_squeezenet(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the state dict of torchvision's `squeezenet1_1`.

    It expects RGB images of 0 to 1 less (0.485, 0.456, 0.406), divided by (0.229,
    0.224, 0.225), and `SqueezeNet(padding="torchvision")`. The classifier is left
    out.

    Args:
        state_dict: Arrays by torch's names, `features.0.weight` and so on, kernels
            OIHW. CPU tensors will do.

    Returns:
        The trunk's parameters, nested dicts of float32 NumPy arrays: the "params" of
        `SqueezeNet`.

    Raises:
        ValueError: If arrays are missing, unknown or of a wrong shape: all are listed.
    """
    ours = {"conv1": "features.0"}
    for number, index in enumerate(_TORCHVISION_FIRES, start=2):
        for part in ("squeeze1x1", "expand1x1", "expand3x3"):
            theirs = "squeeze" if part == "squeeze1x1" else part
            ours[f"fire{number}/{part}"] = f"features.{index}.{theirs}"
    shapes = _shapes()
    names = {f"{key}/kernel": f"{name}.weight" for key, name in ours.items()}
    names |= {f"{key}/bias": f"{name}.bias" for key, name in ours.items()}
    arrays = {
        name: np.asarray(value, np.float32)
        for name, value in state_dict.items()
        if name not in _TORCHVISION_CLASSIFIER
    }
    wanted = {}
    for key, name in names.items():
        shape = shapes[key]
        wanted[name] = (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape
    _check(arrays, wanted, "torchvision's squeezenet1_1 state dict")
    flat = {}
    for key, name in names.items():
        array = arrays[name]
        flat[key] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return unflatten({key: np.ascontiguousarray(flat[key]) for key in shapes})


def _shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the trunk, by its path."""
    kernels: dict[str, tuple[int, ...]] = {"conv1": (3, 3, 3, 64)}
    channels = 64
    for number, (squeeze, expand) in enumerate(FIRES, start=2):
        kernels[f"fire{number}/squeeze1x1"] = (1, 1, channels, squeeze)
        kernels[f"fire{number}/expand1x1"] = (1, 1, squeeze, expand)
        kernels[f"fire{number}/expand3x3"] = (3, 3, squeeze, expand)
        channels = 2 * expand
    shapes = {}
    for name, shape in kernels.items():
        shapes[f"{name}/kernel"] = shape
        shapes[f"{name}/bias"] = shape[-1:]
    return shapes


def _check(
    arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Raise one error that lists all that is missing, unknown or of a wrong shape."""
    faults = [f"missing: {key}" for key in wanted if key not in arrays]
    faults += [f"unknown: {key}" for key in arrays if key not in wanted]
    faults += [
        f"wrong shape: {key} is {arrays[key].shape}, wanted {shape}"
        for key, shape in wanted.items()
        if key in arrays and arrays[key].shape != shape
    ]
    if faults:
        raise ValueError(
            f"{source} does not hold a SqueezeNet 1.1 trunk:\n  " + "\n  ".join(faults)
        )
