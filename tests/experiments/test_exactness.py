import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import exactness, plain_nms
from experiments.config import UsageError
from experiments.exactness import SIZES, VARIANTS
from tests import reference


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "size",
    [s if s[0] == 32 else pytest.param(s, marks=pytest.mark.slow) for s in SIZES],
)
def test_five_hundred_cases(name, size):
    outcome = exactness.compare(VARIANTS[name], range(500), seed=1, size=size)
    assert outcome == ([], [])


def test_its_reference_is_the_plain_one():
    for number in range(100):
        case = plain_nms.random_case(np.random.default_rng(number), 20)
        arrays, _ = plain_nms.greedy(case, 15)
        boxes, scores, valid, groups, threshold = case
        expected = reference.nms(boxes, scores, threshold, 15, valid, groups)
        np.testing.assert_array_equal(arrays[0], expected)


@pytest.fixture
def one_size(monkeypatch):
    monkeypatch.setattr(exactness, "SIZES", ((7, 7),))


def test_a_difference_is_found_and_printed(one_size, monkeypatch, capsys):
    def wrong(boxes, scores, valid, *rest):
        return exactness._nms(boxes, scores, valid | True, *rest)

    monkeypatch.setitem(VARIANTS, "native", VARIANTS["native"]._replace(run=wrong))
    assert exactness.main(["--cases", "20", "--variant", "native"]) == 1
    shown = capsys.readouterr().out
    assert "of seed 0: Case(boxes=array(" in shown
    assert "expected" in shown and "in a batch" in shown


def test_elsewhere_last_bits_leave_a_case_undecided(monkeypatch):
    def rounded(*args):
        *case, threshold, k = args
        return exactness._nms(*case, jnp.nextafter(threshold, jnp.zeros(())), k)

    variant = VARIANTS["native"]._replace(run=rounded)
    there = exactness.compare(variant, range(80), seed=0, size=(7, 7))
    assert there.different and not there.undecided
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    elsewhere = exactness.compare(variant, range(80), seed=0, size=(7, 7))
    assert elsewhere == ([], there.different)


def test_the_result_is_written(one_size, tmp_path):
    out = tmp_path / "result.json"
    options = ["--cases", "8", "--variant", "native", "--out", str(out)]
    assert exactness.main(options) == 0
    result = json.loads(out.read_text())
    assert result["cases"] == 8
    assert result["variants"] == {"native": {"different": 0, "undecided": 0}}


def test_an_unknown_variant_is_refused():
    with pytest.raises(UsageError, match="one of all, native, portable"):
        exactness.main(["--variant", "mine"])
