"""Designed anchors cover more, on objects that they were not made from too."""

import dataclasses

import numpy as np
import pytest

from rpn_jax.analysis import (
    Objects,
    anchor_layout,
    cluster_anchors,
    cover,
    design,
    design_anchors,
)
from rpn_jax.rpn import RPNConfig

CONFIG = RPNConfig(
    backbone="small_resnet_fpn",
    strides=(8, 16),
    sizes=((32.0,), (64.0,)),
    ratios=(0.5, 1.0),
)


def scattered(sides, ratios, *, number=200, seed=0) -> Objects:
    """Objects of about these sizes and ratios, anywhere in images of 128 px."""
    rng = np.random.default_rng(seed)
    side = rng.choice(sides, number) * rng.uniform(0.95, 1.05, number)
    root = np.sqrt(rng.choice(ratios, number) * rng.uniform(0.95, 1.05, number))
    size = np.stack([side / root, side * root], axis=1)
    corner = rng.uniform(0, 1, (number, 2)) * (128 - size)
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    image = np.arange(number, dtype=np.int32)
    sizes = np.full((number, 2), 128, np.int32)
    areas = np.prod(size, axis=1).astype(np.float32)
    return Objects(boxes, areas, image, sizes, np.zeros_like(image), ((128, 128),))


def covered(objects, config):
    layout = anchor_layout(config, objects.buckets)
    return cover(objects, layout, config.convention.targets).covered.mean()


def test_clusters_find_sizes_and_ratios():
    objects = scattered((20, 90), (0.8, 1.25))
    found = cluster_anchors(objects, CONFIG)
    np.testing.assert_allclose(found.sizes, [[20], [90]], rtol=0.02)
    np.testing.assert_allclose(found.ratios, [0.8, 1.25], rtol=0.02)


def test_more_anchors_than_objects_is_no_trouble():
    objects = scattered((20, 90), (1,), number=2)
    found = cluster_anchors(objects, dataclasses.replace(CONFIG, sizes=((1.0,) * 3,)))
    assert len(found.sizes[0]) == 3 and np.isfinite(found.sizes).all()


def test_a_design_covers_more_of_other_objects():
    config = CONFIG
    train, val = (scattered((44, 90), (0.7, 1.1), seed=seed) for seed in (1, 2))
    found = design_anchors(train, config)
    assert covered(val, found) > covered(val, config) + 0.2
    assert covered(val, found) > 0.8
    # The number of anchors and all else stays.
    assert [len(s) for s in found.sizes] == [1, 1] and len(found.ratios) == 2
    others = dataclasses.replace(found, sizes=config.sizes, ratios=config.ratios)
    assert others == config
    assert found == design_anchors(train, config)


def test_a_design_is_never_worse_where_it_was_made():
    """Nor does it give up the small for the share above 0.7."""
    objects = scattered((14, 60, 80, 100), (1,), seed=3)
    config = dataclasses.replace(CONFIG, sizes=((16.0,), (80.0,)), ratios=(1.0,))
    found = design_anchors(objects, config)
    small = objects.areas < 400
    layout = anchor_layout(found, objects.buckets)
    ious = cover(objects, layout, found.convention.targets).iou
    assert (ious[small] >= 0.3).mean() > 0.95
    assert covered(objects, found) >= covered(objects, config)


def test_of_many_objects_some_are_enough(monkeypatch):
    objects = scattered((20, 90), (1,))
    monkeypatch.setattr(design, "SAMPLE", 50)
    found = design_anchors(objects, CONFIG)
    assert covered(objects, found) > covered(objects, CONFIG)


@pytest.mark.parametrize("value", [0.123456, 12.3456, 123.456])
def test_values_keep_three_digits(value):
    config = dataclasses.replace(CONFIG, sizes=((value,), (value,)), ratios=(value,))
    found = design._with_values(config, design._values(config))
    assert found.ratios[0] == float(f"{value:.3g}") == found.sizes[1][0]
