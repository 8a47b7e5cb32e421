"""Configs as json, beside every checkpoint and within every weight file."""

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def config_to_json(config: Any) -> Any:
    """Turn a dataclass, with all that it holds, into values that `json` writes.

    Example:
        >>> from rpn_jax.training.optimizer import OptimizerConfig
        >>> config_to_json(OptimizerConfig())["milestones"]
        [0.6666666666666666, 0.8888888888888888]
    """
    if dataclasses.is_dataclass(config):
        fields = dataclasses.fields(config)
        return {f.name: config_to_json(getattr(config, f.name)) for f in fields}
    if isinstance(config, Path) or (isinstance(config, float) and math.isinf(config)):
        return str(config)
    return [config_to_json(v) for v in config] if isinstance(config, tuple) else config


def config_from_json(kind: type[T], values: dict[str, Any]) -> T:
    """Build the dataclass `kind` from what `config_to_json` made of one.

    Fields that `values` lacks get their defaults.

    Raises:
        ValueError: `values` holds a field that `kind` does not know.
    """
    hints = typing.get_type_hints(kind)
    unknown = set(values) - {f.name for f in dataclasses.fields(kind)}  # type: ignore
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    return kind(**{name: _value(hints[name], v) for name, v in values.items()})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [h for h in typing.get_args(hint) if h is not type(None)]
        hint = options[0] if len(options) == 1 else _kind_of(value, options)
    if value is None:
        return None
    if dataclasses.is_dataclass(hint):
        return config_from_json(typing.cast(type, hint), value)
    if hint is Path:
        return Path(value)
    if hint is float:
        return float(value)
    return _tuples(value)


def _kind_of(value: Any, options: list[Any]) -> Any:
    """Choose among dataclasses the one that has the fields of `value`."""
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            if set(value) <= {f.name for f in dataclasses.fields(option)}:
                return option
    return Any


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
