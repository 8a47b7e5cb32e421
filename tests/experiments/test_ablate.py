"""Ablations and the funnel as commands, on a tiny network of random weights."""

import dataclasses
import json
import re
import sys
import types
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ablate, ablation_report, evaluate, funnel, prepare, variants
from experiments.config import DataConfig, UsageError, load_config
from experiments.variants import AS_IS, FULL, SEARCH, Image, parts_of_cells
from rpn_jax import box_iou
from rpn_jax.analysis import STAGES
from rpn_jax.data import Resize, ShapesSource
from rpn_jax.evaluation import IOU_THRESHOLDS
from rpn_jax.objective import RPNOutputs
from rpn_jax.ops.anchors import cell_anchors
from rpn_jax.predict import DEMO, load_model
from rpn_jax.pretrained import save_params_npz
from rpn_jax.rpn import RPNConfig, rpn
from rpn_jax.training.config import config_to_json
from rpn_jax.training.mesh import data_mesh

PRE, POST = 50, 20
SCENES = 3


def tiny() -> RPNConfig:
    base = load_config("shapes").model
    few = dict(test_pre_nms=PRE, test_post_nms=POST)
    convention = base.convention
    proposals = dataclasses.replace(convention.proposals, **few)
    return dataclasses.replace(
        base,
        backbone="small_resnet",
        strides=(16,),
        sizes=((16.0, 32.0),),
        ratios=(0.5, 1.0),
        head_channels=8,
        convention=dataclasses.replace(convention, proposals=proposals),
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weight file as a run writes it."""
    config = tiny()
    params = rpn(config).init(jax.random.key(0), image_size=(64, 64))
    data = DataConfig(val=str(SCENES), resize=Resize(max_size=64))
    file = tmp_path_factory.mktemp("tiny") / "weights.npz"
    metadata = {"model": config_to_json(config), "data": config_to_json(data)}
    save_params_npz(file, params, metadata)
    return file


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(evaluate, "data_mesh", lambda: data_mesh(1))


@pytest.fixture
def opencv(monkeypatch):
    """An OpenCV whose selective search finds three boxes; it keeps what it saw."""
    seen = []

    class Search:
        def setBaseImage(self, pixels):
            seen.append(pixels)

        def switchToSelectiveSearchFast(self):
            seen.append("fast")

        def process(self):
            return np.array([[1, 2, 30, 40], [0, 0, 64, 64], [5, 5, 6, 7]], np.int32)

    make = types.SimpleNamespace(createSelectiveSearchSegmentation=Search)
    ximgproc = types.SimpleNamespace(segmentation=make)
    module = types.SimpleNamespace(ximgproc=ximgproc)
    monkeypatch.setitem(sys.modules, "cv2", module)
    return seen


def test_the_command_from_end_to_end(weights, tmp_path, opencv, capsys):
    out = tmp_path / "out"
    argv = [str(weights), "--out", str(out), "--counts", "5", str(POST)]
    assert ablate.main([*argv, "--pre-nms", str(PRE)]) == 0
    printed = capsys.readouterr().out
    assert (out / "ablation.md").read_text() in printed
    for name in ("ablation.png", "recall.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    result = json.loads((out / "ablation.json").read_text())
    found = result["variants"]
    own = {k: v for k, v in found[FULL].items() if k != "milliseconds"}
    # With as many anchors and proposals as the network's own it is the network.
    assert own == {k: v for k, v in found[AS_IS].items() if k != "milliseconds"}
    assert found["without NMS"]["boxes"] >= own["boxes"]
    assert found["NMS at 0.3"]["boxes"] <= own["boxes"]
    alone = {"size 16 alone", "size 32 alone", "ratio 0.5 alone", "ratio 1 alone"}
    assert alone < set(found)
    assert found[SEARCH]["boxes"] == 3
    assert [x for x in opencv if isinstance(x, str)] == ["fast"] * SCENES
    assert set(result["crossings"]) == set(ablation_report.FIGURES)
    assert result["images"] == SCENES and result["counts"][-1] == POST
    times = result["milliseconds"]
    assert times["network"] > 0 and set(times["proposals"]) == {"5", str(POST)}

    # The same recall as `evaluate` measures.
    evaluate.main([str(weights), "--out", str(out), "--eval.batch", "1"])
    measured = json.loads((out / "recall.json").read_text())
    at = result["counts"].index(10)
    assert own["AR"]["all"][at] == pytest.approx(measured["figures"]["AR@10"], abs=1e-4)
    np.testing.assert_allclose(own["recall"][at], measured["recall"]["@10"], atol=1e-4)


def test_without_opencv_selective_search_is_left_out(
    weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "cv2", None)
    argv = [str(weights), "--out", str(tmp_path), "--counts", "5", str(POST)]
    assert ablate.main([*argv, "--pre-nms", str(PRE), "--data.val", "1"]) == 0
    assert "needs opencv-contrib-python-headless" in capsys.readouterr().out
    result = json.loads((tmp_path / "ablation.json").read_text())
    assert SEARCH not in result["variants"] and result["crossings"] is None
    assert "selective search" not in (tmp_path / "ablation.md").read_text()


def test_images_that_cannot_be_read_are_left_out_and_counted(weights, tmp_path):
    run = "shapes coco --data.train 1 --data.val 3 --out".split()
    prepare.main([*run, str(tmp_path)])
    out, images = tmp_path / "out", sorted((tmp_path / "val").rglob("*.png"))
    assert len(images) == 3
    data = "--data.kind coco --data.val val/annotations.json --data.on-bad skip".split()
    argv = [str(weights), *data, "--data.root", str(tmp_path), "--out", str(out)]
    argv += ["--counts", "5", "--pre-nms", str(PRE), "--selective-search", "off"]
    images[0].write_bytes(b"no image")
    assert ablate.main(argv) == 0
    result = json.loads((out / "ablation.json").read_text())
    assert (result["images"], result["skipped"]) == (2, 1)
    assert "cannot be read: 1 more" in (out / "ablation.md").read_text()
    for image in images:
        image.write_bytes(b"no image")
    with pytest.raises(UsageError, match="none of the images can be read"):
        ablate.main(argv)


def test_a_file_in_the_place_of_the_results_is_named_before_the_work(weights, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for main in (ablate.main, evaluate.main):
        with pytest.raises(UsageError, match="--out: .*file is no folder"):
            main([str(weights), "--out", str(file)])


def test_help_after_the_model_tells_every_option(weights, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([str(weights), "--help"])
    assert {"--funnel", "--data.val", "--hosts.count"} <= set(
        re.findall(r"--[\w.-]+", capsys.readouterr().out)
    )


def test_what_is_asked_for_wrongly_is_said(weights):
    with pytest.raises(UsageError, match="a model is wanted"):
        ablate.main(["--counts", "5"])
    with pytest.raises(UsageError, match="at least 1"):
        ablate.main([str(weights), "--counts", "0"])


@pytest.mark.parametrize("order", ["ratio_major", "size_major"])
def test_anchors_of_one_size_or_ratio_are_told_apart(order):
    config = dataclasses.replace(
        tiny(), strides=(8, 16), sizes=((8.0, 16.0), (16.0, 64.0)), ratios=(0.5, 1, 2)
    )
    rules = dataclasses.replace(config.convention.anchors, order=order)
    convention = dataclasses.replace(config.convention, anchors=rules)
    parts = parts_of_cells(dataclasses.replace(config, convention=convention))
    assert len(parts) == 3 + 3
    for level, sizes in enumerate(config.sizes):
        width, height = cell_anchors(sizes, config.ratios, order=order)[:, 2:].T * 2
        for s in (8.0, 16.0, 64.0):
            wanted = np.isclose(np.sqrt(width * height), s)
            np.testing.assert_array_equal(parts[f"size {s:g} alone"][level], wanted)
        for r in config.ratios:
            wanted = np.isclose(height / width, r)
            np.testing.assert_array_equal(parts[f"ratio {r:g} alone"][level], wanted)


def test_each_variant_leaves_out_what_it_says():
    # Two points, 64 px apart, with two sizes each; boxes grow by e where regressed.
    cell = cell_anchors((16.0, 32.0), (1.0,))
    anchors = jnp.asarray(np.concatenate([cell + 64, cell + 128]))
    logits = jnp.array([3.0, 2.0, 1.0, 0.0])
    deltas = jnp.full((4, 4), jnp.array([0, 0, 1.0, 1.0]))
    outputs = RPNOutputs((anchors,), (logits,), (deltas,))
    size = np.array([192, 192])
    image = Image(np.zeros((192, 192, 3)), size, 1.0, outputs, jax.random.key(0))
    config = dataclasses.replace(tiny(), ratios=(1.0,))
    ways = variants.variants(config, pre_nms=4, most=4)

    def sides(name):
        found = ways[name].propose(*ways[name].prepare(image))
        boxes = np.asarray(found.boxes)[np.asarray(found.valid)]
        return (boxes[:, 2] - boxes[:, 0]).round().tolist()

    large, small = 32 * np.e, 16 * np.e  # 87 and 43: IoU 1/4, or 0.7 if cut to 64 px
    grown = [round(small), round(large), round(small), round(large)]
    assert sides(FULL) == sides("without NMS") == grown
    assert sides("without regression") == [16, 32, 16, 32]
    assert sides("size 16 alone") == [round(small)] * 2
    assert sides("size 32 alone") == [round(large)] * 2
    assert sides("NMS at 0.3") == grown
    assert sorted(sides("without scores and NMS")) == sorted(grown)
    orders = set()
    for i in range(8):
        image = image._replace(key=jax.random.key(i))
        orders.add(tuple(sides("without scores and NMS")))
    assert len(orders) > 1


def test_selective_search_gives_boxes_of_the_pixels_it_saw(opencv):
    rgb = np.zeros((4, 6, 3), np.float32)
    rgb[..., 0] = 200.4
    image = Image(rgb, None, 1.0, RPNOutputs((), (), ()), jax.random.key(0))
    way = variants.selective_search("fast", 2)
    assert way is not None
    boxes, valid = way.propose(*way.prepare(image))
    np.testing.assert_array_equal(boxes, [[1, 2, 31, 42], [0, 0, 64, 64]])
    assert valid.all()
    np.testing.assert_array_equal(opencv[0][0, 0], [0, 0, 200])  # blue, green, red
    assert variants.selective_search("off", 2) is None


def test_crossings_are_named():
    counts, flat = [1, 10, 100, 1000], np.full(4, 0.5)
    ours = np.array([0.5, 0.6, 0.6, 0.6])
    said = ablation_report.crossings(counts, ours, flat)
    assert said == "the network is ahead at every number from 10"
    theirs = np.array([0.5, 0.5, 0.7, 0.55])
    assert ablation_report.crossings(counts, ours, theirs) == (
        "the network is ahead from 10; selective search overtakes between 10 and 100; "
        "the network overtakes between 100 and 1,000"
    )
    said = ablation_report.crossings(counts, flat, flat)
    assert said == "both are equal at every number"


@pytest.mark.parametrize("threshold", IOU_THRESHOLDS)
def test_the_funnel_of_the_packaged_network_adds_up(demo_funnel, threshold):
    found, objects = demo_funnel
    counts = funnel.count(found)[threshold]
    assert counts["all"].objects == objects
    for c in counts.values():
        assert sum(c.lost) + c.found == c.objects
    sizes = [counts[name] for name in ("small", "medium", "large")]
    assert sum(c.objects for c in sizes) == objects
    assert sum(c.found for c in sizes) == counts["all"].found


@pytest.fixture(scope="module")
def demo_funnel():
    """The funnel of the packaged network on three scenes, and how many objects."""
    source = ShapesSource(SCENES, seed=1)
    model = load_model(DEMO)
    network = rpn(cast(RPNConfig, model.config))
    data = DataConfig(resize=model.resize)
    found = funnel.follow(network, model.params, source, data, 2)
    return found, sum((~source[i].ignore).sum() for i in range(SCENES))


def test_most_objects_pass_the_packaged_network(demo_funnel):
    found, objects = demo_funnel
    at_half = funnel.count(found)[0.5]["all"]
    assert at_half.found > 0.8 * objects and at_half.matched == objects
    # The boxes are in the pixels of the objects.
    ious = box_iou(found.objects, found.boxes[:, -1]).diagonal()
    np.testing.assert_allclose(ious, found.iou[:, -1], atol=1e-5)


def test_evaluate_tells_where_objects_were_lost(weights, tmp_path, capsys):
    argv = [str(weights), "--funnel", "--out", str(tmp_path), "--eval.batch", "2"]
    assert evaluate.main(argv) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.startswith("all ")]
    result = json.loads((tmp_path / "funnel.json").read_text())
    assert result["stages"] == list(STAGES) and len(result["iou"]) == 10
    for row, threshold in zip(rows, ("0.5", "0.7"), strict=True):
        counts = result["iou"][threshold]["all"]
        assert [*map(int, row[1:])] == [
            *(counts[k] for k in ("objects", "anchor", "matched")),
            *counts["lost"],
            counts["found"],
        ]
    assert (tmp_path / "funnel.png").read_bytes().startswith(b"\x89PNG")


def test_the_worst_of_each_stage_are_shown():
    end = np.array([0.4, 0.1, 0.3, 0.2, 0.9, 0.45])
    iou = np.ones((6, len(STAGES))) * end[:, None]
    iou[2:4, :3] = 0.6  # lost at nms, the others at decoded, one is found
    zeros = np.zeros(6)
    found = funnel.Found(zeros, zeros, zeros, iou, zeros, zeros, zeros, 0)
    assert funnel.worst_cases(found, 0.5).tolist() == [1, 0, 5, 3, 2]
    assert funnel.worst_cases(found, 0.5, most=3).tolist() == [1, 0, 3]


def test_the_first_call_which_compiles_is_not_timed(monkeypatch):
    times = iter([0, 10, 20, 21, 30, 33])  # 10, 1 and 3 seconds
    monkeypatch.setattr(ablate.time, "perf_counter", lambda: next(times))
    timer, calls = ablate.Timer(), []
    for _ in range(3):
        timer("it", calls.append, 1, warm=True)
    assert timer.milliseconds("it") == 2000
    assert len(calls) == 6
