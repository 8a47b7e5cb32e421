import json

import numpy as np
import pytest

from experiments import benchmark
from experiments.config import UsageError
from experiments.peers import inputs
from experiments.peers.cases import all_cases
from experiments.peers.compare import compare
from experiments.peers.report import draw, line, markdown, summary

KEPT = {"kept": np.array([[4, 2, 7, -1], [3, 1, -1, -1]])}


def kept(*rows):
    return {"kept": np.array(rows)}


@pytest.mark.parametrize(
    "result, wrong",
    [
        (kept([4, 2, 7, -1], [3, 1, -1, -1]), 0),
        (kept([4, 7, -1, -1], [3, 1, -1, -1]), 1),  # one is lost
        (kept([4, 2, 7, 5], [3, 1, -1, -1]), 1),  # one too much
        (kept([4, 5, 7, -1], [3, 1, -1, -1]), 2),  # one for another
        (kept([4, 2, 7, 7], [3, 1, -1, -1]), 1),  # one twice
        (kept([2, 4, 7, -1], [3, 1, -1, -1]), 2),  # two out of place
    ],
)
def test_kept_indices_that_differ_are_counted(result, wrong):
    verdict = compare(result, KEPT)
    assert (verdict.wrong, bool(wrong)) == (wrong, str(verdict) != "equal")
    if wrong:
        assert str(verdict) == f"wrong: {wrong} of 5 kept differ"


def test_proposals_need_partners_and_no_order():
    rows = np.array([[[0, 0, 10, 10, 0.9], [5, 5, 900, 20, 0.8], [0, 0, 0, 0, 0]]])
    swapped = rows[:, [1, 0, 2]] + 1e-6
    assert str(compare({"rows": swapped}, {"rows": rows})) == "equal"
    moved = rows.copy()
    moved[0, 1, 0] += 1
    verdict = compare({"rows": moved}, {"rows": rows})
    assert str(verdict) == "wrong: 1 of 2 proposals differ"


def test_labels_are_equal_and_numbers_near():
    reference = {"labels": np.array([1, 0, -1]), "deltas": np.ones((3, 4))}
    near = {"labels": reference["labels"], "deltas": 1 + 1e-6 * np.ones((3, 4))}
    assert str(compare(near, reference)) == "equal"
    far = near | {"deltas": near["deltas"] + 1e-3}
    assert str(compare(far, reference)) == "wrong: 12 of 12 deltas differ"
    nan = near | {"deltas": np.full((3, 4), np.nan)}
    assert str(compare(nan, reference)) == "wrong: 12 of 12 deltas differ"
    other = near | {"labels": np.array([1, 1, -1])}
    assert str(compare(other, reference)) == "wrong: 1 of 3 labels differ"


def result(milliseconds, check="equal"):
    return {"check": check, **summary([milliseconds / 1e3, milliseconds / 500])}


def test_a_wrong_peer_is_said_to_be_wrong_beside_its_time(tmp_path):
    wrong = "wrong: 3 of 9 kept differ"
    rows = [
        {
            "case": f"nms/{n}",
            "note": "",
            "x": ("nms: boxes", n),
            "results": {
                "rpn_jax": result(n),
                "torchvision": result(2 * n, wrong),
                "keras-hub": {"error": "ValueError: no"},
            },
        }
        for n in (10, 100)
    ]
    who = {"rpn_jax": {"jax": "1"}, "torchvision": {"torch": "2"}, "keras-hub": {}}
    report = {"machine": {"cores": 2}, "participants": who, "rows": rows}
    assert "ratio 0.5" in line(rows[0]) and wrong in line(rows[0])
    table = markdown(report)
    assert f"| nms/10 | 15 | 30 ({wrong}) | 0.5 | error |  |" in table
    assert "ValueError: no" in table
    draw(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_inputs_are_what_their_names_say():
    sizes = [len(level) for level in inputs.pyramid(800, 1088)]
    assert sizes == [163200, 40800, 10200, 2550, 663]
    for regime in inputs.REGIMES:
        boxes, scores = inputs.nms_boxes(regime, 100)
        assert boxes.shape == (100, 4) and scores.shape == (100,)
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        ordered, descending = inputs.by_score(boxes, scores)
        assert (np.diff(descending) <= 0).all()
        assert sorted(map(tuple, ordered)) == sorted(map(tuple, boxes))


def test_every_case_has_a_name_of_its_own():
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names) > 90


def test_what_is_asked_for_must_exist(tmp_path):
    with pytest.raises(UsageError, match="no such case"):
        benchmark.main(["--only", "nothing", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        benchmark.main(["--peer", "unknown=python3"])


@pytest.mark.slow
def test_a_quick_run_writes_all_and_names_who_is_absent(tmp_path, capsys):
    only = r"nms/rpn/\d+$|topk|sample|encode|whole/1 objects|(decode|trained)/batch 1"
    only += "|roi/2 samples|network/proposals"
    missing = [f"{x}={tmp_path / 'python'}" for x in ("torchvision", "keras-hub")]
    peers = [option for peer in missing for option in ("--peer", peer)]
    arguments = ["--quick", "--only", only, "--out", str(tmp_path), *peers]
    assert benchmark.main(arguments) == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert len(report["rows"]) == 12
    for row in report["rows"]:
        ours = row["results"]["rpn_jax"]
        assert ours["check"] == "equal" and len(ours["samples"]) == 2
        assert ours["compile_s"] > 0 and ours["temp_bytes"] >= 0
    assert "numpy" in report["rows"][0]["results"]
    table = (tmp_path / "benchmark.md").read_text()
    for name in ("torchvision", "torch.compile", "keras-hub"):
        assert f"* {name}: absent" in table
    assert (tmp_path / "benchmark.png").stat().st_size > 1000
    assert "absent" in capsys.readouterr().out
