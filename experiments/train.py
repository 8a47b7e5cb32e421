"""Train a region proposal network, or a detector around one.

usage: python -m experiments.train CONFIG [--field value ...] --workdir DIR

CONFIG names a file of `experiments/configs`; `--help` lists them and every field. The
work folder gets `config.json`, `metrics.jsonl`, `checkpoints/` (the last and the best),
`weights.npz` (the best, for `experiments.propose` and `rpn_jax.predict`),
`results.json` and `proposals.png`. Started again, a run goes on from its last
checkpoint to the same end. Asked to stop by SIGTERM or Ctrl-C it saves first, and exits
with 143 or 130. On several hosts start the same command on each; see --hosts.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import jax

from experiments.compilations import Compilations
from experiments.config import (
    TrainConfig,
    UsageError,
    as_one_of,
    classes_of,
    exit_with,
    parse_config,
    same_run,
    use_compilation_cache,
)
from experiments.cost import report
from experiments.data import open_source, train_batches
from experiments.evaluate import Evaluation, Evaluator, draw_examples, table
from experiments.trace import Trace
from rpn_jax.faster_rcnn import make_network
from rpn_jax.pretrained import load, overlay, save_params_npz
from rpn_jax.training.checkpoint import Checkpoints, best_figure
from rpn_jax.training.config import config_to_json
from rpn_jax.training.hosts import Stop
from rpn_jax.training.mesh import data_mesh, gather, put_batch, state_shardings
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
    with as_one_of(config.hosts):
        if config.dry_run:
            print(report(config, setup))
            return 0
        try:
            return train(config)
        except NonFiniteError as error:
            print(
                f"error: stopped, {error}; the last good checkpoint is kept. A lower "
                "--lr or a longer --optimizer.warmup may help, in another --workdir"
            )
            return 1


def train(config: TrainConfig) -> int:
    """Run `config`, or the rest of it; return the exit code.

    Raises:
        UsageError: what the configuration names is not there or does not fit.
        CheckpointError: a checkpoint cannot be written, or none can be read.
        NonFiniteError: a loss is NaN or infinite.
    """
    compilations = Compilations()
    mesh, state, train_step, batches, evaluate = setup(config)
    train_step = compilations.explain(train_step)
    workdir = config.workdir
    folder, figure = workdir / "checkpoints", best_figure(config.model)
    with Checkpoints(folder, metric=figure) as checkpoints:
        if checkpoints.last is not None:
            state = checkpoints.restore(state)
            print(f"resumed from step {int(state.step)}")
        start, result = int(state.step), None
        writer = MetricsWriter(
            workdir / "metrics.jsonl" if jax.process_index() == 0 else None,
            start=start,
            steps=config.steps,
            batch=config.batch,
            log_every=config.log_every,
            tensorboard=workdir / "tensorboard" if config.tensorboard else None,
        )
        trace = Trace(config, first=start + 1)
        with writer, closing(batches(start)) as data, Stop() as stop, trace:
            for step in range(start + 1, config.steps + 1):
                with trace.step(step):
                    state, metrics = train_step(state, put_batch(mesh, next(data)))
                writer.step(step, metrics)

                last, every = step == config.steps, config.eval.every
                measure = last or (every > 0 and step % every == 0)
                stops = stop.at(step) and not last
                if measure:
                    result = evaluate(inference_params(state))
                if measure or stops or step % config.save_every == 0:
                    figures = result.figures if measure and result else None
                    # Raises where a loss is not finite, before anything is saved.
                    writer.flush(figures)
                    checkpoints.save(state, figures)
                if stops:
                    checkpoints.wait()
                    print(f"stopped at step {step}; the same command goes on from here")
                    return stop.code
        print(compilations.report())
        finish(config, state, checkpoints, evaluate, result)
    return 0


class Setup(NamedTuple):
    """What a run is made of.

    Attributes:
        mesh: devices of all processes.
        state: that of step 0.
        train_step: compiled at its first call, for each padded size.
        batches: `batches(n)` iterates from batch number n on, counted from 0.
        evaluate: measures weights.
    """

    mesh: jax.sharding.Mesh
    state: TrainState
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    batches: Callable[[int], Any]
    evaluate: Evaluator


def setup(config: TrainConfig, mesh: jax.sharding.Mesh | None = None) -> Setup:
    """Open the data, make the work folder, initialise the network.

    Args:
        config: of the run.
        mesh: devices to use; all by default.

    Raises:
        UsageError: what the configuration names is not there or does not fit.
    """
    classes = classes_of(config.model)
    source, val_source = (
        open_source(config.data, split, classes=classes) for split in ("train", "val")
    )
    weights = load_weights(config)
    mesh = data_mesh() if mesh is None else mesh
    if config.batch % (mesh.size * config.accumulate):
        parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
        raise UsageError(
            f"--batch {config.batch} cannot be split evenly over {mesh.size} "
            f"devices{parts}"
        )
    try:
        config.workdir.mkdir(parents=True, exist_ok=True)
        same_run(config.workdir, config)
    except OSError as error:
        raise UsageError(
            f"--workdir {config.workdir} cannot be written: {error.strerror}"
        ) from error
    sizes = ", ".join(f"{h} x {w}" for h, w in config.data.padded_sizes)
    print(
        f"{len(source)} images to train on, {len(val_source)} to evaluate on, "
        f"padded to {sizes}"
    )
    if mesh.size > 1:
        processes = jax.process_count()
        print(f"{mesh.size} devices in {processes} process{'es' * (processes > 1)}")
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

    shapes = jax.eval_shape(init, init_key, weights)
    shardings = state_shardings(mesh, shapes, fsdp=config.fsdp)
    state = jax.jit(init, out_shardings=shardings)(init_key, weights)
    train_step = make_train_step(
        model.loss,
        optimizer,
        key=step_key,
        mesh=mesh,
        shardings=shardings if config.fsdp else None,
        rate=rate,
        ema=config.optimizer.ema,
        accumulate=config.accumulate,
    )

    def batches(start: int) -> Any:
        return train_batches(
            source, config.data, batch=config.batch, seed=config.seed, start=start
        )

    evaluate = Evaluator(model, val_source, config.data, config.eval, mesh)
    return Setup(mesh, state, train_step, batches, evaluate)


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
    params, workdir = gather(evaluate.mesh, params), config.workdir
    if jax.process_index() > 0:
        return
    # The root, often in somebody's home, is no business of those who get the file.
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


if __name__ == "__main__":
    exit_with(main)
