import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from rpn_jax import plotting


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    figure.savefig("/dev/null", format="png")
    plt.close(figure)


def colors(ax):
    return [to_hex(p.get_edgecolor()).upper() for p in ax.patches]


def test_boxes_lie_where_they_are(ax):
    assert plotting.draw_boxes([[10, 20, 40, 60]], ax=ax) is ax
    (patch,) = ax.patches
    assert patch.get_bbox().extents.tolist() == [10, 20, 40, 60]


def test_no_boxes_draw_nothing(ax):
    plotting.draw_boxes(np.zeros((0, 4)), ax=ax)
    plotting.plot_proposals(np.zeros((5, 5, 3)), [], gt_boxes=[], ax=ax)
    assert not ax.patches


def test_proposals_that_meet_an_object_look_different(ax):
    image = np.zeros((50, 60, 3), np.uint8)
    boxes = [[0, 0, 10, 10], [30, 30, 40, 40], [5, 5, 9, 9]]
    found = plotting.plot_proposals(
        image, boxes, [0.9, 0.8, 0.1], gt_boxes=[[0, 0, 10, 9]], top=2, ax=ax
    )
    assert found is ax
    assert colors(ax) == [plotting.GREEN, plotting.ORANGE, plotting.BLUE]
    assert [t.get_text() for t in ax.texts] == ["0.90", "0.80"]
    assert ax.get_xlim() == (0, 60) and ax.get_ylim() == (50, 0)


def test_scores_at_the_top_of_an_image_stand_within_it(ax):
    boxes = [[0, 0, 10, 10], [30, 30, 40, 40]]
    plotting.plot_proposals(np.zeros((50, 60, 3)), boxes, [0.9, 0.8], ax=ax)
    assert [t.get_verticalalignment() for t in ax.texts] == ["top", "bottom"]


def test_grey_images_are_shown(ax):
    plotting.plot_proposals(np.zeros((5, 5)), [[0, 0, 2, 2]], ax=ax)
    assert colors(ax) == [plotting.BLUE]


def test_recall_has_a_curve_a_name(ax):
    plotting.plot_recall([0.5, 0.75, 1.0], {"100": [1, 0.5, 0], "10": [0.5, 0.2, 0]})
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["100", "10"]


def test_training_curves_come_from_json_lines(ax, tmp_path):
    rows = [{"step": s, "loss": 1 / s, "loss_box": None} for s in range(1, 30)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows))
    plotting.plot_training(file, smooth=5, ax=ax)
    faint, mean = ax.lines
    assert mean.get_label() == "loss"
    np.testing.assert_allclose(faint.get_ydata(), [r["loss"] for r in rows])
    np.testing.assert_allclose(mean.get_ydata()[0], np.mean(faint.get_ydata()[:5]))


GRID = np.array(
    [
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        for y in (8, 24)
        for x in (8, 24, 40)
        for w, h in ((8, 8), (11.4, 5.6), (32, 32))
    ],
    np.float32,
)
"""Three anchors, two of about one size, at 2 x 3 points, 16 px apart."""


def test_anchors_of_the_nearest_point_have_a_colour_a_size(ax):
    image = np.zeros((32, 48, 3), np.uint8)
    assert plotting.plot_anchors(image, GRID, point=(38, 20), ax=ax) is ax
    centres = [np.mean(p.get_bbox().get_points(), axis=0) for p in ax.patches]
    np.testing.assert_allclose(centres, [[40, 24]] * 3, atol=1e-4)
    assert colors(ax) == [plotting.BLUE, plotting.BLUE, plotting.ORANGE]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["8 px", "32 px"]
    # The picture is as large as the anchors, which leave the image.
    assert ax.get_xlim()[1] > 56 and ax.get_ylim()[0] > 40 and ax.get_xlim()[0] < 0


def test_anchors_stand_in_the_middle_unless_told(ax):
    plotting.plot_anchors(np.zeros((32, 48)), GRID[:9], title="nine", ax=ax)
    assert ax.patches[0].get_bbox().extents.tolist() == [20, 4, 28, 12]
    assert ax.get_title() == "nine"


