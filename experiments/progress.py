"""Lines that say how far a long piece of work has come."""

import time


class Progress:
    """Prints how far something has come, every few seconds."""

    def __init__(self, what: str, *, every: float = 3.0):
        self._what, self._every = what, every
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Print a line if it is time to."""
        now = time.monotonic()
        if done < total and now - self._last >= self._every:
            self._last, seconds = now, now - self._start
            print(f"  {done:,} of {total:,} {self._what}, {seconds:.0f} s", flush=True)
