"""Where anchors may stand, decided as `anchor_targets` decides it for placed ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.analysis.axis import usable_points
from rpn_jax.targets import anchors_inside

N, POINTS = 200, 30


@pytest.mark.parametrize("touching", [True, False])
@pytest.mark.parametrize("boundary", [0.0, 2.5, np.inf])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_usable_points_are_those_of_placed_anchors(offset, boundary, touching):
    """Half-lengths one bit beside those that just fit are where rounding decides."""
    rng = np.random.default_rng(0)
    step, length = rng.integers(3, 25, (1, N)).astype(np.float32), 997.0
    spare = 0.0 if np.isinf(boundary) else boundary
    point = (rng.integers(1, POINTS, N) + offset) * step[0]
    fitting = np.where(rng.random(N) < 0.3, point + spare, length + spare - point)
    half = np.float32(fitting)
    half = np.nextafter(half, np.float32(rng.choice([0, 1, 2], N)) * half)
    count = jnp.full((1, N), float(POINTS))

    first, last = jax.jit(usable_points, static_argnames=("boundary", "touching"))(
        half,
        step,
        count,
        jnp.float32(offset),
        jnp.full((1, 1), length),
        boundary=float(boundary),
        touching=touching,
    )
    at = (np.arange(POINTS, dtype=np.float32)[:, None] + np.float32(offset)) * step
    zero = np.zeros_like(at - half)
    placed = jnp.stack([at - half, zero, at + half, zero + 1], axis=-1)
    usable = anchors_inside(
        placed.reshape(-1, 4), (9.0, length), float(boundary), touching=touching
    ).reshape(POINTS, N)
    index = np.arange(POINTS)[:, None]
    np.testing.assert_array_equal((index >= first) & (index <= last), usable)