def test_the_grid_has_a_dot_a_point(ax):
    assert plotting.plot_anchor_grid(np.zeros((32, 48)), GRID, ax=ax) is ax
    (dots,) = ax.lines
    points = np.transpose(dots.get_data()).tolist()
    assert points == [[x, y] for x in (8, 24, 40) for y in (8, 24)]
    assert ax.get_title() == "2 x 3 points, 16 px apart"


def test_targets_are_boxes_and_dots(ax):
    labels = np.array([1, 0, -1] * 6)
    found = plotting.plot_targets(
        np.zeros((32, 48)), GRID, labels, gt_boxes=GRID[:1], title="targets", ax=ax
    )
    assert found is ax and ax.get_title() == "targets"
    assert colors(ax) == [plotting.GREEN] + [plotting.BLUE] * 6
    negative, unused = ax.lines
    assert len(negative.get_xdata()) == len(unused.get_xdata()) == 6
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert sorted(texts) == ["negative (6)", "not used (6)", "object", "positive (6)"]


def test_of_a_sample_only_its_members_are_drawn(ax):
    labels, sampled = np.array([1, 0, -1] * 6), np.arange(18) < 5
    plotting.plot_targets(np.zeros((32, 48)), GRID, labels, sampled=sampled, ax=ax)
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts[-1] == "positive (2)" and "negative (2)" in texts
    assert len(ax.patches) == 2


def test_objectness_lies_over_the_image(ax):
    scores = np.zeros((2, 4, 3))
    scores[1, 3, 2] = 0.9
    image = np.zeros((30, 50, 3), np.uint8)  # the map covers the padded 32 x 64
    assert plotting.plot_objectness(image, scores, stride=16, title="s", ax=ax) is ax
    _, heat = ax.images
    assert heat.get_extent() == [0, 64, 32, 0]
    assert heat.get_array()[1, 3] == pytest.approx(0.9)
    assert heat.get_array().max(axis=0)[:3].tolist() == [0, 0, 0]
    assert ax.get_xlim() == (0, 50) and ax.get_ylim() == (30, 0)
    assert ax.figure.axes[1].get_ylabel() == "objectness"


def test_objectness_fills_the_image_by_default(ax):
    plotting.plot_objectness(np.zeros((32, 64)), np.ones((2, 4)), ax=ax)
    assert ax.images[1].get_extent() == [0, 64, 32, 0]


def test_coverage_says_how_many_objects_there_are(ax):
    objects = np.array([[0, 12], [15_300, 2_100_000]])
    covered = np.array([[np.nan, 0.25], [0.5, 1]])
    found = plotting.plot_coverage(
        [16, 32, 64], [0.5, 1, 2], objects, covered, anchors=GRID[-1:], ax=ax
    )
    assert found is ax
    texts = {t.get_text(): t.get_position() for t in ax.texts}
    assert set(texts) == {"12", "15k", "2.1M"}
    x, y = texts["12"]
    assert 16 < x < 32 and 1 < y < 2
    (mesh,) = ax.collections
    assert mesh.get_array().mask.tolist() == [[True, False], [False, False]]
    (anchor,) = ax.lines
    assert (anchor.get_xdata(), anchor.get_ydata()) == ([32], [1])
    assert "px" in ax.get_xlabel() and ax.get_ylabel() == "height / width"


def test_coverage_shows_the_part_that_is_used(ax):
    sizes, ratios = 2.0 ** np.arange(1, 11), [0.5, 1, 2]
    objects = np.zeros((9, 2), int)
    plotting.plot_coverage(sizes, ratios, objects, objects * np.nan, ax=ax)
    assert ax.get_xlim() == (2, 1024)  # nothing there: all of it
    objects[4] = 7
    plotting.plot_coverage(sizes, ratios, objects, objects / 7, ax=ax)
    assert ax.get_xlim() == (32, 64) and ax.get_ylim() == (0.5, 2)
