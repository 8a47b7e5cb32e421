"""Train a region proposal network, or a detector around one.

usage: python -m experiments.train CONFIG [--field value ...] --workdir DIR

CONFIG names a file of `experiments/configs`; `--help` lists them and every field. The
work folder gets `config.json`, `metrics.jsonl`, `checkpoints/` (the last and the best),
`weights.npz` (the best, for `experiments.propose` and `rpn_jax.predict`),
`results.json` and `proposals.png`. Started again, a run goes on from its last
checkpoint to the same end.
"""

import dataclasses
import json
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import jax

from experiments.compilations import Compilations
from experiments.config import (
    TrainConfig,
    UsageError,
    classes_of,
    exit_with,
    parse_config,
    refuse_many_processes,
    same_run,
    use_compilation_cache,
)
from experiments.cost import report
from experiments.data import open_source, train_batches
from experiments.evaluate import Evaluation, Evaluator, draw_examples, table
from experiments.trace import Trace
from rpn_jax.faster_rcnn import make_network
from rpn_jax.pretrained import load, overlay, save_params_npz
from rpn_jax.training.checkpoint import Checkpoints
from rpn_jax.training.config import config_to_json
from rpn_jax.training.mesh import data_mesh, put_batch, replicated
from rpn_jax.training.metrics import MetricsWriter, NonFiniteError
from rpn_jax.training.optimizer import learning_rate, make_optimizer
from rpn_jax.training.state import TrainState, create_state, inference_params
from rpn_jax.training.step import make_train_step

PARTS = ("backbone", "rpn", "box_head", "box_predictor")
"""What a network consists of, by the names of its parameters."""


def main(argv: Sequence[str]) -> int:
    """Train as the command line says; return the exit code."""
    config = parse_config(argv)
    use_compilation_cache()
    if config.dry_run:
        print(report(config, setup))
        return 0
    try:
        train(config)
    except NonFiniteError as error:
        print(
            f"error: stopped, {error}; the last good checkpoint is kept. A lower --lr "
            "or a longer --optimizer.warmup may help, in another --workdir"
        )
        return 1
    return 0


def train(config: TrainConfig) -> None:
    """Run `config`, or the rest of it.

    Raises:
        UsageError: what the configuration names is not there or does not fit.
        NonFiniteError: a loss is NaN or infinite.
    """
    compilations = Compilations()
    mesh, state, train_step, data, evaluate = setup(config)
    train_step = compilations.explain(train_step)
    workdir = config.workdir
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        if checkpoints.last is not None:
            state, position = checkpoints.restore(state)
            data.set_state(position)
            print(f"resumed from step {checkpoints.last}")
        writer = MetricsWriter(
            workdir / "metrics.jsonl",
            start=int(state.step),
            steps=config.steps,
            batch=config.batch,
            log_every=config.log_every,
            tensorboard=workdir / "tensorboard" if config.tensorboard else None,
        )
        result = None
        trace = Trace(config, first=int(state.step) + 1)
        with writer, closing(data), Terminated() as terminated, trace:
            for step in range(int(state.step) + 1, config.steps + 1):
                with trace.step(step):
                    state, metrics = train_step(state, put_batch(mesh, next(data)))
                writer.step(step, metrics)

                last, every = step == config.steps, config.eval.every
                measure = last or (every > 0 and step % every == 0)
                if measure:
                    result = evaluate(inference_params(state))
                if measure or terminated or step % config.save_every == 0:
                    figures = result.figures if measure and result else None
                    # Raises where a loss is not finite, before anything is saved.
                    writer.flush(figures)
                    checkpoints.save(state, data.get_state(), figures)
                if terminated and not last:
                    print(f"stopped at step {step}; the same command goes on from here")
                    return
        print(compilations.report())
        finish(config, state, checkpoints, evaluate, result)


class Setup(NamedTuple):
    """What a run is made of; `state` is that of step 0."""

    mesh: jax.sharding.Mesh
    state: TrainState
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    data: Any
    evaluate: Evaluator


