"""Whether two results are the same, before anybody asks which was faster."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Of the largest number of an array; at least of 1. Exponentials differ in last bits.
TOLERANCE = 1e-5


class Verdict(NamedTuple):
    """How a result stands beside the reference.

    Attributes:
        wrong: how many entries differ.
        of: how many the reference has.
        what: the array that differs, "" for none.
    """

    wrong: int
    of: int
    what: str

    def __str__(self):
        if not self.wrong:
            return "equal"
        return f"wrong: {self.wrong} of {self.of} {self.what} differ"


def compare(
    result: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> Verdict:
    """Compare named arrays with the reference's.

    `kept` and `chosen` [B, K] are indices, padded with -1, and must be the same in the
    same order; what is missing or too much counts, else what is out of place. `rows`
    [B, K, 5], box and score of each proposal, must each have a partner; their order is
    left out, because scores that are equal but for their last bit change places. Other
    integers must be equal, other numbers within `TOLERANCE`.
    """
    for name, wanted in reference.items():
        given = np.asarray(result[name])
        if name in ("kept", "chosen"):
            verdicts = [_indices(*x) for x in zip(given, wanted, strict=True)]
            wrong, of, what = sum(verdicts), int((wanted >= 0).sum()), name
        elif name == "rows":
            verdicts = [_rows(*x) for x in zip(given, wanted, strict=True)]
            of, what = int((wanted != 0).any(-1).sum()), "proposals"
            wrong = sum(verdicts)
        elif given.shape != wanted.shape:
            wrong, of, what = wanted.size, wanted.size, name
        elif np.issubdtype(wanted.dtype, np.floating):
            near = np.abs(given - wanted) <= TOLERANCE * max(1, np.abs(wanted).max())
            wrong, of, what = int((~near).sum()), wanted.size, name
        else:
            wrong, of, what = int((given != wanted).sum()), wanted.size, name
        if wrong:
            return Verdict(wrong, of, what)
    return Verdict(0, 0, "")


def _indices(given, wanted) -> int:
    """How many are lost or too much; if none, how many are out of place."""
    given, wanted = given[given >= 0], wanted[wanted >= 0]
    # Lists and not sets: an index that is given twice is too much once.
    lost = len(np.setdiff1d(wanted, given))
    extra = len(given) - len(np.intersect1d(wanted, given))
    if lost or extra:
        return lost + extra
    return int((given != wanted).sum())


def _rows(given, wanted) -> int:
    """How many of the wanted rows, or of the given ones, have no partner."""
    scale = np.array([max(1, np.abs(wanted[:, :4]).max())] * 4 + [1])
    near = np.abs(given[:, None] - wanted[None]) <= TOLERANCE * scale
    same = near.all(-1)
    return int(max((~same.any(0)).sum(), (~same.any(1)).sum()))
