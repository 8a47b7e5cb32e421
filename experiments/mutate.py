"""Random damage to bytes and to values of json, for `fuzz`."""

import copy
from typing import Any

import numpy as np

ODD_VALUES = (
    None,
    True,
    "",
    "x",
    "12",
    "../x",
    "\x00",
    "\ud800",
    "x" * 5000,
    0,
    -1,
    1,
    2**31,
    -(2**63),
    10**400,
    0.5,
    -0.0,
    5e-324,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    [],
    {},
    [[]],
    [1, 2, 3, 4],
    {"id": 1},
)


def mutate_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip, overwrite, cut, repeat or insert bytes at one or a few places."""
    result = bytearray(data)
    for _ in range(rng.geometric(0.6)):
        at, end = sorted(rng.integers(0, len(result) + 1, 2).tolist())
        end = min(end, at + int(rng.integers(1, 64)))
        noise = rng.bytes(int(rng.integers(1, 9)))
        match rng.integers(12):
            case 0 | 1 | 2 | 3 if at < len(result):
                result[at] ^= 1 << int(rng.integers(8))
            case 4 | 5:
                result[at : at + len(noise)] = noise
            case 6:
                del result[at:]
            case 7 | 8:
                del result[at:end]
            case 9:
                result[at:at] = result[at:end] * int(rng.integers(1, 5))
            case _:
                result[at:at] = noise
    return bytes(result)


def mutate_value(rng: np.random.Generator, value: Any) -> Any:
    """Replace, remove or repeat one or a few parts of a value that json can hold."""
    value = copy.deepcopy(value)
    for _ in range(rng.geometric(0.6)):
        value = _mutate_one(rng, value)
    return value


def odd_value(rng: np.random.Generator) -> Any:
    """Draw one of the values that nobody expects."""
    return copy.deepcopy(ODD_VALUES[rng.integers(len(ODD_VALUES))])


def _mutate_one(rng: np.random.Generator, value: Any) -> Any:
    if not isinstance(value, list | dict) or not value or rng.random() < 0.1:
        return odd_value(rng)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[rng.integers(len(keys))]
    choice = rng.random()
    if choice < 0.1:
        del value[key]
    elif choice < 0.2 and isinstance(value, list):
        value.append(copy.deepcopy(value[key]))
    elif choice < 0.3 and isinstance(value, dict):
        value[key] = value[keys[rng.integers(len(keys))]]
    else:
        value[key] = _mutate_one(rng, value[key])
    return value
