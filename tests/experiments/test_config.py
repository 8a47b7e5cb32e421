import dataclasses
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.config import (
    TrainConfig,
    UsageError,
    config_names,
    data_root,
    load_config,
    parse_config,
    same_run,
)
from rpn_jax.faster_rcnn import make_network
from rpn_jax.ops.matching import match_anchors
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.config import config_from_json, config_to_json


@pytest.mark.parametrize("name", config_names())
def test_every_config_is_a_network_and_says_its_command(name):
    config = load_config(name)
    make_network(config.model)
    hash(config)
    doc = importlib.import_module(f"experiments.configs.{name}").__doc__
    assert f"python -m experiments.train {name} " in doc


@pytest.mark.parametrize("name", config_names())
def test_a_config_survives_json(name):
    config = load_config(name)
    text = json.dumps(config_to_json(config), allow_nan=False)
    assert config_from_json(TrainConfig, json.loads(text)) == config


def test_json_of_another_version_is_refused():
    with pytest.raises(ValueError, match="RPNConfig has no field scale"):
        config_from_json(RPNConfig, {"scale": 1})


def test_fields_are_set_from_the_command_line():
    config = parse_config(
        "bccd --steps 7 --batch 2 --seed 5 --lr 0.5 --weights w.npz --workdir out "
        "--data.root here --data.flip 0 --optimizer.name adamw --model.dtype bfloat16 "
        "--model.sizes.0 16 32 --model.convention.targets.boundary inf".split()
    )
    assert (config.steps, config.batch, config.seed, config.lr) == (7, 2, 5, 0.5)
    assert (config.weights, config.workdir) == (Path("w.npz"), Path("out"))
    assert config.data.root == Path("here") and config.data.flip == 0
    assert config.data.val == "test"  # of the config: what was not named stays
    assert config.optimizer.name == "adamw"
    assert config.model.dtype == "bfloat16" and config.model.sizes == ((16, 32),)
    assert math.isinf(config.model.convention.targets.boundary)


def test_help_lists_configs_and_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in (*config_names(), "--steps", "--lr", "--weights", "--data.root"):
        assert word in text


def test_an_unknown_field_stops_with_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["shapes", "--stepz", "3"])
    assert stop.value.code == 2
    assert "--steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--save-every 0", "save_every must be at least 1, got 0"),
        ("--log-every 0", "log_every must be at least 1, got 0"),
        ("--batch 0", "batch must be at least 1, got 0"),
        ("--accumulate 0", "accumulate must be at least 1, got 0"),
        ("--seed -1", "seed must be at least 0, got -1"),
        ("--eval.batch 0", "batch must be at least 1, got 0"),
        ("--data.limit -1", "limit must be at least 0, got -1"),
        ("--data.max-boxes 0", "max_boxes must be at least 1, got 0"),
    ],
)
def test_a_number_out_of_range_stops_with_code_2(option, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["shapes", *option.split()])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_config_names_the_known_ones():
    with pytest.raises(UsageError, match="no config 'nope'.*bccd, .*voc"):
        parse_config(["nope"])


def test_data_lies_where_the_option_says_then_the_environment(monkeypatch):
    config = load_config("bccd").data
    monkeypatch.delenv("RPN_JAX_DATA", raising=False)
    assert data_root(config) == Path("data")
    monkeypatch.setenv("RPN_JAX_DATA", "/there")
    assert data_root(config) == Path("/there")
    here = dataclasses.replace(config, root=Path("here"))
    assert data_root(here) == Path("here")


def test_difficult_regions_can_be_background_as_in_the_peer():
    peer = ["--model.convention.targets.ignore-threshold", "inf"]
    for options, label in ([], -1), (peer, 0):
        targets = parse_config(["voc", *options]).model.convention.targets
        box, yes = np.array([[0, 0, 9, 9]], np.float32), np.array([True])
        matches = match_anchors(
            box, box, yes, gt_ignore=yes, ignore_threshold=targets.ignore_threshold
        )
        assert matches.labels.tolist() == [label]


def test_a_run_is_not_resumed_with_another_configuration(tmp_path, capsys):
    config = load_config("shapes")
    same_run(tmp_path, dataclasses.replace(config, batch=99))
    same_run(tmp_path, config)  # nothing was saved: nothing is resumed
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    elsewhere = dataclasses.replace(
        config.data, root=Path("moved"), threads=9, workers=2, on_bad="skip"
    )
    same_run(tmp_path, dataclasses.replace(config, data=elsewhere))
    assert not capsys.readouterr().out
    same_run(tmp_path, dataclasses.replace(config, steps=9, data=elsewhere))
    assert "--steps is 9, was 1500: the learning rate" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 9
    model = dataclasses.replace(config.model, head_channels=3)
    jitter = dataclasses.replace(config.data.jitter, contrast=0.25)
    data = dataclasses.replace(elsewhere, jitter=jitter)
    with pytest.raises(UsageError) as error:
        same_run(tmp_path, dataclasses.replace(config, lr=3.0, model=model, data=data))
    message = str(error.value)
    for difference in (
        f"lr: was {config.lr}, is 3.0",
        f"model.head_channels: was {config.model.head_channels}, is 3",
        "data.jitter.contrast: was 0.0, is 0.25",
    ):
        assert difference in message
    assert "data.workers" not in message and "Name another --workdir" in message
    # What lies there is still of the run that can go on.
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == config.lr
