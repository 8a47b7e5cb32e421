"""Read from a compiled program what its devices say to each other.

XLA's text of a program has an instruction a line, grouped into computations:

    %all-reduce = f32[32,16]{1,0} all-reduce(%dot.1), channel_id=1, to_apply=%add
"""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"([a-z]+\d*)[a-z0-9]*\[([\d,]*)\]")
_CALLED = re.compile(
    r"(body|condition|calls|to_apply|branch_computations|true_computation|"
    r"false_computation|called_computations)=(\{[^}]*\}|%?[\w.-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
    """All collectives of one kind in a program.

    Attributes:
        kind: one of `KINDS`.
        count: how many run, each time that the program does.
        bytes: of the whole arrays that they reduce, gather or move, on each device: of
            an all-gather what comes out, of the others what goes in. How much of this
            crosses a wire depends on the algorithm (see `experiments.scaling`).
        looped: some are in loops of unknown length, and counted once.
    """

    kind: str
    count: int
    bytes: int
    looped: bool = False


class _Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    rest: str


def collectives(text: str) -> list[Collective]:
    """Count the collectives of a program, by kind.

    What stands in a loop counts as often as it runs, where XLA knows that.

    Args:
        text: `compiled.as_text()`.
    """
    entry, computations = _parse(text)
    runs = _runs(entry, computations)
    found: dict[str, Collective] = {}
    for name, instructions in computations.items():
        times, known = runs.get(name, (0, True))
        sizes = {i.name: sum(_sizes(i.shape)) for i in instructions}
        for instruction in instructions:
            kind = instruction.op.removesuffix("-start")
            if kind not in KINDS or not times:
                continue
            old = found.get(kind, Collective(kind, 0, 0))
            found[kind] = Collective(
                kind,
                old.count + times,
                old.bytes + times * _bytes(instruction, sizes),
                old.looped or not known,
            )
    return [found[kind] for kind in KINDS if kind in found]


def _parse(text: str) -> tuple[str, dict[str, list[_Instruction]]]:
    """Split a program into the name of its first computation, and all of them."""
    entry, name, computations = "", "", {}
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            name = head[2]
            entry = name if head[1] else entry
            computations[name] = []
        instruction = _INSTRUCTION.match(line)
        if instruction and name:
            computations[name].append(_Instruction(*instruction.groups()))
    return entry, computations


def _runs(
    entry: str, computations: dict[str, list[_Instruction]]
) -> dict[str, tuple[int, bool]]:
    """Tell how often each computation runs, and whether that is known."""
    runs: dict[str, tuple[int, bool]] = {}

    def visit(name: str, times: int, known: bool) -> None:
        before = runs.get(name, (0, True))
        runs[name] = (before[0] + times, before[1] and known)
        for instruction in computations.get(name, []):
            trips = _TRIPS.search(instruction.rest)
            loop = instruction.op == "while"
            for role, called in _CALLED.findall(instruction.rest):
                inside = int(trips[1]) if loop and trips and role == "body" else 1
                for callee in re.findall(r"[\w.-]+", called):
                    visit(callee, times * inside, known and not (loop and not trips))

    visit(entry, 1, True)
    return runs


def _bytes(instruction: _Instruction, sizes: dict[str, int]) -> int:
    """Return the bytes of a collective's operands, or of an all-gather's result."""
    operands = re.findall(r"%([\w.-]+)", instruction.rest.split(")")[0])
    going_in = sum(sizes[name] for name in operands)
    if instruction.op == "all-gather":
        return sizes[instruction.name]
    if instruction.op == "all-gather-start":  # its result is (operands, results)
        return sizes[instruction.name] - going_in
    return going_in


def _sizes(shape: str) -> list[int]:
    """Return the bytes of each array of a shape such as `(f32[2,4]{1,0}, u8[])`."""
    return [
        math.prod(int(d) for d in dims.split(",") if d) * _width(kind)
        for kind, dims in _ARRAY.findall(shape)
    ]


def _width(kind: str) -> int:
    """Return the bytes of an element: `f32` 4, `bf16` 2, `pred` 1."""
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else (1 if kind == "pred" else 0)
