"""Weight files of other libraries as arrays by name, in and out.

What a file is, its content says; nothing that it holds is run.
"""

import importlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rpn_jax.pretrained.numpy_pickle import Record, Refused, load_pickle, to_array

_WRAPPERS = ("model", "state_dict", "blobs")
_TORCH_LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # its magic number, pickled


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a weight file: arrays by the names that the library gave that wrote it.

    Taken are `.pth` and `.pt` (torch reads them, weights only), `.safetensors` (the
    library of that name does), detectron2's `.pkl`, NumPy's `.npz` and the `.h5` of
    Keras 1 and 2 (h5py does; names become `layer/kernel`, `layer/bias`). The suffix
    counts only where the content does not tell. Of a checkpoint with a "model" or a
    "state_dict" in it (Detectron: "blobs"; Keras: "model_weights") that part is taken.

    Args:
        path: The file.

    Returns:
        The arrays in the order of the file, shapes as stored; float16 and bfloat16
        become float32, other numbers keep their dtype.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, truncated, damaged, of another kind, or holds
            anything but arrays of numbers by name. Names the file.
        ImportError: If the library that reads it is missing. Names the extra.

    Examples:
        >>> read_state_dict("weights.pth")
        Traceback (most recent call last):
        FileNotFoundError: there is no weight file weights.pth
    """
    path = os.fspath(path)
    kind, read = _kind(path)
    try:
        arrays = {key: _numbers(key, value) for key, value in read(path).items()}
        if not arrays:
            raise Refused("it holds no arrays")
        return arrays
    except ImportError:
        raise
    except Refused as error:
        raise ValueError(f"{path} is refused as {kind}: {error}") from error
    except Exception as error:  # the readers raise anything on damaged files
        reason = re.split(r"\n|\. ", str(error))[0][:200]
        raise ValueError(
            f"{path} cannot be read as {kind}, it may be truncated or damaged "
            f"({reason or type(error).__name__})"
        ) from error


def write_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray | Any]
) -> None:
    """Write arrays by name as `.safetensors`, in place only when complete.

    Args:
        path: The file to write; written as given, whatever its suffix.
        arrays: NumPy or JAX arrays, by any names.

    Raises:
        ImportError: If safetensors is missing. Names the extra.
    """
    save_file = _library("safetensors.numpy", os.fspath(path)).save_file
    part = f"{os.fspath(path)}.part"
    save_file({k: np.asarray(v, order="C") for k, v in arrays.items()}, part)
    os.replace(part, path)


def _kind(path: str) -> tuple[str, Callable[[str], Mapping]]:
    """Tell what a file is, in words, and what reads it."""
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder, a weight file is wanted")
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no weight file {path}") from error
    if not head:
        raise ValueError(f"{path} is empty, a weight file is wanted")
    if head.startswith(b"PK\x03\x04"):
        if _zip_holds(path, "data.pkl"):
            return "a checkpoint of torch", _read_torch
        return ".npz weights", _read_npz
    if _TORCH_LEGACY in head:
        return "a checkpoint of torch", _read_torch
    if head.startswith(b"\x89HDF\r\n"):
        return "Keras' .h5 weights", _read_keras
    # Eight bytes of length, far below 2**32, then json.
    if head[4:9] == b"\0\0\0\0{":
        return ".safetensors weights", _read_safetensors
    # Before protocol 2 a pickle has no mark of its own.
    if head[0] == 0x80 or path.endswith(".pkl"):
        return "a pickle of NumPy arrays", _read_pickle
    raise ValueError(
        f"{path} is no weight file: it begins with {head[:16]!r}, wanted is a .pth, "
        ".pt, .safetensors, .pkl, .npz or .h5"
    )


def _zip_holds(path: str, name: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(os.path.basename(n) == name for n in archive.namelist())
    except Exception as error:  # a damaged directory: any
        raise ValueError(
            f"{path} cannot be read, it is a zip archive that is truncated or damaged "
            f"({str(error)[:200]})"
        ) from error


def _read_torch(path: str) -> dict[str, Any]:
    torch = _library("torch", path)
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 6):
        raise ImportError(
            f"reading {path} needs torch 2.6, and this is {torch.__version__}, which "
            "can be made to run code from a weight file"
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise
        # Torch's own advice, to run all that is in the file, is left out.
        raise Refused(
            f"it names {named[1]!r}, and nothing but tensors and plain containers is "
            "taken; nothing of it was run"
        ) from error
    return {key: _from_tensor(torch, value) for key, value in _unwrap(values).items()}


def _from_tensor(torch: Any, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _read_npz(path: str) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    return _library("safetensors.numpy", path).load_file(path)


def _read_pickle(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        values = _unwrap(load_pickle(file))
    return {k: to_array(v) if isinstance(v, Record) else v for k, v in values.items()}


def _read_keras(path: str) -> dict[str, np.ndarray]:
    arrays = {}
    with _library("h5py", path).File(path, "r") as file:
        layers = file.get("model_weights", file)
        if "layer_names" not in layers.attrs:
            raise Refused("it does not name its layers, as Keras 1 and 2 do")
        for layer in map(_text, layers.attrs["layer_names"]):
            for weight in map(_text, layers[layer].attrs["weight_names"]):
                array = layers[layer][weight]
                elsewhere = array.external or array.is_virtual
                if elsewhere or array.file.filename != file.filename:
                    raise Refused(f"{weight[:80]!r} lies in another file")
                # Keras 1 writes conv1_W:0, later ones conv1/kernel:0.
                part = re.split("[/_]", weight.removesuffix(":0"))[-1]
                part = {"W": "kernel", "b": "bias"}.get(part, part)
                arrays[f"{layer}/{part}"] = array[()]
    return arrays


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _library(module: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        extra = module.partition(".")[0]
        raise ImportError(
            f"{path} takes the library {extra}: pip install 'rpn_jax[{extra}]'"
        ) from error


def _unwrap(values: Any) -> dict[Any, Any]:
    """Take the weights out of a checkpoint."""
    if not isinstance(values, dict):
        raise Refused("it holds no dict of arrays by name")
    inner = (values[key] for key in _WRAPPERS if isinstance(values.get(key), dict))
    return next(inner, values)


def _numbers(name: Any, value: Any) -> np.ndarray:
    """Check one array and widen it to what NumPy computes in."""
    if not isinstance(name, str) or not isinstance(value, np.ndarray):
        raise Refused(
            f"{str(name)[:80]!r} is of type {type(value).__name__}, wanted are arrays "
            "by name"
        )
    if value.dtype.name in ("float16", "bfloat16"):
        return value.astype(np.float32)
    if value.dtype.kind not in "biuf":
        raise Refused(f"{name[:80]!r} is of {value.dtype}, wanted are numbers")
    return value
