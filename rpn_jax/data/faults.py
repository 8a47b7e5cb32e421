"""What is wrong with data, in one sentence each: raised, counted or reported."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

log = logging.getLogger("rpn_jax.data")

OnBad = Literal["raise", "skip"]
OnFault = OnBad | Callable[[str, int, str | None], None]
"""`OnBad`, or a function that is told of all: kind, number and, of a fault, sentence.

What is faulty is then left out, as with "skip", and nothing is logged.
"""
SKIP = "on_bad='skip' (--data.on-bad skip)"
"""What errors name as the way around bad data."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the record.

    Attributes:
        kind: What faults like this one are counted as.
    """

    def __init__(self, sentence: str, kind: str = "record that cannot be used"):
        super().__init__(sentence)
        self.kind = kind


class Faults:
    """The faults of one source, as they are found.

    Args:
        on_bad: "raise" the first one, or "skip" and count it, or what is told of it.
    """

    def __init__(self, on_bad: OnFault):
        self._on_bad: OnFault = on_bad
        self.counts: Counter[str] = Counter()

    def add(self, error: DataError, what: str = "records") -> None:
        """Raise a fault with the way around it, or count it."""
        if self._on_bad == "raise":
            raise DataError(
                f"{error}; mend it, or skip such {what} with {SKIP}", error.kind
            ) from error
        self._count(error.kind, 1, str(error))

    def mended(self, kind: str, number: int) -> None:
        """Count what was put right."""
        if number:
            self._count(kind, number, None)

    def report(self, where: object) -> None:
        """Log one warning that says what was left out or mended, and how often."""
        if self.counts and not callable(self._on_bad):
            text = ", ".join(f"{n} x {what}" for what, n in sorted(self.counts.items()))
            log.warning("%s: %s", where, text)

    def _count(self, kind: str, number: int, sentence: str | None) -> None:
        self.counts[kind] += number
        if callable(self._on_bad):
            self._on_bad(kind, number, sentence)


_seen: Counter[str] = Counter()
_lock = threading.Lock()


def count_and_warn(what: str, number: int) -> None:
    """Add to a running count of this process; log it when it gains a digit.

    For faults that are met one at a time while reading: the log shows them without
    filling up. An image that is read in every epoch counts in every epoch.
    """
    with _lock:
        before = _seen[what]
        _seen[what] = total = before + number
    if number and (before == 0 or len(str(total)) > len(str(before))):
        log.warning("%s: %d so far, counted at each reading", what, total)


def shown(value: Any) -> str:
    """Show a value of unknown origin on one short line."""
    plain = isinstance(value, str) and value.isprintable()
    text = value if plain else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Return an annotated (height, width).

    Raises:
        DataError: They are no whole numbers from 1 to 2^31 - 1.
    """
    for side in (height, width):
        number = type(side) in (int, float) and 1 <= side < 2**31
        if not number or side != int(side):
            raise DataError(
                f"{where}: height and width must be whole numbers from 1, got "
                f"{shown(height)} and {shown(width)}",
                "image with a wrong size",
            )
    return int(height), int(width)
