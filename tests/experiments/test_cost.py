import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cost, evaluate, train
from experiments.config import load_config, parse_config
from rpn_jax.batch import Batch
from rpn_jax.faster_rcnn import FasterRCNNConfig, make_network
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.mesh import data_mesh

# The programs are those of test_train.
TINY = (
    "shapes --steps 6 --batch 2 --lr 0.02 --optimizer.ema 0.9 "
    "--data.train 16 --data.val 4 --data.max-boxes 20 "
    "--data.resize.max-size 64 --model.head-channels 8 "
    "--model.convention.proposals.test-pre-nms 50 "
    "--model.convention.proposals.test-post-nms 20"
).split()


def shapes_of(size, batch=2):
    shape = jax.ShapeDtypeStruct
    return Batch(
        images=shape((batch, *size, 3), jnp.uint8),
        image_sizes=shape((batch, 2), jnp.int32),
        boxes=shape((batch, 5, 4), jnp.float32),
        valid=shape((batch, 5), bool),
        ignore=shape((batch, 5), bool),
        scales=shape((batch, 2), jnp.float32),
        image_ids=shape((batch,), jnp.int32),
        labels=shape((batch, 5), jnp.int32),
    )


def params_of(config):
    model = make_network(config.model)
    return jax.eval_shape(
        lambda key: model.init(key, image_size=(64, 64)), jax.random.key(0)
    )


@pytest.mark.slow
def test_a_dry_run_reports_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "data_mesh", lambda: data_mesh(1))
    workdir = tmp_path / "run"
    assert train.main([*TINY, "--dry-run", "--workdir", str(workdir)]) == 0
    assert not workdir.exists()
    lines = capsys.readouterr().out.splitlines()
    starts = [line.split("  ")[0] for line in lines]
    for program in ("backbone", "heads", "proposals", "loss", "loss and gradient"):
        assert program in starts
    (step,) = [line for line in lines if line.startswith("training step 64 x 64")]
    flops = float(step.split()[7])
    assert flops > 0
    assert any(re.match(r"  step alone +\d+\.\d  64 x 64", line) for line in lines)
    assert any(re.match(r"  input alone +\d+\.\d  threads 4", line) for line in lines)
    (state,) = [line for line in lines if line.startswith("state on each device")]
    held = re.findall(r"(parameters|optimizer|moving average) (\d+\.\d) MiB", state)
    sizes = {name: float(size) for name, size in held}
    assert sizes["parameters"] == sizes["moving average"] > 0
    assert sizes["optimizer"] >= 2 * sizes["parameters"]  # adamw's two moments
    assert any(line.startswith("so the 6 steps take 0:") for line in lines)


@pytest.mark.slow
def test_a_run_says_what_was_compiled_and_traces(tmp_path, monkeypatch, capsys):
    for module in (train, evaluate):
        monkeypatch.setattr(module, "data_mesh", lambda: data_mesh(1))
    options = ["--workdir", str(tmp_path), "--eval.batch", "2", "--profile", "1"]
    assert train.main([*TINY, *options]) == 0
    out = capsys.readouterr().out
    compiled = out.index("\ncompiled    training step 1 x, ")
    assert "evaluation 1 x" in out[compiled:].splitlines()[1]
    assert compiled < out.index("\nweights ") < out.index("\nAR@1 ")
    assert "profile: steps 6 to 6." in out
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))


