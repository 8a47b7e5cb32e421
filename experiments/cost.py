"""What a run costs before anything is trained: `experiments.train CONFIG --dry-run`."""

import dataclasses
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.collectives import collectives
from experiments.compilations import Compilations
from experiments.config import TrainConfig
from rpn_jax.batch import Batch
from rpn_jax.faster_rcnn import FasterRCNN, first_stage, make_network
from rpn_jax.models import frozen_mask
from rpn_jax.rpn import normalize_images, rpn_modules
from rpn_jax.training.mesh import put_batch
from rpn_jax.training.metrics import duration

AHEAD = 10
"""Batches that may lie ready when timing starts; they are used up first."""

NOTES = """\
Computed by XLA, of each program as it was compiled, for one device:
  GFLOP     of a loop its body once, however often it runs (matching, NMS, RoIAlign,
            the parts of --accumulate); top-k and other library calls as nothing; of a
            convolution only what does not fall on its padding
  GB        what all instructions read and write; caches are not thought of
  the rest  MiB: results that are "in place" lie where arguments lay, temporaries are
            needed while the program runs
Measured: seconds to trace and to compile (* read from the cache now; the seconds are
those of the time when it was compiled); the step, from a batch on the device to its
result; the input, with nothing else running."""


class Program(NamedTuple):
    """What is known of a compiled program, of its part on one device.

    Attributes:
        name: what it does.
        trace: seconds until XLA had it.
        compile: seconds of XLA.
        cached: it was compiled earlier, and read now.
        flops: floating-point operations, None where XLA says nothing.
        bytes: that instructions read and write, None likewise.
        arguments: bytes of its arguments.
        outputs: bytes of its results.
        aliased: bytes of the results that lie where arguments lay.
        temporaries: bytes that it needs while it runs.
    """

    name: str
    trace: float
    compile: float
    cached: bool
    flops: float | None
    bytes: float | None
    arguments: int
    outputs: int
    aliased: int
    temporaries: int


class Input(NamedTuple):
    """What was read to see how fast that goes.

    Attributes:
        batches: the first batch of each padded size.
        counts: how many of each size there were.
        seconds: a batch, on average.
    """

    batches: dict[tuple[int, int], Batch]
    counts: dict[tuple[int, int], int]
    seconds: float