def setup(config: TrainConfig, mesh: jax.sharding.Mesh | None = None) -> Setup:
    """Open the data, make the work folder, initialise the network.

    Args:
        config: of the run.
        mesh: devices to use; all by default.

    Raises:
        UsageError: what the configuration names is not there or does not fit.
    """
    refuse_many_processes()
    classes = classes_of(config.model)
    source, val_source = (
        open_source(config.data, split, classes=classes) for split in ("train", "val")
    )
    weights = load_weights(config)
    mesh = data_mesh() if mesh is None else mesh
    if config.batch % mesh.size:
        raise UsageError(
            f"--batch {config.batch} cannot be split evenly over {mesh.size} devices"
        )
    config.workdir.mkdir(parents=True, exist_ok=True)
    same_run(config.workdir, config)
    sizes = ", ".join(f"{h} x {w}" for h, w in config.data.padded_sizes)
    print(
        f"{len(source)} images to train on, {len(val_source)} to evaluate on, "
        f"padded to {sizes}"
    )
    if not weights:
        print("the trunk starts from random weights; --weights FILE gives it others")

    model = make_network(config.model)
    rate = learning_rate(config.optimizer, lr=config.lr, steps=config.steps)
    optimizer = make_optimizer(
        config.optimizer,
        lr=config.lr,
        steps=config.steps,
        freeze=config.model.freeze,
    )
    init_key, step_key = jax.random.split(jax.random.key(config.seed))

    def init(key: jax.Array, weights: Any) -> TrainState:
        params = model.init(key, image_size=config.data.padded_sizes[0])
        params = overlay(params, weights)
        return create_state(params, optimizer, ema=config.optimizer.ema > 0)

    state = jax.jit(init, out_shardings=replicated(mesh))(init_key, weights)
    ema = config.optimizer.ema
    train_step = make_train_step(
        model.loss, optimizer, key=step_key, mesh=mesh, rate=rate, ema=ema
    )
    data = train_batches(source, config.data, batch=config.batch, seed=config.seed)
    evaluate = Evaluator(model, val_source, config.data, config.eval, mesh)
    return Setup(mesh, state, train_step, data, evaluate)


def finish(
    config: TrainConfig,
    state: TrainState,
    checkpoints: Checkpoints,
    evaluate: Evaluator,
    result: Evaluation | None,
) -> None:
    """Write the best weights, their figures and a picture; print where all lies.

    Args:
        config: of the run.
        state: at its end.
        checkpoints: of the run.
        evaluate: measures weights.
        result: what it gave for `state`, if that was measured already.
    """
    params, step, best = inference_params(state), int(state.step), checkpoints.best
    if best is not None and best != step:
        averaged = config.optimizer.ema > 0
        params = checkpoints.restore_params(state.params, step=best, ema=averaged)
        step, result = best, None
        print(f"the best checkpoint is that of step {best}")
    if result is None:
        result = evaluate(params)
    workdir = config.workdir
    # Where the data lay is no business of those who get the file.
    metadata = {
        "model": config_to_json(config.model),
        "data": config_to_json(dataclasses.replace(config.data, root=None)),
    }
    save_params_npz(workdir / "weights.npz", params, metadata)
    figures = {"step": step, **result.figures}
    (workdir / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    if result.examples:
        draw_examples(workdir / "proposals.png", result.examples)
        print(f"picture     {workdir / 'proposals.png'}")
    print(f"weights     {workdir / 'weights.npz'}")
    if checkpoints.last is not None:  # a run of no steps has none
        print(f"checkpoint  {workdir / 'checkpoints' / str(step)}")
    # Last, for those who read the last lines.
    print(table(result))


def load_weights(config: TrainConfig) -> dict[str, Any]:
    """Read what `--weights` has for the network of `config`; nothing without it.

    Of a file that is not of the whole network those parts are taken that fit, the
    backbone at least: the RPN of an earlier run into a detector, a trunk under another
    head.

    Raises:
        UsageError: there is no such file, it is of another kind, or does not fit.
    """
    if config.weights is None:
        return {}
    try:
        loaded = load(config.weights, config=config.model)
    except (FileNotFoundError, ImportError) as error:
        raise UsageError(f"--weights: {error}") from error
    except ValueError as error:
        params, taken = {}, []
        for part in PARTS:
            try:
                found = load(config.weights, config=config.model, parts=[part])
            except ValueError:
                continue
            params, taken = overlay(found.params, params), [*taken, part]
        if "backbone" not in taken:
            raise UsageError(f"--weights: {error}") from error
        print(f"weights: taken are {', '.join(taken)}; the rest starts at random")
        return params
    print(f"weights: {loaded.report}")
    return loaded.params


class Terminated:
    """Is true once the process was asked to stop, by SIGTERM or the first Ctrl-C."""

    def __enter__(self):
        """Catch the signals."""
        self._asked = False
        self._before = {
            number: signal.signal(number, self._ask)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_):
        """Leave the signals to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self):
        return self._asked

    def _ask(self, number: int, _):
        self._asked = True
        if number == signal.SIGINT:  # a second one interrupts at once
            signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    exit_with(main)