@pytest.mark.slow
def test_a_dry_run_of_a_detector(tmp_path, monkeypatch, capsys):
    source = train.open_source

    def shapes(config, split, classes=None):
        return source(config, split)  # whose class has another name

    monkeypatch.setattr(train, "open_source", shapes)
    monkeypatch.setattr(train, "data_mesh", lambda: data_mesh(2))
    options = (
        "bccd_faster_rcnn --dry-run --batch 2 --data.kind shapes --data.train 8 "
        "--data.val 2 --data.resize.max-size 64 --model.rpn.head-channels 8 "
        "--model.rpn.backbone small_resnet --model.box-features 8"
    )
    assert train.main([*options.split(), "--workdir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    for word in ("box_head", "box_predictor", "detections", "between devices"):
        assert f"\n{word}" in out


def test_parameters_by_part_and_what_is_frozen():
    config = parse_config([*TINY, "--model.freeze", "backbone"])
    params = params_of(config)
    head, *rows = cost.parameters(config, params_with_bytes(params)).splitlines()
    found = {row.split()[0]: row.split()[1:] for row in rows}
    sizes = {
        part: sum(x.size for x in jax.tree.leaves(params["params"][part]))
        for part in ("backbone", "rpn")
    }
    assert found["backbone"][:2] == [f"{sizes['backbone']:,}", "0"]
    assert found["rpn"][:2] == [f"{sizes['rpn']:,}"] * 2
    assert found["all"][:2] == [f"{sum(sizes.values()):,}", f"{sizes['rpn']:,}"]


def params_with_bytes(params):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)


def test_anchors_by_level_and_padded_size():
    config = parse_config(TINY)
    batches = [shapes_of((64, 64)), shapes_of((32, 64))]
    table = cost.anchors(config, params_of(config), batches).splitlines()
    assert table[1].split() == "64 x 64 0 8 8 x 8 16 28 0.5 1 2 384".split()
    totals = [line.split()[-1] for line in table if " all " in line]
    # 6 a cell at strides 8, 16, 32
    assert totals == ["504", str(6 * (4 * 8 + 2 * 4 + 1 * 2))]


def test_the_trunk_of_a_detector():
    rpn = RPNConfig(backbone="small_resnet", sizes=((32.0,),))
    model = FasterRCNNConfig(rpn=rpn, box_features=8)
    network = make_network(model)
    params = jax.eval_shape(
        lambda key: network.init(key, image_size=(64, 64)), jax.random.key(0)
    )
    maps = jax.eval_shape(cost.trunk(network), params, shapes_of((64, 32)))
    assert [x.shape[:3] for x in maps] == [(2, 4, 2)]


def test_a_program_says_what_it_takes():
    def f(x, w):
        return x @ w, x + 1

    x, w = jnp.ones((64, 32)), jnp.ones((32, 16))
    program, call = cost.compiled("f", jax.jit(f, donate_argnums=0), x, w)
    assert program.flops == pytest.approx(2 * 64 * 32 * 16, rel=0.1)
    assert program.arguments == 4 * (64 * 32 + 32 * 16)
    assert program.aliased == 4 * 64 * 32
    assert program.outputs >= 4 * (64 * 16 + 64 * 32)
    np.testing.assert_array_equal(call(x, w)[0], np.full((64, 16), 32.0))


def test_what_the_count_of_operations_leaves_out():
    """The report says so; on CPU, where it was looked at."""

    def flops(function, *args):
        return cost.compiled("f", jax.jit(function), *args)[0].flops

    x = jnp.ones((64, 64))
    loops = [
        flops(lambda x, n=n: jax.lax.fori_loop(0, n, lambda _, y: y @ x, x), x)
        for n in (2, 50)
    ]
    assert loops[1] == pytest.approx(loops[0], rel=0.01)
    assert not flops(lambda x: jax.lax.top_k(x, 5), jnp.ones(10_000))
    image, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 16))
    dimensions = ("NHWC", "HWIO", "NHWC")
    same, valid = (
        flops(
            lambda image, kernel, padding=padding: jax.lax.conv_general_dilated(
                image, kernel, (1, 1), padding, dimension_numbers=dimensions
            ),
            image,
            kernel,
        )
        for padding in ("SAME", "VALID")
    )
    assert valid == 2 * 36 * 9 * 4 * 16
    assert same == 2 * (3 * 8 - 2) ** 2 * 4 * 16  # of 2 * 24 * 24 * 4 * 16


def test_steps_are_timed_after_one():
    calls = []

    def step(state, batch):
        calls.append(state)
        return state + 1, batch

    state, times = cost.time_steps(step, 0, None, most=5)
    assert (state, len(times)) == (6, 5)
    _, times = cost.time_steps(step, 0, None, most=5, seconds=0)
    assert len(times) == 3


def test_input_is_counted_by_size():
    sizes = itertools.cycle([(64, 64), (32, 64)])
    data = (shapes_of(size) for size in sizes)
    read = cost.read_input(data, 4, ahead=3)
    assert read.counts == {(64, 64): 4, (32, 64): 3}
    assert set(read.batches) == set(read.counts) and read.seconds > 0


def test_every_config_has_the_two_fields_off():
    config = load_config("shapes")
    assert (config.dry_run, config.profile) == (False, 0)