def report(config: TrainConfig, setup: Callable[[TrainConfig], Any]) -> str:
    """Say what `config` costs; no file is left behind.

    Args:
        config: of the run.
        setup: opens a run, as `experiments.train.setup` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = setup(dataclasses.replace(config, workdir=Path(folder)))
        with closing(run.batches(0)) as data:
            # Workers read ahead, each for itself.
            ahead = AHEAD * (config.data.workers + 1)
            read = read_input(data, ahead=ahead)
    mesh, state, sizes = run.mesh, run.state, config.data.padded_sizes
    parts = [
        f"{config.steps} steps of {config.batch} images on {mesh.size} x "
        f"{mesh.devices.flat[0].device_kind}, jax {jax.__version__}",
        parameters(config, state.params),
        memory(state),
    ]
    batch = put_batch(mesh, next(iter(read.batches.values())))
    largest = max(sizes, key=math.prod)
    parts.append(anchors(config, state.params, [resized(batch, s) for s in sizes]))

    model = make_network(config.model)
    programs = stages(model, mesh, state.params, resized(batch, largest))
    seconds, talk = {}, ""
    for size in sizes:
        name = f"training step {by(size)}"
        program, step = compiled(name, run.train_step, state, resized(batch, size))
        programs.append(program)
        if size == largest:
            talk = _talk(step)
        if size in read.batches:
            placed = put_batch(mesh, read.batches[size])
            state, times = time_steps(step, state, placed)
            seconds[size] = statistics.median(times)
    parts += [_programs(programs, largest), talk, _speed(config, read, seconds), NOTES]
    return "\n\n".join(part for part in parts if part)


def read_input(data: Any, batches: int = 20, ahead: int = AHEAD) -> Input:
    """Read batches as fast as they come.

    Args:
        data: the iterator of a run.
        batches: how many to time.
        ahead: how many to read before that.
    """
    first, counts, start = {}, Counter(), 0.0
    for i in range(ahead + batches):
        if i == ahead:
            start = time.perf_counter()
        batch = next(data)
        size = batch.images.shape[1:3]
        first.setdefault(size, batch)
        counts[size] += 1
    return Input(first, counts, (time.perf_counter() - start) / batches)


def time_steps(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Any,
    *,
    most: int = 20,
    seconds: float = 10.0,
) -> tuple[Any, list[float]]:
    """Time single steps on one batch, after one that is not counted.

    Args:
        step: the training step.
        state: donated.
        batch: on the devices.
        most: steps at most; at least three are run.
        seconds: to spend, roughly.

    Returns:
        The state after them, and the seconds of each.
    """
    state, _ = jax.block_until_ready(step(state, batch))
    times: list[float] = []
    while len(times) < 3 or (len(times) < most and sum(times) < seconds):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - start)
    return state, times


def compiled(name: str, function: Any, *args: Any) -> tuple[Program, Any]:
    """Compile a jitted function, and take down what that says of it.

    Args:
        name: for the report.
        function: has `lower`.
        args: arrays, or their shapes.

    Returns:
        The description, and the compiled function.
    """
    start = time.perf_counter()
    lowered = function.lower(*args)
    trace, heard = time.perf_counter() - start, Compilations()
    result = lowered.compile()
    (compilation,) = heard.programs
    costs, memory = result.cost_analysis() or {}, result.memory_analysis()

    def cost(key: str) -> float | None:
        value = costs.get(key, -1.0)
        return value if value >= 0 else None

    program = Program(
        name,
        trace,
        compilation.compiling,
        compilation.cached,
        cost("flops"),
        cost("bytes accessed"),
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
    )
    return program, result


def stages(model: Any, mesh: Any, params: Any, batch: Batch) -> list[Program]:
    """Compile the network up to each stage, a program each.

    Args:
        model: an `RPN` or a `FasterRCNN`.
        mesh: that they lie on.
        params: the variables dict.
        batch: to train on, arrays or shapes.
    """
    key = jax.random.key(0)

    def find(function: Callable[..., Any]):
        def call(params, batch: Batch):
            scales = {"image_scales": batch.scales.mean(axis=1)}
            return function(params, batch.images, batch.image_sizes, **scales)

        return call

    def heads(params, batch: Batch):
        return first_stage(model)(params, batch.images, batch.image_sizes)

    def loss(params, batch: Batch):
        return model.loss(key, params, batch)[0]

    def gradient(params, batch: Batch):
        trained = params["params"]
        return jax.value_and_grad(
            lambda trained: loss({**params, "params": trained}, batch)
        )(trained)

    inference = {"proposals": find(model.propose)}
    if isinstance(model, FasterRCNN):
        inference["detections"] = find(model.detect)
    training = {"loss": loss, "loss and gradient": gradient}
    programs = []
    for name, function in {"backbone": trunk(model), "heads": heads}.items():
        programs.append(compiled(name, jax.jit(function), params, batch)[0])
    with jax.set_mesh(mesh):  # each device proposes for its own images
        for name, function in inference.items():
            programs.append(compiled(name, jax.jit(function), params, batch)[0])
    for name, function in training.items():
        programs.append(compiled(name, jax.jit(function), params, batch)[0])
    return programs


def trunk(model: Any) -> Callable[[Any, Batch], Any]:
    """Return the function of (params, batch) to the backbone's maps."""
    config = model.config.rpn if isinstance(model, FasterRCNN) else model.config
    backbone, _ = rpn_modules(config)

    def maps(params, batch: Batch):
        images = (batch.images, batch.image_sizes)
        own = {k: v["backbone"] for k, v in params.items() if "backbone" in v}
        return backbone.apply(own, normalize_images(*images, config.convention.image))

    return maps


def parameters(config: TrainConfig, params: Any) -> str:
    """Lay out the parameters by part of the network."""
    trained = params["params"]
    frozen = frozen_mask(trained, config.model.freeze)
    rows = [("part", "parameters", "of which trained", "MiB")]
    total = [0, 0, 0]
    for part in trained:
        leaves = jax.tree.leaves(trained[part])
        masks = jax.tree.leaves(frozen[part])
        counts = [
            sum(x.size for x in leaves),
            sum(x.size for x, still in zip(leaves, masks, strict=True) if not still),
            sum(x.nbytes for x in leaves),
        ]
        total = [x + y for x, y in zip(total, counts, strict=True)]
        rows.append((part, f"{counts[0]:,}", f"{counts[1]:,}", mib(counts[2])))
    rows.append(("all", f"{total[0]:,}", f"{total[1]:,}", mib(total[2])))
    return columns(rows)


