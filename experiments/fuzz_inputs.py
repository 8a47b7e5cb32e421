"""Extreme inputs for the functions of the library, and what has to hold of results.

A family is what a few functions are given, and a check of what they return; those of
`fuzz_ops` and `fuzz_stages` stand in their tables `FAMILIES`. `experiments.fuzz` and
the tests draw the inputs, each in its own way, with huge, tiny, infinite and undefined
numbers, ties and padding. Shapes are fixed, so that each family compiles once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

F = np.float32
TINY = np.finfo(F).tiny  # XLA takes what is smaller for 0

SPECIAL = np.array(
    [
        *(0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-20, 1.0, -1.0, 1e9, 1e19, -1e19),
        *(1e30, -1e30, 3e38, -3e38, np.inf, -np.inf, np.nan),
    ],
    F,
)
"""Numbers where functions go wrong."""


class Input(NamedTuple):
    """An array to fill.

    Attributes:
        kind: "boxes", "numbers", "mask", "integers" (-2 to 3) or "seed".
        shape: of the array.
    """

    kind: str
    shape: tuple[int, ...]


class Family(NamedTuple):
    """Functions that are tried together.

    Attributes:
        inputs: what they are given, by name.
        check: runs them on such arrays; raises `AssertionError` where a contract is
            broken, else returns the name of the outcome.
    """

    inputs: dict[str, Input]
    check: Callable[..., str]


def enter(table: dict[str, Family], **inputs: Any):
    """Enter the check below in a table; inputs are `name=(kind, *shape)`."""

    def decorate(check: Callable[..., str]):
        spec = {name: Input(kind, tuple(n)) for name, (kind, *n) in inputs.items()}
        table[check.__name__] = Family(spec, check)
        return check

    return decorate


def draw(rng: np.random.Generator, given: Input) -> Any:
    """Fill an array."""
    kind, shape = given
    if kind == "seed":
        return rng.integers(0, 2**31, dtype=np.int64).astype(np.uint32)
    if kind == "mask":
        return rng.random(shape) < rng.choice([0, 0.5, 0.9, 1])
    if kind == "integers":
        return rng.integers(-2, 4, shape, dtype=np.int32)
    if kind == "boxes":
        whole = rng.integers(0, 13, (*shape[:-1], 2, 2)).astype(F)
        real = rng.uniform(-20, 60, (*shape[:-1], 2, 2)).astype(F)
        corners = np.sort(whole if rng.random() < 0.5 else real, axis=-2)
        values = corners.reshape(shape)
    else:
        whole = rng.integers(-3, 4, shape).astype(F)
        values = whole if rng.random() < 0.5 else rng.normal(0, 5, shape).astype(F)
    strange = rng.random(shape) < rng.choice([0, 0, 0.02, 0.2, 1])
    values = np.where(strange, rng.choice(SPECIAL, shape), values)
    if rng.random() < 0.1:
        values = np.broadcast_to(values[:1], shape).copy()  # nothing but ties
    return values


# What the results are compared with, in plain NumPy. As XLA does, it takes what is
# smaller than any normal number for 0.


def flush(x):
    """Take what is smaller than any normal number for 0."""
    return np.where(np.abs(x) < TINY, F(0), x)


def positive(x):
    """Return x above 0, else 0, NaN included."""
    return np.where(x > 0, x, F(0))


def reference_iou(a, b):
    """IoU of boxes [N, 4] with boxes [M, 4]; NaN of those that are not finite."""
    a, b = (np.where(finite(x)[:, None], flush(x), F(np.nan)) for x in (a, b))
    unknown = np.isnan(a[:, :1]) | np.isnan(b[:, 0])
    area = [positive(flush((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]))) for x in (a, b)]
    a, b = np.moveaxis(a[:, None], -1, 0), np.moveaxis(b[None], -1, 0)
    least = [np.where(a[i] < b[i], a[i], b[i]) for i in (2, 3)]
    most = [np.where(a[i] > b[i], a[i], b[i]) for i in (0, 1)]
    width, height = positive(flush(least[0] - most[0])), flush(least[1] - most[1])
    inter = positive(flush(width * height))
    union = flush((area[0][:, None] + area[1][None]) - inter)
    iou = flush(inter / np.where(union == 0, F(1), union))
    return np.where(unknown, F(np.nan), iou)


def ranking(scores, valid):
    """Indices of what may be chosen, best first, ties to the lower index."""
    scores = flush(scores)
    usable = np.flatnonzero(valid & ~np.isnan(scores) & (scores != -np.inf))
    return usable[np.argsort(-scores[usable], kind="stable")]


def padded(indices, length):
    """Fill indices up with -1."""
    indices = list(indices)[:length]
    return np.array(indices + [-1] * (length - len(indices)), np.int32)


def finite(x) -> np.ndarray:
    """Tell which rows are finite."""
    return np.isfinite(x).all(axis=-1)


def mild(*arrays) -> bool:
    """Tell whether no number is so huge that its square overflows."""
    return all((np.abs(x) < 1e18).all() for x in arrays)


def upright(boxes) -> np.ndarray:
    """Tell which boxes are not inverted."""
    return (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)


def same(found, expected, what: str) -> None:
    """Hold that two arrays are equal, NaN included."""
    if not np.array_equal(found, expected, equal_nan=np.asarray(found).dtype == F):
        raise AssertionError(f"{what}: {found} is not {expected}")


def hold(condition, what: str) -> None:
    """Hold that a condition is true everywhere."""
    if not np.all(condition):
        raise AssertionError(what)


def within(x, low, high, what: str) -> None:
    """Hold that numbers lie in a range; NaN does not."""
    hold((x >= low) & (x <= high), f"{what} must lie in {low} to {high}: {x}")


def fetch(tree):
    """Bring results to the host."""
    return jax.tree.map(np.asarray, tree)


def try_once(given: Family, rng: np.random.Generator, _: Path) -> str:
    """Draw the inputs of a family and check it."""
    arrays = {key: draw(rng, spec) for key, spec in given.inputs.items()}
    with np.errstate(all="ignore"):
        return given.check(**arrays)
