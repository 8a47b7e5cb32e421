"""Rules that hold for every public function, now and for those still to come."""

import inspect
import re
from collections.abc import Callable

import pytest

import rpn_jax

PUBLIC = {name: getattr(rpn_jax, name) for name in rpn_jax.__all__}
FUNCTIONS = {name: f for name, f in PUBLIC.items() if inspect.isfunction(f)}
RESULTS = {
    name: c
    for name, c in PUBLIC.items()
    if inspect.isclass(c) and issubclass(c, tuple) and hasattr(c, "_fields")
}
# Arrays that may be left out stand beside the arrays that they belong to.
OPTIONAL_ARRAYS = {"valid", "ignore", "groups", "gt_valid", "gt_ignore"}

each_function = pytest.mark.parametrize(
    "function", [pytest.param(f, id=name) for name, f in FUNCTIONS.items()]
)
each_result = pytest.mark.parametrize(
    "result", [pytest.param(c, id=name) for name, c in RESULTS.items()]
)


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def sections(docstring: str) -> dict[str, str]:
    """Split a Google docstring at its headings; the text before them is ''."""
    found = {"": ""}
    heading = ""
    for line in inspect.cleandoc(docstring).splitlines():
        if match := re.fullmatch(r"([A-Z][A-Za-z]+):", line):
            heading = match[1]
            found[heading] = ""
        else:
            found[heading] += line + "\n"
    return found


def documented_names(text: str) -> list[str]:
    """Names of the entries of an Args or Attributes section, at its own depth."""
    names = []
    for line in text.splitlines():
        if match := re.match(r" {4}(?! )([*\w, ]+?)(?: \([^)]*\))?:(?:\s|$)", line):
            names += [name.strip(" *") for name in match[1].split(",")]
    return names


def test_all_is_sorted_and_free_of_doubles():
    assert list(rpn_jax.__all__) == sorted(set(rpn_jax.__all__))


def test_all_is_complete():
    here = {
        name
        for name, value in vars(rpn_jax).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", "").startswith("rpn_jax")
    }
    assert here == set(PUBLIC) - {"__version__"}


def test_functions_were_found():
    assert {"box_iou", "nms", "match_anchors", "generate_proposals"} <= set(FUNCTIONS)


@each_function
def test_first_line_is_imperative_and_ends_in_a_period(function):
    first = (function.__doc__ or "").splitlines()[0]
    assert first.endswith(".")
    verb = first.split()[0]
    assert verb[0].isupper()
    # "Computes", "Computing" and "Returns the" are no orders.
    assert not re.search(r"(ing|[^s]s)$", verb) or verb in {"Process", "Focus"}


@each_function
def test_every_parameter_is_documented(function):
    documented = documented_names(sections(function.__doc__).get("Args", ""))
    assert documented == list(parameters(function))


@each_function
def test_result_is_documented(function):
    assert {"Returns", "Yields"} & set(sections(function.__doc__))


@each_function
def test_docstring_holds_an_example(function):
    assert ">>>" in function.__doc__


@each_function
def test_coordinates_are_named(function):
    if any("boxes" in name or "anchors" in name for name in parameters(function)):
        assert "xyxy" in function.__doc__


@each_function
def test_key_comes_first(function):
    names = list(parameters(function))
    assert "rng" not in names
    assert "key" not in names[1:]


@each_function
def test_options_are_keyword_only(function):
    for name, parameter in parameters(function).items():
        if parameter.default is not parameter.empty and name not in OPTIONAL_ARRAYS:
            assert parameter.kind is parameter.KEYWORD_ONLY, name


@each_function
def test_annotations_are_complete(function):
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty
    for name, parameter in signature.parameters.items():
        assert parameter.annotation is not parameter.empty, name


@each_result
def test_results_document_their_fields(result):
    fields = documented_names(sections(result.__doc__).get("Attributes", ""))
    assert fields == list(result._fields)
