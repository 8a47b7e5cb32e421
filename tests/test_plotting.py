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
