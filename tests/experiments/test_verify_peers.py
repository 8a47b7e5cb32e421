import numpy as np
import pytest

from experiments.config import UsageError
from experiments.verify_peers import Found, difference, main, run_peer

BOXES = np.array([[0, 0, 10, 10], [5, 5, 20, 30]], np.float32)


def found(boxes, labels=None):
    scores = np.linspace(0.9, 0.1, len(boxes), dtype=np.float32)
    return Found(boxes, scores, np.zeros(len(boxes), int) if labels is None else labels)


def test_boxes_are_paired_and_what_is_alone_is_counted():
    near = found(BOXES + np.float32(0.005))
    assert difference(near, found(BOXES)).startswith("2; 5.0e-03 px; 0.0e+00")
    assert difference(near, found(BOXES[:1])).startswith("1, 1 alone; 5.0e-03 px")
    other = found(BOXES, np.array([0, 1]))
    assert difference(other, found(BOXES)).startswith("2, 2 alone")
    assert difference(found(BOXES + 1), found(BOXES)) == "2 kept, none alike"
    assert difference(found(BOXES[:1]), found(BOXES[:0])) == "0 kept, none alike"
    assert difference(found(BOXES[:0]), found(BOXES[:0])) == "0"
    assert difference(None, None) == "-"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a peer is wanted"),
        (["--torchvision", "python", "--only", "resnet50"], "invalid choice"),
        (["--torchvision", "python", "b/1.jpg"], "two have the same name"),
    ],
)
def test_a_command_that_would_compare_nothing_is_refused(arguments, message, capsys):
    more = [x for x in arguments if x.endswith(".jpg")]
    rest = [x for x in arguments if x not in more]
    with pytest.raises(SystemExit):
        main(["--images", "a/1.jpg", *more, *rest])
    assert message in capsys.readouterr().err


def test_a_python_that_is_none_is_named(tmp_path):
    with pytest.raises(UsageError, match="no/python is no Python"):
        run_peer("no/python", "fasterrcnn_resnet50_fpn", [], tmp_path)
