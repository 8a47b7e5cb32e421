"""Arrays under a peer's names into a variables dict, and back.

Our leaves are `kernel` and `bias` (collection `params`) and `scale`, `bias`, `mean` and
`var` of frozen batch norms (collection `constants`). Kernels of convolutions are HWIO
here and OIHW in torch, those of dense layers [in, out] and [out, in].
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

TORCH_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}

Path = tuple[str, ...]
"""Collection, modules, leaf: `("params", "backbone", "conv1", "kernel")`."""


class Dialect(NamedTuple):
    """How a family of files names and lays out what we have.

    Attributes:
        name: from the path of a leaf to the name of its array; None where the file has
            no such part.
        torch: whether arrays are laid out as torch's; else they are as ours.
    """

    name: Callable[[Path], str | None]
    torch: bool = True

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Lay an array of the file out as ours of the given shape."""
        if self.torch and len(shape) == 4 and array.ndim == 2:
            # A fully connected layer on a map: torch flattens it channels first.
            rows, columns, channels, features = shape
            if array.shape == (features, channels * rows * columns):
                array = array.reshape(features, channels, rows, columns)
        if self.torch and array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif self.torch and array.ndim == 2:
            array = array.T
        return np.ascontiguousarray(array, np.float32)

    def to_peer(self, array: np.ndarray, *, flat: bool = False) -> np.ndarray:
        """Undo `to_ours`; `flat` where the file's layer is fully connected."""
        if self.torch and array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif self.torch and array.ndim == 2:
            array = array.T
        array = np.ascontiguousarray(array)
        return array.reshape(len(array), -1) if flat else array


def torch_dialect(module: Callable[[str], str | None]) -> Dialect:
    """Make the dialect of a torch library from how it names our modules.

    Args:
        module: from a module path such as `backbone/res2_0/conv1` to the peer's name;
            None for a part that its files do not have.
    """

    def name(path: Path) -> str | None:
        _, *modules, leaf = path
        found = module("/".join(modules))
        return None if found is None else f"{found}.{TORCH_LEAVES[leaf]}"

    return Dialect(name)


class Converted(NamedTuple):
    """What was made of a file's arrays.

    Attributes:
        params: a variables dict, or the part of one that the file holds.
        matched: names in the file that went into it.
        left_over: names in the file that did not.
        missing: paths that the file has nothing for.
        wrong: sentences about arrays of a wrong shape.
    """

    params: dict[str, Any]
    matched: tuple[str, ...]
    left_over: tuple[str, ...]
    missing: tuple[str, ...]
    wrong: tuple[str, ...]


def convert(
    arrays: Mapping[str, Any], paths: Mapping[Path, tuple[int, ...]], dialect: Dialect
) -> Converted:
    """Find the array of every path and lay it out as ours.

    Args:
        arrays: the file's arrays by name.
        paths: our paths and shapes.
        dialect: how the file names them.
    """
    params: dict[str, Any] = {}
    used, missing, wrong = [], [], []
    for path, shape in paths.items():
        name = dialect.name(path)
        if name is None or name not in arrays:
            missing.append("/".join(path[1:]))
            continue
        used.append(name)
        array = dialect.to_ours(np.asarray(arrays[name]), shape)
        if array.shape != shape:
            wrong.append(
                f"{name} has shape {np.shape(arrays[name])}, and "
                f"{'/'.join(path[1:])} wants {shape}"
            )
            continue
        _put(params, path, array)
    left_over = tuple(name for name in arrays if name not in set(used))
    return Converted(params, tuple(used), left_over, tuple(missing), tuple(wrong))


def paths_of(variables: Any) -> dict[Path, tuple[int, ...]]:
    """List the path and shape of every leaf of a variables dict."""
    leaves = jax.tree.leaves_with_path(variables)
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def overlay(variables: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Put what was loaded in the place of what was initialised.

    Example:
        >>> overlay({"params": {"backbone": 0, "rpn": 0}}, {"params": {"backbone": 1}})
        {'params': {'backbone': 1, 'rpn': 0}}
    """
    merged = dict(variables)
    for key, value in loaded.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = overlay(merged[key], value) if both else value
    return merged


def summarize(names: Iterable[str], most: int = 6) -> str:
    """List names in one line, the first few of many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _put(tree: dict[str, Any], path: Path, value: Any) -> None:
    *parents, leaf = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value
