import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

import experiments.follow as module
from experiments.config import UsageError
from experiments.follow import (
    PARTS,
    differences,
    follow,
    main,
    start,
    without_draws,
)
from rpn_jax.conventions import TORCHVISION
from rpn_jax.faster_rcnn import FasterRCNNConfig, faster_rcnn
from rpn_jax.rpn import RPNConfig

FIRST = RPNConfig(strides=(4, 8), sizes=((8.0,), (16.0,)), freeze=("backbone/stem",))
CONFIG = FasterRCNNConfig(
    rpn=FIRST, classes=("a", "b"), box_features=16, roi_levels=2, box_background=True
)


class Tiny(nn.Module):
    """The trunk of the golden file's peer."""

    strides = (4, 8)

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (4, 4), 4, "VALID", name="stem")(x))
        return [x, nn.relu(nn.Conv(8, (2, 2), 2, "VALID", name="down")(x))]


@pytest.fixture
def record(golden):
    return golden("follow_torchvision")


def tiny(record, **changes):
    """The network of the golden file and its first weights."""
    state = start(record)

    def conv(name):
        kernel, bias = (state[f"{name}.{part}"] for part in ("weight", "bias"))
        return {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}

    def fc(name, *bins):
        name = f"roi_heads.{name}"
        kernel, bias = (state[f"{name}.{part}"] for part in ("weight", "bias"))
        if bins:  # torch flattens [C, P, Q]
            kernel = kernel.reshape(len(kernel), -1, *bins)
            return {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
        return {"kernel": kernel.T, "bias": bias}

    params = {
        "backbone": {name: conv(f"backbone.{name}") for name in ("stem", "down")},
        "rpn": {
            "rpn_conv": conv("rpn.head.conv.0.0"),
            "rpn_cls_score": conv("rpn.head.cls_logits"),
            "rpn_bbox_pred": conv("rpn.head.bbox_pred"),
        },
        "box_head": {
            "fc6": fc("box_head.fc6", 7, 7),
            "fc7": fc("box_head.fc7"),
        },
        "box_predictor": {
            name: fc(f"box_predictor.{name}") for name in ("cls_score", "bbox_pred")
        },
    }
    convention = without_draws(TORCHVISION, int(record["proposals"]))
    first = dataclasses.replace(FIRST, convention=convention, **changes)
    config = dataclasses.replace(CONFIG, rpn=first)
    model = faster_rcnn(config, backbone=Tiny())
    wanted = jax.eval_shape(
        lambda k: model.init(k, image_size=(64, 64)), jax.random.key(0)
    )
    assert jax.tree.map(np.shape, {"params": params}) == jax.tree.map(np.shape, wanted)
    return model, {"params": params}


def apart(record, found):
    return max(differences(found[part], record[part]).max() for part in PARTS)


def test_five_steps_follow_torchvisions_losses(record):
    found = follow(*tiny(record), record)
    assert set(map(len, found.values())) == {5}
    for part in ("loss_objectness", "loss_classifier"):
        assert record[part][-1] < record[part][0] - 0.05
    assert apart(record, found) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"momentum": 0.8}, {"weight_decay": 0.0}, {"freeze": ()}],
    ids=lambda change: next(iter(change)),
)
def test_another_recipe_is_told_apart(record, change):
    freeze = {key: change[key] for key in change if key == "freeze"}
    found = follow(*tiny(record, **freeze), record | change)
    assert apart(record, found) > 1e-3


def test_other_labels_are_told_apart(record):
    labels = np.where(record["labels"] < 0, -1, 1 - record["labels"])
    found = follow(*tiny(record), record | {"labels": labels})
    apart = differences(found["loss_classifier"], record["loss_classifier"])
    assert apart.max() > 1e-3
    assert differences(found["loss_objectness"], record["loss_objectness"])[0] < 1e-4


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(UsageError, match="python -m experiments.follow FILE"):
        main([])
    np.savez(tmp_path / "x.npz", images=np.zeros(3))
    with pytest.raises(UsageError, match=r"x\.npz is no such file with weights"):
        main([str(tmp_path / "x.npz")])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("factor", "code"), [(1.0005, 0), (1.002, 1), (np.nan, 1)])
def test_the_exit_code_says_whether_it_followed(
    record, part, factor, code, monkeypatch, capsys
):
    found = {name: record[name] for name in PARTS}
    found[part] = found[part] * factor
    monkeypatch.setattr(module, "detector", lambda _: (None, None))
    monkeypatch.setattr(module, "follow", lambda *_: found)
    file = "tests/golden/follow_torchvision.npz"
    assert main([file, file]) == code
    *rows, _, last = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 5 and rows[0].count("float64") == 4
    assert last.endswith(f"of {part}")
