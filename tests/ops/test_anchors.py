import jax.numpy as jnp
import numpy as np
import pytest

import rpn_jax as rj
from tests import reference

# The nine anchors of the original implementation at the first point of stride 16, as
# printed in its generate_anchors.py: counted from 1, last row and column included.
CLASSIC_NINE = np.array(
    [
        [-83, -39, 100, 56],
        [-175, -87, 192, 104],
        [-359, -183, 376, 200],
        [-55, -55, 72, 72],
        [-119, -119, 136, 136],
        [-247, -247, 264, 264],
        [-35, -79, 52, 96],
        [-79, -167, 96, 184],
        [-167, -343, 184, 360],
    ],
    np.float32,
)
CASES = ("320x480", "333x517", "333x517_unpadded")


def same_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.int32), b.view(np.int32))


def test_classic_nine():
    # Counted from 0 and with the far edge behind the last pixel: one less, far edge
    # one more.
    continuous = CLASSIC_NINE - np.float32([1, 1, 0, 0])
    anchors = rj.grid_anchors((1, 1), offset=0.5, rounding="base16")
    np.testing.assert_array_equal(anchors, continuous)


def test_classic_grid_moves_by_the_stride():
    anchors = np.asarray(rj.grid_anchors((3, 2), offset=0.5, rounding="base16"))
    anchors = anchors.reshape(3, 2, 9, 4)
    shift = np.float32([16, 32, 16, 32])
    np.testing.assert_array_equal(anchors[2, 1], anchors[0, 0] + shift)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_two_points_of_the_detectron2_table(offset):
    # Sizes 32 and 64, ratios 0.25, 1 and 4, one row of two points, stride 4.
    cell = np.float32(
        [
            [-32, -8, 32, 8],
            [-16, -16, 16, 16],
            [-8, -32, 8, 32],
            [-64, -16, 64, 16],
            [-32, -32, 32, 32],
            [-16, -64, 16, 64],
        ]
    )
    (anchors,) = rj.pyramid_anchors(
        [(1, 2)],
        sizes=[(32, 64)],
        ratios=(0.25, 1, 4),
        strides=[4],
        offset=offset,
        order="size_major",
    )
    first = cell + np.float32(4 * offset)
    second = first + np.float32([4, 0, 4, 0])
    np.testing.assert_array_equal(anchors, np.concatenate([first, second]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["single", "fpn"])
def test_torchvision_to_the_bit(golden, kind, case):
    arrays = golden(f"anchors_tv_{kind}_{case}")
    levels = rj.pyramid_anchors(
        [tuple(size) for size in arrays["grid_sizes"].tolist()],
        sizes=arrays["sizes"].tolist(),
        ratios=arrays["aspect_ratios"].tolist(),
        strides=[tuple(stride) for stride in arrays["strides_hw"].tolist()],
        order="ratio_major",
        rounding="corners",
    )
    assert [len(level) for level in levels] == arrays["num_anchors_per_level"].tolist()
    same_bits(jnp.concatenate(levels), arrays["anchors"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["single", "fpn"])
@pytest.mark.parametrize("offset", ["00", "05"])
def test_detectron2_to_the_bit(golden, kind, case, offset):
    arrays = golden(f"anchors_d2_{kind}_{case}_offset{offset}")
    levels = rj.pyramid_anchors(
        [tuple(size) for size in arrays["grid_sizes"].tolist()],
        sizes=arrays["sizes"].tolist(),
        ratios=arrays["aspect_ratios"].tolist(),
        strides=arrays["strides"].tolist(),
        offset=float(arrays["offset"]),
        order="size_major",
    )
    assert [len(level) for level in levels] == arrays["num_anchors_per_level"].tolist()
    same_bits(jnp.concatenate(levels), arrays["anchors"])


@pytest.mark.parametrize("peer", ["tv", "d2"])
def test_cells_of_the_peers_to_the_bit(golden, peer):
    suffix = "" if peer == "tv" else "_offset00"
    arrays = golden(f"anchors_{peer}_single_320x480{suffix}")
    order = {"tv": "ratio_major", "d2": "size_major"}[peer]
    rounding = {"tv": "corners", "d2": "none"}[peer]
    cell = rj.cell_anchors(
        arrays["sizes"].ravel().tolist(),
        arrays["aspect_ratios"].tolist(),
        order=order,
        rounding=rounding,
    )
    same_bits(cell, arrays["cell_anchors_0"])


@pytest.mark.parametrize("order", ["ratio_major", "size_major"])
def test_unrounded_grid_equals_the_reference(order):
    scales, ratios, stride = (0.5, 2, 3.3), (0.3, 1, 2.5), (8, 12)
    anchors = rj.grid_anchors(
        (3, 4), scales=scales, ratios=ratios, stride=stride, offset=0.25, order=order
    )
    sizes = [scale * stride[0] for scale in scales]
    cell = reference.cell(sizes, ratios, size_major=order == "size_major")
    expected = reference.place(cell, (3, 4), stride, 0.25)
    np.testing.assert_allclose(anchors, expected, rtol=1e-5, atol=1e-5)


def test_area_and_ratio_are_as_asked():
    cell = rj.cell_anchors((10, 50), (0.2, 1, 5))
    width, height = cell[:, 2] - cell[:, 0], cell[:, 3] - cell[:, 1]
    np.testing.assert_allclose(width * height, [100, 2500] * 3, rtol=1e-5)
    np.testing.assert_allclose(height / width, np.repeat([0.2, 1, 5], 2), rtol=1e-5)


def test_empty_map_has_no_anchors():
    assert rj.grid_anchors((0, 5)).shape == (0, 4)


def test_every_level_may_have_its_own_ratios():
    levels = rj.pyramid_anchors(
        [(1, 1), (1, 1)], sizes=[(8,), (16, 32)], ratios=[(1,), (1, 2)], strides=[4, 8]
    )
    assert [len(level) for level in levels] == [1, 4]


@pytest.mark.parametrize(
    "wrong, counts",
    [
        ({"sizes": [(32,), (64,)]}, "2 groups of sizes"),
        ({"strides": [4]}, "1 stride"),
        ({"ratios": [(0.5, 1), (1, 2)]}, "2 of ratios"),
    ],
)
def test_wrong_number_of_levels_shows_both_numbers_and_the_levels(wrong, counts):
    options = {
        "sizes": [(32,), (64,), (128,)],
        "ratios": (0.5, 1, 2),
        "strides": [4, 8, 16],
    } | wrong
    with pytest.raises(ValueError) as error:
        rj.pyramid_anchors([(8, 8), (4, 4), (2, 2)], **options)
    message = str(error.value)
    assert "3 grid" in message
    assert counts in message
    assert "missing" in message
    assert len(message.splitlines()) >= 5


@pytest.mark.parametrize(
    "options, name",
    [({"order": "scale_major"}, "order"), ({"rounding": "floor"}, "rounding")],
)
def test_unknown_option_is_named(options, name):
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        rj.cell_anchors((32,), (1,), **options)


@pytest.mark.parametrize(
    "sizes, ratios",
    [
        *[((), (1,)), ((-1,), (1,)), ((1,), (0,))],
        *[((np.inf,), (1,)), ((1, np.nan), (1,)), ((1,), (1, np.nan))],
    ],
)
def test_sizes_and_ratios_must_be_positive_and_finite(sizes, ratios):
    with pytest.raises(ValueError, match="positive numbers and finite"):
        rj.cell_anchors(sizes, ratios)
