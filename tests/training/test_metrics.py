import json

import jax.numpy as jnp
import pytest

from rpn_jax.training.metrics import (
    MetricsWriter,
    NonFiniteError,
    read_metrics,
    truncate,
)


def writer(file, start=0, steps=10, **options):
    return MetricsWriter(file, start=start, steps=steps, batch=4, **options)


def metrics(loss=1.0, box=0.5):
    return {"loss": jnp.float32(loss), "loss_box": jnp.float32(box)}


def test_a_step_is_written_when_the_next_one_comes(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with writer(file) as w:
        w.step(1, metrics(1.0))
        assert read_metrics(file) == []
        w.step(2, metrics(2.0))
        (row,) = read_metrics(file)
        assert row.pop("seconds") < 60
        assert row == {"step": 1, "loss": 1.0, "loss_box": 0.5}
        w.flush({"AR@100": 0.25, "AR@100_small": float("nan")})
    last = json.loads(file.read_text().splitlines()[-1])
    assert last["step"] == 2 and last["AR@100"] == 0.25
    assert last["AR@100_small"] is None


def test_lines_after_the_restored_step_are_removed(tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "loss": 0.1 * s} for s in range(1, 8)]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    file.write_text(text + '{"step": 8, "lo')  # cut short by a kill
    with writer(file, start=5) as w:
        w.step(6, metrics())
        w.flush()
    assert [r["step"] for r in read_metrics(file)] == [1, 2, 3, 4, 5, 6]
    assert read_metrics(file)[:5] == rows[:5]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncate_needs_no_file(tmp_path):
    truncate(tmp_path / "metrics.jsonl", 3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path):
    with writer(tmp_path / "m") as w:
        w.step(3, metrics(float("nan"), float("nan")))
        with pytest.raises(NonFiniteError, match="^step 3: loss_box is nan$"):
            w.step(4, metrics())
    assert read_metrics(tmp_path / "m") == []


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    with writer(tmp_path / "m") as w:
        w.step(1, {**metrics(), "grad_norm": jnp.float32(float("inf"))})
        with pytest.raises(NonFiniteError, match="grad_norm is inf"):
            w.flush()


def test_health_may_be_not_finite(tmp_path):
    with writer(tmp_path / "m") as w:
        w.step(1, {**metrics(), "mean_best_iou": jnp.float32(float("nan"))})
        w.flush()
    assert read_metrics(tmp_path / "m")[0]["mean_best_iou"] is None


def test_progress_says_step_losses_speed_and_time_left(tmp_path, capsys):
    with writer(tmp_path / "m", log_every=2) as w:
        for step in range(1, 5):
            w.step(step, metrics())
        w.flush()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["2/10", "4/10"]
    for part in ("loss 1.0000", "box 0.5000", "images/s", "ETA 0:00"):
        assert part in lines[0]


def test_tensorboard_on_request(tmp_path):
    pytest.importorskip("tensorboardX")
    with writer(tmp_path / "m", tensorboard=tmp_path / "board") as w:
        w.step(1, metrics())
        w.flush()
    assert any((tmp_path / "board").iterdir())
