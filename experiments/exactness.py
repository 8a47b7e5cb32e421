"""Compare every form of NMS with a plain NumPy loop, on random cases.

usage: python -m experiments.exactness [--cases N] [--seed S] [--variant V] [--out F]

Cases hold what goes wrong in practice: ties; boxes that are empty, inverted, repeated
or not finite; scores that are NaN, infinite or sorted; padding; fewer boxes than are
asked for; thresholds that equal an IoU to the bit. Every variant sees each case
compiled, alone and in a batch of eight. A difference prints the case, and the exit code
is 1. On CPU results are equal to the bit. Elsewhere the last bits of a division or an
exponential may differ: a difference that they can explain is counted as undecided.
"""

import dataclasses
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import tyro

import rpn_jax as rj
import rpn_jax.ops.nms as forms
from experiments.config import UsageError, exit_with, use_compilation_cache
from experiments.plain_nms import (
    CLASSES,
    Case,
    Expected,
    candidates,
    greedy,
    multiclass_greedy,
    random_case,
    sigma,
    soft_greedy,
    to_classes,
)

# Boxes and outputs of a case: a few sizes, because each is one compilation a variant.
SIZES = ((1, 4), (7, 7), (32, 40), (130, 50), (300, 300))
BATCH = 8


class Variant(NamedTuple):
    """A form of an op, its reference, and how it wants its cases."""

    run: Callable  # (*case, k) -> arrays
    expected: Callable[[Case, int], Expected]
    adapt: Callable[[Case], Case] = lambda case: case
    tolerance: float = 1e-6  # margin below which last bits may decide, off CPU


def _nms(boxes, scores, valid, groups, threshold, k):
    return rj.nms(
        boxes,
        scores,
        iou_threshold=threshold,
        max_outputs=k,
        valid=valid,
        groups=groups,
    )[:1]


@contextmanager
def portable(tile: int):
    """Trace the form for GPU and TPU, in tiles of that size, on any platform."""

    def default(*args, default, **platforms):
        return default(*args)

    tiles = partial(forms._greedy_tiles, tile=tile)
    with (
        mock.patch("jax.lax.platform_dependent", default),
        mock.patch.object(forms, "_greedy_tiles", tiles),
    ):
        yield


def _tiled(*args, tile: int):
    with portable(tile):
        return _nms(*args)


def _soft(boxes, scores, valid, groups, threshold, k, *, method: str):
    return rj.soft_nms(
        boxes,
        scores,
        max_outputs=k,
        method=method,
        iou_threshold=threshold,
        sigma=sigma(threshold),
        valid=valid,
        groups=groups,
    )[:2]


def _multiclass(
    boxes, scores, valid, groups, threshold, k, *, shared: bool, least: float, cut: bool
):
    boxes = boxes.reshape(-1, CLASSES, 4)
    return rj.multiclass_nms(
        boxes[:, 0] if shared else boxes,
        scores.reshape(-1, CLASSES),
        iou_threshold=threshold,
        max_outputs=k,
        score_threshold=least,
        max_candidates=candidates(scores) if cut else None,
        valid=valid.reshape(-1, CLASSES)[:, 0],
    )[:2]


def _soft_variant(method: str) -> Variant:
    return Variant(
        partial(_soft, method=method),
        partial(soft_greedy, method=method),
        tolerance=1e-5,
    )


def _multiclass_variant(*, shared: bool, **options) -> Variant:
    return Variant(
        partial(_multiclass, shared=shared, **options),
        partial(multiclass_greedy, **options),
        partial(to_classes, shared=shared),
    )


VARIANTS = {
    "native": Variant(_nms, greedy),
    "portable": Variant(partial(_tiled, tile=forms.TILE), greedy),
    "portable-small-tiles": Variant(partial(_tiled, tile=8), greedy),
    "soft-linear": _soft_variant("linear"),
    "soft-gaussian": _soft_variant("gaussian"),
    "multiclass": _multiclass_variant(shared=False, least=-np.inf, cut=False),
    "multiclass-cut": _multiclass_variant(shared=True, least=0.05, cut=True),
}


class Outcome(NamedTuple):
    """Numbers of the cases in which a variant and the reference differ."""

    different: list[int]
    undecided: list[int]


def compare(
    variant: Variant, numbers: Iterable[int], *, seed: int, size: tuple[int, int]
) -> Outcome:
    """Compare a variant with its reference on cases of one size.

    Args:
        variant: which.
        numbers: of the cases.
        seed: with its number it decides a case.
        size: boxes and outputs.
    """
    n, k = size
    exact = jax.default_backend() == "cpu"
    alone = jax.jit(lambda *case: variant.run(*case, k))
    mapped = jax.jit(jax.vmap(lambda *case: variant.run(*case, k)))
    outcome = Outcome([], [])
    numbers = list(numbers)
    for start in range(0, len(numbers), BATCH):
        those = numbers[start : start + BATCH]
        cases = [
            variant.adapt(random_case(np.random.default_rng((seed, i)), n))
            for i in those
        ]
        full = (cases * BATCH)[:BATCH]
        batch = jax.device_get(mapped(*(np.stack(x) for x in zip(*full, strict=True))))
        single = jax.device_get([alone(*case) for case in cases])
        for i, (number, case) in enumerate(zip(those, cases, strict=True)):
            arrays, margin = variant.expected(case, k)
            found = {"alone": single[i], "in a batch": tuple(x[i] for x in batch)}
            if all(_equal(f, arrays, exact) for f in found.values()):
                continue
            decided = exact or margin > variant.tolerance
            (outcome.different if decided else outcome.undecided).append(number)
            if decided:
                with np.printoptions(threshold=10**6, floatmode="unique"):
                    print(f"case {number} of seed {seed}: {case}")
                    print(f"expected {arrays}, found {found}", flush=True)
    return outcome


def _equal(found, expected, exact: bool) -> bool:
    """Compare tuples of arrays, floats to the bit or nearly."""
    return all(
        np.allclose(a, b, rtol=1e-5)
        if b.dtype == np.float32 and not exact
        else np.array_equal(a, b)
        for a, b in zip(found, expected, strict=True)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare.

    Attributes:
        cases: for each variant.
        seed: decides the cases.
        variant: one of those named; all by default.
        out: json file to write.
    """

    cases: int = 10_000
    seed: int = 0
    variant: str = "all"
    out: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Compare as the command line says; return the exit code."""
    prog = "python -m experiments.exactness"
    options = tyro.cli(Options, args=argv, prog=prog, description=__doc__)
    if options.variant not in ("all", *VARIANTS):
        raise UsageError(f"--variant is one of all, {', '.join(VARIANTS)}")
    use_compilation_cache()
    names = list(VARIANTS) if options.variant == "all" else [options.variant]
    result = {
        "seed": options.seed,
        "cases": options.cases,
        "platform": jax.devices()[0].device_kind,
        "versions": {
            "python": platform.python_version(),
            "rpn_jax": rj.__version__,
            **{m.__name__: m.__version__ for m in (jax, np)},
        },
        "variants": {},
    }
    for name in names:
        outcomes = [
            compare(
                VARIANTS[name],
                range(which, options.cases, len(SIZES)),
                seed=options.seed,
                size=size,
            )
            for which, size in enumerate(SIZES)
        ]
        counts = {x: sum(len(getattr(o, x)) for o in outcomes) for x in Outcome._fields}
        result["variants"][name] = counts
        print(f"{name}: {options.cases} cases, {counts}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if any(v["different"] for v in result["variants"].values()) else 0


if __name__ == "__main__":
    exit_with(main)
