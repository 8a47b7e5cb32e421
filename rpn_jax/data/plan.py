"""Which records stand in which batch: a pure function of the seed and the number.

So a reader's state is one number, resuming is exact, and neither the number of worker
processes nor that of training processes changes the order.
"""

from functools import lru_cache

import numpy as np

_ENDLESS = 2**40  # images; Grain wants a length


class Plan:
    """Which records, in which bucket, stand in batch k.

    Training sees each bucket as one endless stream: permutation after permutation of
    its records, cut into batches. After e epochs bucket b with n_b records has given
    floor(e * n_b / batch) batches, so the place of any batch is found by counting.
    """

    def __init__(
        self,
        bucket_of: np.ndarray,
        *,
        batch: int,
        seed: int,
        train: bool,
        epochs: int | None,
        shard: tuple[int, int],
    ):
        if batch < 1 or not 0 <= shard[0] < shard[1]:
            raise ValueError(f"batch must be positive, shard (index, count): {shard}")
        self.seed, self.train, self.shard = seed, train, shard
        self.local, self.batch = batch, batch * shard[1]
        self.members = [
            np.flatnonzero(bucket_of == b) for b in range(bucket_of.max(initial=0) + 1)
        ]
        self.counts = np.array([len(m) for m in self.members])
        self.epochs = _ENDLESS // max(len(bucket_of), 1) if epochs is None else epochs

    def __len__(self) -> int:
        """Return the number of batches."""
        if self.train:
            return int(self._before(self.epochs).sum())
        return int((-(-self.counts // self.batch)).sum())

    def __getitem__(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Return bucket, records [batch] (-1: none) and their epochs [batch]."""
        bucket, number = self._locate(index) if self.train else self._in_order(index)
        members = self.members[bucket]
        first = number * self.batch + self.shard[0] * self.local
        epoch, place = np.divmod(first + np.arange(self.local), len(members))
        if not self.train:
            rows = np.where(epoch == 0, members[place], -1)
            return bucket, rows, np.zeros_like(epoch)
        orders = {
            e: _permutation(self.seed, bucket, int(e), len(members))
            for e in np.unique(epoch)
        }
        chosen = [orders[e][p] for e, p in zip(epoch, place, strict=True)]
        return bucket, members[chosen], epoch

    def _before(self, epoch: int) -> np.ndarray:
        """Batches of each bucket that the first `epoch` epochs have completed."""
        return epoch * self.counts // self.batch

    def _locate(self, index: int) -> tuple[int, int]:
        # Rounding down delays batches, so the epoch is at least this one.
        epoch = index * self.batch // int(self.counts.sum())
        while self._before(epoch + 1).sum() <= index:
            epoch += 1
        start, stop = self._before(epoch), self._before(epoch + 1)
        order = np.repeat(np.arange(len(self.counts)), stop - start)
        order = order[_permutation(self.seed, len(self.counts), epoch, len(order))]
        at = index - int(start.sum())
        bucket = int(order[at])
        return bucket, int(start[bucket] + np.count_nonzero(order[:at] == bucket))

    def _in_order(self, index: int) -> tuple[int, int]:
        ends = np.cumsum(-(-self.counts // self.batch))
        bucket = int(np.searchsorted(ends, index, side="right"))
        return bucket, index - (int(ends[bucket - 1]) if bucket else 0)


@lru_cache(maxsize=16)
def _permutation(seed: int, stream: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, stream, epoch)).permutation(length)
