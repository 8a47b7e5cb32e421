import jax
import jax.numpy as jnp
import pytest

from experiments.config import TrainConfig
from experiments.trace import Trace


def run(workdir, *, steps, profile, first=1):
    config = TrainConfig(steps=steps, profile=profile, workdir=workdir)
    double = jax.jit(lambda x: 2 * x)
    x = jnp.ones(())
    with Trace(config, first=first) as trace:
        for step in range(first, steps + 1):
            with trace.step(step):
                x = double(x)
    return [p.name for p in (workdir / "profile").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("steps", "first", "wanted"),
    [
        (30, 1, "steps 11 to 12"),  # after the warm-up
        (5, 1, "steps 4 to 5"),  # of a short run the last
        (30, 18, "steps 28 to 29"),  # resumed
        (1, 1, "steps 1 to 1"),
    ],
)
def test_some_steps_are_traced(tmp_path, capsys, steps, first, wanted):
    names = run(tmp_path, steps=steps, profile=2, first=first)
    assert f"profile: {wanted}." in capsys.readouterr().out
    assert "perfetto_trace.json.gz" in names
    assert any(name.endswith(".xplane.pb") for name in names)


@pytest.mark.parametrize("first", [1, 5])
def test_nothing_is_traced_unasked_or_in_a_finished_run(tmp_path, capsys, first):
    profile = 0 if first == 1 else 3
    assert run(tmp_path, steps=4, profile=profile, first=first) == []
    assert capsys.readouterr().out == ""
