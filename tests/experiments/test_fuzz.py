"""A sample of the fuzzing, and that it finds what it should."""

import json
import time

import numpy as np
import pytest

from experiments import fuzz, fuzz_data
from experiments.mutate import mutate_bytes, mutate_value


@pytest.mark.parametrize("name", fuzz_data.TARGETS)
def test_no_input_of_a_sample_breaks_a_parser(name):
    if name == "tfds":
        pytest.importorskip("tensorflow_datasets")
    result = fuzz.run(fuzz_data.TARGETS[name], 12, seed=0, limit=20)
    assert result["failures"] == []
    assert sum(result["outcomes"].values()) == 12


def test_failures_and_hangs_are_told_with_the_seed_that_repeats_them(
    monkeypatch, tmp_path, capsys
):
    def target(rng, folder):
        value = rng.integers(4)
        if value == 0:
            raise KeyError("lost")
        if value == 1:
            try:
                time.sleep(60)
            except Exception:
                return "a hang must not be swallowed"
        return "read"

    monkeypatch.setattr(fuzz, "TARGETS", {"some": target})
    out = tmp_path / "fuzz.json"
    options = ["--cases", "12", "--limit", "0.3"]
    assert fuzz.main([*options, "--seed", "3", "--out", str(out)]) == 1
    result = json.loads(out.read_text())
    found = result["targets"]["some"]
    assert result["seed"] == 3 and found["cases"] == 12
    errors = {failure["error"] for failure in found["failures"]}
    assert errors == {"KeyError: 'lost'", "Hang: more than 0.3 seconds"}
    for failure in found["failures"]:
        again = ["--only", "some", "--seed", str(failure["seed"]), "--cases", "1"]
        capsys.readouterr()
        assert fuzz.main([*again, "--limit", "0.3"]) == 1
        assert failure["error"] in capsys.readouterr().out


def test_mutations_change_their_input_and_leave_the_original():
    rng = np.random.default_rng(0)
    data, value = bytes(range(64)), {"a": [1, {"b": 2}], "c": "x"}
    assert len({mutate_bytes(rng, data) for _ in range(50)}) > 40
    assert len({repr(mutate_value(rng, value)) for _ in range(50)}) > 20
    assert value == {"a": [1, {"b": 2}], "c": "x"}
