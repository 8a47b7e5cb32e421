"""Non-maximum suppression: exact, of fixed size, in two forms.

The algorithm is the greedy one: take the best box left, drop every box that overlaps
it by more than the threshold, repeat. Both forms give its result at every threshold
from 0 on, and every N.

`_greedy_loops`, for CPU, is the algorithm as one would write it by hand: each box is
compared with the boxes kept so far, until one suppresses it or none is left. XLA
compiles loops that touch less than 1 KB an iteration into one native function, so a
step costs nanoseconds; it ends with the last box that is wanted, and nothing of size
N x N is made. A batch goes image by image: under `vmap` the loops would become masked
ones that are ten times slower.

`_greedy_tiles`, for GPU and TPU, takes a tile of boxes at a time, compares them with
all kept boxes at once, and settles the tile within itself by iterating to the
fixpoint.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from rpn_jax.ops._batching import image_by_image
from rpn_jax.ops._checks import as_boxes, as_float, as_groups, as_mask, check_shape
from rpn_jax.ops.boxes import Corners, corners, iou_of_corners
from rpn_jax.ops.topk import clean_scores, top_k_of_clean

# Kept boxes compared at a time on CPU: one AVX-512 register of float32. More would
# exceed the 1 KB that XLA allows a loop it compiles natively.
LANES = 16
# Boxes settled at a time elsewhere.
TILE = 256


class NMSResult(NamedTuple):
    """The boxes that NMS keeps, best first.

    Attributes:
        indices: `[K]` int32 into the boxes given, K = max_outputs; -1 where padded.
        valid: `[K]` bool.
    """

    indices: Int[Array, " K"]
    valid: Bool[Array, " K"]


def nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    *,
    iou_threshold: ArrayLike,
    max_outputs: int,
    valid: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> NMSResult:
    """Keep the best boxes and suppress those that overlap them.

    Greedy by descending score, ties to the lower index. A box is suppressed where its
    IoU (float32) with a kept box of the same group exceeds the threshold (strictly).
    Boxes without area overlap nothing.

    Args:
        boxes: `[N, 4]` xyxy, any unit.
        scores: `[N]` real numbers.
        iou_threshold: from 0 on; a Python number, which counts to its last bit, or a
            float32 scalar, which may be traced. (0.3 in float32 lies above 0.3: an IoU
            of three tenths, rounded to float32, exceeds the number alone.)
        max_outputs: K, the most boxes to keep; static.
        valid: `[N]` bool, which boxes take part; all by default. A box also takes no
            part if its score is NaN or -inf or a coordinate is not finite.
        groups: `[N]` integers; boxes suppress within their group only. One group by
            default.

    Returns:
        `NMSResult` with the kept boxes by descending score, padded to K.

    Raises:
        ValueError: a shape or dtype is wrong, max_outputs is below 1, or a threshold
            that is a Python number below 0.

    Reference:
        The same kept boxes as `torchvision.ops.nms` and, with groups, `batched_nms`.

    Example:
        >>> boxes = jnp.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]])
        >>> nms(boxes, jnp.array([0.8, 0.9, 0.3]), iou_threshold=0.5, max_outputs=3)
        NMSResult(indices=Array([ 1,  2, -1], dtype=int32), \
valid=Array([ True,  True, False], dtype=bool))
    """
    # Which boxes are kept is not differentiable; the caller gathers what is.
    boxes = lax.stop_gradient(as_boxes(boxes, "boxes", rank=2))
    scores = lax.stop_gradient(as_float(scores, "scores"))
    count = boxes.shape[0]
    check_shape(scores, (count,), "scores")
    if max_outputs < 1:
        raise ValueError(f"max_outputs must be at least 1, got {max_outputs}")
    valid = as_mask(valid, (count,), "valid") & jnp.isfinite(boxes).all(axis=-1)
    scores = clean_scores(scores)
    valid &= scores > -jnp.inf
    groups = as_groups(groups, (count,), "groups")
    if count == 0:
        none = jnp.full(max_outputs, -1, jnp.int32)
        return NMSResult(none, none >= 0)
    # Derived from `valid`, so that constant groups are spread over a mesh as it is.
    groups = jnp.where(valid, groups, jnp.zeros_like(groups)).astype(jnp.int32)
    kept = lax.platform_dependent(
        boxes,
        scores,
        valid,
        groups,
        _as_threshold(iou_threshold),
        cpu=image_by_image(partial(_greedy_loops, max_outputs=max_outputs)),
        default=partial(_greedy_tiles, max_outputs=max_outputs),
    )
    return NMSResult(kept, kept >= 0)


def _as_threshold(threshold: ArrayLike) -> ArrayLike:
    """Turn a threshold into float32.

    A float32 exceeds a float64 just where it exceeds the next float32 below that.
    """
    if not isinstance(threshold, int | float):
        return jnp.asarray(threshold, jnp.float32)
    if threshold < 0:
        raise ValueError(f"iou_threshold must be at least 0, got {threshold}")
    near = np.float32(threshold)
    above = float(near) > threshold
    return np.nextafter(near, np.float32(-np.inf)) if above else near


def _greedy_loops(
    boxes, scores, valid, groups, threshold, *, max_outputs: int
) -> jax.Array:
    """Keep boxes one by one.

    Returns the indices of kept boxes, [max_outputs] int32, -1 where padded.
    """
    count = valid.sum(dtype=jnp.int32)
    # Derived from an input, so that the loops' carries vary over a mesh as it does.
    zero = count * 0
    # What is in order already, as after a top-k, is not sorted again.
    in_order = (scores[1:] <= scores[:-1]).all()
    index = jnp.arange(len(scores), dtype=jnp.int32) + zero
    order = lax.cond(in_order, lambda: index, lambda: _order(scores, valid))
    count = jnp.where(in_order, len(scores), count)  # what is out lies anywhere
    size = -(-max_outputs // LANES) * LANES + LANES
    # The group's bits go with the numbers of a kept box: one read, one write.
    bits = lax.bitcast_convert_type(groups, jnp.float32)

    def look(state):
        rank, kept, *_ = state
        return (rank < count) & (kept < max_outputs)

    def take(state):
        rank, kept, kept_rows, out = state
        # Boxes are fetched one by one: most lie behind the last that is wanted.
        index = lax.dynamic_slice(order, (rank,), (1,))
        box = lax.dynamic_slice(boxes, (index[0], zero), (1, 4))
        group = lax.dynamic_slice(bits, (index[0],), (1,))
        row = jnp.stack([*corners(box), group], axis=1)

        def search(state):
            start, hit = state
            return (start < kept) & ~hit

        def compare(state):
            start, _ = state
            block = lax.dynamic_slice(kept_rows, (zero, start), (6, LANES))
            iou = iou_of_corners(Corners(*block[:5]), Corners(*row[0, :5, None]))
            return start + LANES, jnp.any(
                (iou > threshold) & _same(block[5], row[0, 5])
            )

        # A box that takes no part is as good as hit.
        out_of_it = ~lax.dynamic_slice(valid, (index[0],), (1,))[0]
        _, hit = lax.while_loop(search, compare, (zero, out_of_it))
        # Written whether it was hit or not; a box that was is overwritten by the next
        # one, and zeros suppress nothing meanwhile.
        row = jnp.where(hit, jnp.zeros_like(row), row)
        return (
            rank + 1,
            kept + jnp.where(hit, 0, 1),
            lax.dynamic_update_slice(kept_rows, row.T, (zero, kept)),
            lax.dynamic_update_slice(out, jnp.where(hit, -1, index), (kept,)),
        )

    start = (
        zero,
        zero,
        jnp.zeros((6, size), jnp.float32) + zero.astype(jnp.float32),
        jnp.full(size, -1, jnp.int32) + zero,
    )
    return lax.while_loop(look, take, start)[-1][:max_outputs]


def _order(scores, valid) -> jax.Array:
    """Argsort in descending order, ties to the lower index, what is not valid last."""
    return top_k_of_clean(jnp.where(valid, scores, -jnp.inf), len(scores))[1]


def _same(a, b):
    """Compare the bits of float32 numbers, which may be NaN."""
    return lax.bitcast_convert_type(a, jnp.int32) == lax.bitcast_convert_type(
        b, jnp.int32
    )


def _greedy_tiles(
    boxes, scores, valid, groups, threshold, *, max_outputs: int, tile: int = TILE
) -> jax.Array:
    """Keep boxes tile by tile; same contract as `_greedy_loops`."""
    count = valid.sum(dtype=jnp.int32)
    zero = count * 0
    order = jnp.pad(_order(scores, valid), (0, -len(scores) % tile))
    # Boxes that take no part lie at the end as zeros: they suppress nothing.
    takes_part = jnp.arange(len(order), dtype=jnp.int32) < count
    boxes = jnp.where(takes_part[:, None], boxes[order], 0.0)
    groups = groups[order]
    rows = jnp.stack(corners(boxes))  # [5, N]
    earlier = jnp.arange(tile)[:, None] < jnp.arange(tile)[None, :]

    def overlaps(a, group_a, b, group_b):
        """Tell which of a (rows) overlap which of b (columns) beyond the threshold."""
        iou = iou_of_corners(
            Corners(*(x[:, None] for x in a)), Corners(*(x[None, :] for x in b))
        )
        return (iou > threshold) & (group_a[:, None] == group_b[None, :])

    def look(state):
        start, kept, *_ = state
        return (start < count) & (kept < max_outputs)

    def take(state):
        start, kept, kept_rows, kept_groups, out = state
        box = lax.dynamic_slice(rows, (zero, start), (5, tile))
        group = lax.dynamic_slice(groups, (start,), (tile,))
        index = lax.dynamic_slice(order, (start,), (tile,))
        takes_part = start + jnp.arange(tile, dtype=jnp.int32) < count

        def against_kept(state):
            at, clear = state
            block = lax.dynamic_slice(kept_rows, (zero, at), (5, tile))
            block_group = lax.dynamic_slice(kept_groups, (at,), (tile,))
            hit = overlaps(block, block_group, box, group).any(axis=0)
            return at + tile, clear & ~hit

        _, clear = lax.while_loop(
            lambda state: state[0] < kept, against_kept, (zero, takes_part)
        )

        # keep[j] = clear[j] and no kept earlier i overlaps j. After p rounds the first
        # p boxes of the tile are final, so this ends, and at the greedy result.
        suppresses = overlaps(box, group, box, group) & earlier

        def settle(state):
            keep, _ = state
            new = clear & ~(suppresses & keep[:, None]).any(axis=0)
            return new, (new != keep).any()

        keep, _ = lax.while_loop(lambda state: state[1], settle, (clear, count > 0))

        # Close the ranks up: the n-th kept box of the tile goes to place n.
        place = jnp.where(keep, jnp.cumsum(keep, dtype=jnp.int32) - 1, tile)
        box = jnp.zeros_like(box).at[:, place].set(box, mode="drop")
        group = jnp.zeros_like(group).at[place].set(group, mode="drop")
        index = (jnp.zeros_like(index) - 1).at[place].set(index, mode="drop")
        return (
            start + tile,
            kept + keep.sum(dtype=kept.dtype),
            lax.dynamic_update_slice(kept_rows, box, (zero, kept)),
            lax.dynamic_update_slice(kept_groups, group, (kept,)),
            lax.dynamic_update_slice(out, index, (kept,)),
        )

    # A tile beyond the last place, because a whole tile is written at once; and a
    # multiple of the tile, because whole tiles are read.
    size = -(-max_outputs // tile) * tile + tile
    empty = jnp.zeros(size, jnp.int32) + zero
    start = (
        zero,
        zero,
        jnp.zeros((5, size), jnp.float32) + zero.astype(jnp.float32),
        empty,
        empty - 1,
    )
    return lax.while_loop(look, take, start)[-1][:max_outputs]
