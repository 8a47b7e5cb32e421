"""Boxes, masks and scores that hypothesis makes, with everything that goes wrong.

Shapes are fixed, so that a jitted function compiles once for all examples.
"""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

NAN, INF = np.nan, np.inf


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Float32 numbers, without those so small that XLA takes them for 0."""
    return st.floats(low, high, width=32, allow_subnormal=False)


THRESHOLDS = (0.0, 0.1, 0.25, 1 / 3, 0.5, 0.6, 0.7, 1.0)


def from_corner_and_size(xywh) -> np.ndarray:
    xywh = np.asarray(xywh, np.float32)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def grid_boxes(n: int, smallest: int = 0) -> st.SearchStrategy[np.ndarray]:
    """Whole coordinates in a small square: many ties and overlaps of exactly 1/2."""
    corner, size = st.integers(0, 6), st.integers(smallest, 6)
    box = st.tuples(corner, corner, size, size)
    return st.lists(box, min_size=n, max_size=n).map(from_corner_and_size)


def real_boxes(n: int) -> st.SearchStrategy[np.ndarray]:
    """Boxes of positive area, anywhere."""
    corner = floats(-64, 64)
    size = floats(0.5, 64)
    box = st.tuples(corner, corner, size, size)
    return st.lists(box, min_size=n, max_size=n).map(from_corner_and_size)


@st.composite
def odd_boxes(draw, n: int) -> np.ndarray:
    """Boxes of which some are empty, inverted, not finite, or written twice."""
    boxes = draw(st.one_of(grid_boxes(n), real_boxes(n))).copy()
    for row in draw(st.lists(st.integers(0, n - 1), max_size=n // 4)):
        boxes[row] = draw(st.sampled_from((boxes[0], boxes[-1])))
    for row in draw(st.lists(st.integers(0, n - 1), max_size=n // 4)):
        boxes[row] = boxes[row][[2, 3, 0, 1]]
    for row in draw(st.lists(st.integers(0, n - 1), max_size=n // 4)):
        column = draw(st.integers(0, 3))
        boxes[row, column] = draw(st.sampled_from([NAN, INF, -INF]))
    return boxes


def scores(n: int) -> st.SearchStrategy[np.ndarray]:
    """Scores with ties, both zeros, and the values that are no scores."""
    score = st.one_of(
        st.integers(-3, 3).map(float),
        st.sampled_from([0.0, -0.0, NAN, INF, -INF, 0.5]),
        floats(-8, 8),
    )
    return arrays(np.float32, n, elements=score)


def masks(n: int) -> st.SearchStrategy[np.ndarray]:
    """Masks, all True and all False (nothing but padding) among them."""
    return st.one_of(
        st.just(np.ones(n, bool)), st.just(np.zeros(n, bool)), arrays(np.bool_, n)
    )


def groups(n: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.int32, n, elements=st.integers(0, 2))