def memory(state: Any) -> str:
    """Say what the state of a run takes on each device, which it does all the time."""

    def held(tree: Any) -> str:
        shards = [x.addressable_shards[0].data for x in jax.tree.leaves(tree)]
        return f"{mib(sum(x.nbytes for x in shards))} MiB"

    average = f", moving average {held(state.ema)}" if state.ema is not None else ""
    return (
        f"state on each device: parameters {held(state.params)}, optimizer "
        f"{held(state.opt_state)}{average}"
    )


def anchors(config: TrainConfig, params: Any, batches: Sequence[Batch]) -> str:
    """Lay out the anchors by level, for batches of each padded size."""
    model = make_network(config.model)
    rows = [("padded to", "level", "stride", "grid", "sizes", "ratios", "anchors")]
    for batch in batches:
        maps = jax.eval_shape(trunk(model), params, batch)
        images = (batch.images, batch.image_sizes)
        found = jax.eval_shape(first_stage(model), params, *images).anchors
        padded = by(batch.images.shape[1:3])
        for level, (grid, boxes) in enumerate(zip(maps, found, strict=True)):
            sizes = " ".join(f"{size:g}" for size in config.rpn.sizes[level])
            ratios = " ".join(f"{ratio:g}" for ratio in config.rpn.ratios)
            number, stride = f"{len(boxes):,}", str(config.rpn.strides[level])
            row = (padded, str(level), stride, by(grid.shape[1:3]))
            rows.append((*row, sizes, ratios, number))
        total = sum(len(boxes) for boxes in found)
        rows.append((padded, "all", "", "", "", "", f"{total:,}"))
    return columns(rows)


def _programs(programs: Sequence[Program], size: tuple[int, int]) -> str:
    head = "program|trace, s|compile, s|GFLOP|GB|arguments|results|in place"
    rows = [[*head.split("|"), "temporaries", "together"]]
    for p in programs:
        together = p.arguments + p.outputs - p.aliased + p.temporaries
        sizes = (p.arguments, p.outputs, p.aliased, p.temporaries, together)
        costs = ["-" if x is None else f"{x / 1e9:.2f}" for x in (p.flops, p.bytes)]
        seconds = [f"{p.trace:.1f}", f"{p.compile:.1f}{'*' if p.cached else ''}"]
        rows.append([p.name, *seconds, *costs, *(mib(x) for x in sizes)])
    return (
        f"each program from the images on, {by(size)} where nothing else is said\n"
        f"{columns(rows)}"
    )


def _talk(step: Any) -> str:
    """Say what the devices send each other in a step."""
    found = collectives(step.as_text())
    lines = [f"  {c.kind} {c.count} x, {mib(c.bytes)} MiB in all" for c in found]
    return "\n".join(["between devices, each step:", *lines]) if lines else ""


def _speed(
    config: TrainConfig, read: Input, seconds: dict[tuple[int, int], float]
) -> str:
    """Say what was measured, and how long the run will take at least."""
    lines = ["measured, images/s"]
    for size, step in seconds.items():
        lines.append(f"  step alone   {config.batch / step:8.1f}  {by(size)}")
    how = "workers" if config.data.workers else "threads"
    number = config.data.workers or config.data.threads
    rate = config.batch / jax.process_count() / read.seconds
    lines.append(f"  input alone  {rate:8.1f}  {how} {number}")
    batches = sum(read.counts[size] for size in seconds)
    step = sum(read.counts[size] * s for size, s in seconds.items()) / batches
    whole = duration(config.steps * max(step, read.seconds))
    lines.append(f"so the {config.steps} steps take {whole} or more, evaluation apart")
    return "\n".join(lines)


def resized(batch: Batch, size: tuple[int, int]) -> Batch:
    """Return the shapes of a batch whose images are padded to `size`."""

    def shape(x: jax.Array, dimensions: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dimensions, x.dtype, sharding=x.sharding)

    images = shape(batch.images, (batch.images.shape[0], *size, 3))
    return Batch(*(shape(x, x.shape) for x in batch))._replace(images=images)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def by(size: Sequence[int]) -> str:
    """Write a size."""
    return f"{size[0]} x {size[1]}"


def mib(number: int) -> str:
    """Write bytes as MiB."""
    return f"{number / 2**20:.1f}"
