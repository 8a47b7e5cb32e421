"""A parameter tree as one flat `.npz`: no pickle, readable by NumPy alone."""

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

_METADATA = "metadata.json"


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read all arrays of an `.npz` file.

    Args:
        path: The file.

    Returns:
        The arrays by key.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, damaged or no `.npz` file. Names the file.
    """
    with open(path, "rb") as file:
        try:
            # NumPy takes any other file for a pickle, and refuses it as unsafe.
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("no zip archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except Exception as error:  # NumPy and zipfile raise anything on damaged files
            raise ValueError(
                f"{os.fspath(path)} cannot be read as .npz weights; it may be "
                f"truncated or another kind of file ({str(error)[:200]})"
            ) from error


def save_params_npz(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a nested dict of arrays as a flat `.npz`, in place only when complete.

    Args:
        path: The file to write; written as given, whatever its suffix.
        params: Nested dicts of arrays; the key of a leaf is its path joined by "/".
        metadata: Anything that json can hold.

    Raises:
        ValueError: If a key is not a string, is empty or contains "/", or a leaf has
            a type that npz cannot hold (cast bfloat16 to float32 first).
    """
    flat = dict(_flatten(params))
    flat[_METADATA] = np.asarray(json.dumps(dict(metadata or {})))
    part = f"{os.fspath(path)}.part"
    # Not np.savez: it has no room for an array named "file".
    with zipfile.ZipFile(part, "w") as archive:
        for key, array in flat.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    os.replace(part, path)


def load_params_npz(
    path: str | os.PathLike,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save_params_npz` wrote.

    Args:
        path: The file.

    Returns:
        The nested dict of NumPy arrays, and the metadata ({} where there is none).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged or of another kind.
    """
    flat = read_npz(path)
    try:
        metadata = json.loads(str(flat.pop(_METADATA, "{}")))
        if not isinstance(metadata, dict):
            raise ValueError("no object")
        return unflatten(flat), metadata
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)} cannot be read as weights of rpn_jax: its metadata or "
            f"the names of its arrays are damaged ({str(error)[:200]})"
        ) from error


def is_own(path: str | os.PathLike) -> bool:
    """Tell whether a file was written by `save_params_npz`."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{_METADATA}.npy" in archive.namelist()
    except Exception:  # a damaged directory: any; who reads the file says so
        return False


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nest a dict whose keys are paths joined by "/".

    >>> unflatten({"conv/kernel": 1, "conv/bias": 2})
    {'conv': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _flatten(tree: Mapping[str, Any], prefix: str = ""):
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(
                f'keys of params must be non-empty strings without "/", got {key!r}'
                + (f" in {prefix[:-1]}" if prefix else "")
            )
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"{prefix}{key} must be an array of bool, int or float, got "
                f"{array.dtype}"
            )
        yield f"{prefix}{key}", array
