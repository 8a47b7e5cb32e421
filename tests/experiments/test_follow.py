import dataclasses
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import pytest

import experiments.follow as module
from experiments.config import UsageError
from experiments.follow import PARTS, differences, follow, main, start
from rpn_jax.rpn import RPNConfig, rpn

CONFIG = RPNConfig(strides=(4, 8), sizes=((8.0,), (16.0,)), freeze=("backbone/stem",))


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

    params = {
        "backbone": {name: conv(f"backbone.{name}") for name in ("stem", "down")},
        "rpn": {
            "rpn_conv": conv("rpn.head.conv.0.0"),
            "rpn_cls_score": conv("rpn.head.cls_logits"),
            "rpn_bbox_pred": conv("rpn.head.bbox_pred"),
        },
    }
    model = rpn(dataclasses.replace(CONFIG, **changes), backbone=Tiny())
    wanted = jax.eval_shape(
        lambda k: model.init(k, image_size=(64, 64)), jax.random.key(0)
    )
    assert jax.tree.map(np.shape, {"params": params}) == jax.tree.map(np.shape, wanted)
    return model, {"params": params}


def apart(record, found):
    return max(differences(found[part], record[part]).max() for part in PARTS)


def test_five_steps_follow_torchvisions_losses(record):
    found = follow(*tiny(record), record)
    assert found["mismatched"].sum() == 0
    assert len(found["loss_box"]) == 5
    assert record["loss_objectness"][-1] < record["loss_objectness"][0] - 0.05
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


def test_another_draw_of_labels_is_counted(record):
    swapped = record | {
        "positive": record["negative"],
        "negative": record["positive"],
    }
    found = follow(*tiny(record), swapped)
    drawn = record["positive"] | record["negative"]
    np.testing.assert_array_equal(found["mismatched"], drawn.sum((1, 2)))


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(UsageError, match="python -m experiments.follow FILE"):
        main([])
    np.savez(tmp_path / "x.npz", images=np.zeros(3))
    with pytest.raises(UsageError, match=r"x\.npz is no such file with weights"):
        main([str(tmp_path / "x.npz")])


@pytest.mark.parametrize(
    ("factor", "mismatched", "code"),
    [(1.0005, 0, 0), (1.002, 0, 1), (np.nan, 0, 1), (1.0, 1, 1)],
)
def test_the_exit_code_says_whether_it_followed(
    record, factor, mismatched, code, monkeypatch, capsys
):
    found = {part: record[part] * factor for part in PARTS}
    found["mismatched"] = np.full(5, mismatched)
    monkeypatch.setattr(module, "load", mock.Mock())
    monkeypatch.setattr(module, "follow", lambda *_: found)
    file = "tests/golden/follow_torchvision.npz"
    assert main([file, file]) == code
    rows = [line for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert len(rows) == 2 + 5 and rows[0].count("float64") == 2
