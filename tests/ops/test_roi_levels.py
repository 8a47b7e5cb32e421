import jax.numpy as jnp
import numpy as np
import pytest

import rpn_jax as rj

RULES = ("torchvision", "detectron2")
each_rule = pytest.mark.parametrize("rule", RULES)


def squares(*sides):
    return np.array([[8, 8, 8 + side, 8 + side] for side in sides], np.float32)


def levels(boxes, **options):
    return rj.assign_levels(boxes, **({"min_level": 2, "max_level": 5} | options))


@each_rule
class TestBothRules:
    def test_each_level_has_twice_the_size(self, rule):
        boxes = squares(112, 223, 224, 300, 447, 448)
        assert levels(boxes, rule=rule).tolist() == [1, 1, 2, 2, 2, 3]

    def test_area_counts(self, rule):
        boxes = np.array([[0, 0, 112, 448], [0, 0, 448, 112.5]], np.float32)
        assert levels(boxes, rule=rule).tolist() == [2, 2]

    def test_small_and_large_go_to_the_ends(self, rule):
        assert levels(squares(1, 1e-6, 1e6), rule=rule).tolist() == [0, 0, 3]

    def test_boxes_without_area_go_to_the_lowest(self, rule):
        boxes = np.array([[5, 5, 5, 9], [9, 5, 5, 9], [np.nan] * 4], np.float32)
        assert levels(boxes, rule=rule).tolist() == [0, 0, 0]

    def test_canonical_size_and_level(self, rule):
        boxes = squares(20, 40, 80)
        options = {"canonical_size": 40, "canonical_level": 3, "rule": rule}
        assert levels(boxes, **options).tolist() == [0, 1, 2]
        options |= {"min_level": 3, "max_level": 4}
        assert levels(boxes, **options).tolist() == [0, 0, 1]

    def test_one_level(self, rule):
        options = {"min_level": 4, "max_level": 4, "rule": rule}
        assert levels(squares(1, 1000), **options).tolist() == [0, 0]

    @pytest.mark.parametrize("size", [224, 56])
    def test_the_peer_assigns_the_same(self, golden, rule, size):
        arrays = golden(f"multiscale_roi_align_canon{size}")
        boxes = np.concatenate([arrays["boxes_0"], arrays["boxes_1"]])
        found = levels(boxes, canonical_size=size, rule=rule)
        peer = {"torchvision": "tv_levels", "detectron2": "d2_levels"}[rule]
        np.testing.assert_array_equal(found, arrays[peer])

    def test_formula_in_float32_at_the_borders(self, rule):
        sides = [
            np.float32(border) * (1 + np.float32(2.0**-24) * ulps)
            for border in (112, 224, 448)
            for ulps in range(-60, 60)
        ]
        boxes = np.array([[0, 0, side, side] for side in sides], np.float32)
        size = np.sqrt(boxes[:, 2] * boxes[:, 3]) / np.float32(224)
        if rule == "torchvision":
            exact = np.float32(4) + np.log2(size) + np.float32(1e-6)
        else:
            exact = np.float32(4) + np.log2(size + np.float32(1e-8))
        expected = np.clip(np.floor(exact), 2, 5) - 2
        np.testing.assert_array_equal(levels(boxes, rule=rule), expected)
        assert len(set(expected)) == 4


def test_rules_part_just_below_a_border():
    side = np.float32(224) * np.float32(1 - 4e-7)
    found = [levels(squares(0) + [0, 0, side, side], rule=rule) for rule in RULES]
    assert [x.tolist() for x in found] == [[2], [1]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": jnp.zeros((3, 5))}, r"boxes must be \[N, 4\], got shape \(3, 5\)"),
        ({"rule": "mmdet"}, "rule must be one of torchvision, detectron2, got 'mmdet'"),
        ({"max_level": 1}, "max_level must be at least min_level, got 1 and 2"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        levels(**({"boxes": jnp.zeros((2, 4))} | change))
