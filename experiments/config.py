"""The fields of a run, and how the command line sets them."""

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

import experiments.configs
from rpn_jax.data import DataError, Jitter, Resize
from rpn_jax.data.faults import OnBad
from rpn_jax.faster_rcnn import FasterRCNNConfig
from rpn_jax.predict import Model, load_model
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.checkpoint import CheckpointError
from rpn_jax.training.config import config_from_json, config_to_json
from rpn_jax.training.hosts import HostsConfig, join_hosts, leave_at_once, one_voice
from rpn_jax.training.optimizer import OptimizerConfig


class UsageError(Exception):
    """What was asked for cannot be done; the message says why and what to do."""


def _at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        if (value := getattr(config, name)) < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images and boxes come from, and what becomes of them.

    Attributes:
        kind: the form they lie in: synthetic scenes, a COCO json and a folder of
            images, a VOC folder, or a folder prepared by tensorflow_datasets.
        root: folder that holds the data; default $RPN_JAX_DATA, else `data`.
        folders: below `root`, where a VOC or tfds folder is looked for.
        train: scenes to train on (shapes: a number), json file (coco) or split.
        val: the same to evaluate on.
        images: folder of the images (coco); by default `images` beside the json.
        val_images: folder of those to evaluate on, where it is another.
        limit: use the first so many images of each split; 0: all.
        resize: how images get their size.
        buckets: (height, width) that images are padded to, the smallest that fits; one
            compilation each. Empty: the square of `resize.max_size`.
        max_boxes: boxes an image at most; what is cut off is counted and shown.
        flip: share of the training images that are mirrored.
        jitter: how far colours of training images are changed.
        on_bad: a broken record stops the run, or is left out, counted and shown.
        threads: threads that read and resize images ahead of the step.
        workers: processes that do so instead; 0 for threads.
    """

    kind: Literal["shapes", "coco", "voc", "tfds"] = "shapes"
    root: Path | None = None
    folders: tuple[str, ...] = ()
    train: str = "train"
    val: str = "val"
    images: Path | None = None
    val_images: Path | None = None
    limit: int = 0
    resize: Resize = Resize()
    buckets: tuple[tuple[int, int], ...] = ()
    max_boxes: int = 100
    flip: float = 0.5
    jitter: Jitter = Jitter()
    on_bad: OnBad = "raise"
    threads: int = 4
    workers: int = 0

    def __post_init__(self):
        """Check the numbers."""
        _at_least(self, 0, "limit", "threads", "workers")
        _at_least(self, 1, "max_boxes")

    @property
    def padded_sizes(self) -> tuple[tuple[int, int], ...]:
        """`buckets`, or the square that stands for none."""
        side = self.resize.max_size
        return self.buckets or ((side, side),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How recall is measured.

    Attributes:
        every: steps from one evaluation to the next; 0: at the end only.
        batch: images at a time.
        examples: images in the picture of proposals.
    """

    every: int = 0
    batch: int = 8
    examples: int = 4

    def __post_init__(self):
        """Check the numbers."""
        _at_least(self, 0, "every", "examples")
        _at_least(self, 1, "batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Attributes:
        steps: updates in all.
        batch: images an update, over all devices.
        accumulate: parts that a batch is taken in, one after the other; saves memory.
        seed: decides initial weights, order of the data, augmentation and sampling.
        lr: highest learning rate.
        weights: file of weights to start from: of the trunk, or of the whole network.
        workdir: folder of the run; one that holds a run is resumed.
        data: where images and boxes come from.
        model: the network.
        optimizer: how parameters follow their gradients.
        fsdp: split parameters and the optimizer's state over the devices too.
        hosts: how several processes find each other.
        eval: how recall is measured.
        save_every: steps from one checkpoint to the next.
        log_every: steps from one progress line to the next.
        tensorboard: write TensorBoard files too.
        profile: steps to trace, after the first ten; 0 for none.
        dry_run: say what the run costs, and neither train nor write anything.
    """

    steps: int = 600
    batch: int = 8
    accumulate: int = 1
    seed: int = 0
    lr: float = 0.01
    weights: Path | None = None
    workdir: Path = Path("runs/latest")
    data: DataConfig = DataConfig()
    model: RPNConfig | FasterRCNNConfig = RPNConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    fsdp: bool = False
    hosts: HostsConfig = HostsConfig()
    eval: EvalConfig = EvalConfig()
    save_every: int = 200
    log_every: int = 20
    tensorboard: bool = False
    profile: int = 0
    dry_run: bool = False

    def __post_init__(self):
        """Check the numbers."""
        _at_least(self, 0, "steps", "seed", "profile")
        _at_least(self, 1, "batch", "accumulate", "save_every", "log_every")

    @property
    def rpn(self) -> RPNConfig:
        """The region proposal network, alone or within a detector."""
        return self.model if isinstance(self.model, RPNConfig) else self.model.rpn


def config_names() -> list[str]:
    """List the configs of `experiments/configs`."""
    return sorted(m.name for m in pkgutil.iter_modules(experiments.configs.__path__))


def load_config(name: str) -> TrainConfig:
    """Return the config that `name` names.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in config_names():
        known = ", ".join(config_names())
        raise UsageError(f"there is no config '{name}'; there are {known}")
    return importlib.import_module(f"experiments.configs.{name}").CONFIG


def parse_config(argv: Sequence[str], script: str = "train") -> TrainConfig:
    """Read `CONFIG [--field value ...]`; `--help` lists every field and exits.

    Raises:
        UsageError: the config is unknown or not named.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: python -m experiments.{script} CONFIG [--field value ...]\n")
        for known in config_names():
            doc = importlib.import_module(f"experiments.configs.{known}").__doc__ or ""
            print(f"  {known:<26}{doc.splitlines()[0]}")
        print("\nThe fields of every CONFIG, with the defaults of shapes:\n")
        name, rest = "shapes", ["--help"]
    return tyro.cli(
        TrainConfig,
        default=load_config(name),
        args=rest,
        prog=f"python -m experiments.{script} {name}",
        # A config has one of the kinds of networks; its own fields are shown.
        config=(tyro.conf.AvoidSubcommands,),
    )


def classes_of(model: RPNConfig | FasterRCNNConfig) -> tuple[str, ...] | None:
    """Return the names of a detector's classes, None for an RPN."""
    return model.classes if isinstance(model, FasterRCNNConfig) else None


def data_root(config: DataConfig) -> Path:
    """Return the folder that data is looked for under."""
    return config.root or Path(os.environ.get("RPN_JAX_DATA") or "data")


def same_run(workdir: Path, config: TrainConfig) -> None:
    """Refuse to resume a run of another configuration; write the configuration.

    Steps, evaluation, logging, devices and processes may change from start to start.
    Until there is a checkpoint all may, for nothing is resumed.

    Raises:
        UsageError: `workdir` holds a run whose configuration differs.
    """
    file, now = workdir / "config.json", config_to_json(config)
    resumes = any(p.name.isdecimal() for p in (workdir / "checkpoints").glob("*"))
    if resumes and file.exists():
        then = json.loads(file.read_text())
        keys = ("batch", "accumulate", "seed", "lr", "weights", "model", "optimizer")
        differ = [
            change
            for key in (*keys, "data")
            for change in _changes(key, then.get(key, now[key]), now[key])
            if change.split(":")[0] not in MAY_CHANGE
        ]
        if differ:
            raise UsageError(
                f"{workdir} holds a run with another configuration, which cannot go on "
                f"with this one: {'; '.join(differ)}. Name another --workdir, or give "
                f"the options that are in {file}"
            )
        if then["steps"] != config.steps and config.optimizer.schedule != "constant":
            print(
                f"--steps is {config.steps}, was {then['steps']}: the learning rate "
                "follows the new length from here on"
            )
    if jax.process_index() == 0:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(now, indent=2) + "\n")
        os.replace(part, file)


# The same data may lie elsewhere by now, and be read in another way.
MAY_CHANGE = {f"data.{name}" for name in ("root", "threads", "workers", "on_bad")}


def _changes(name: str, then: Any, now: Any) -> list[str]:
    """List the fields that differ, as "model.sizes: was 1, is 2"."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = {**now, **then}
        return [
            change
            for key in keys
            for change in _changes(
                f"{name}.{key}", then.get(key, now.get(key)), now.get(key)
            )
        ]
    return [] if then == now else [f"{name}: was {then}, is {now}"]


def take_model(argv: Sequence[str], options: type, prog: str, doc: str | None) -> Path:
    """Return the first argument, the path of a model; `--help` in its place exits.

    Raises:
        UsageError: an option stands there.
    """
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        tyro.cli(options, args=["--help"], prog=prog, description=doc)
    if name.startswith("-"):
        raise UsageError(f"a model is wanted before the options: {prog}")
    return Path(name)


def open_model(path: Path) -> Model:
    """Load the network that a run's folder or a weight file holds.

    Raises:
        UsageError: there is none.
    """
    try:
        return load_model(path)
    except (FileNotFoundError, ValueError, ImportError) as error:
        raise UsageError(f"cannot take {path} for a model: {error}") from error


def data_of(model: Model) -> DataConfig:
    """Return the data that a model was trained on, or how a peer's weights want theirs.

    A peer's images lie or stand in two padded sizes, whatever their shape.
    """
    if model.data:
        return config_from_json(DataConfig, model.data)
    resize, multiple = model.resize, model.pad_to
    short, long = (
        -(-side // multiple) * multiple
        for side in (resize.eval_size or resize.max_size, resize.max_size)
    )
    sizes = dict.fromkeys([(short, long), (long, short)])
    return DataConfig(resize=resize, buckets=tuple(sizes))


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, where the user has named no place."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "rpn_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def make_folder(folder: Path) -> None:
    """Make the folder for results, before the work, so that none is lost.

    Raises:
        UsageError: there is a file in its place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"--out: {error.filename} is no folder") from error


def exit_with(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a script's `main`; what the user can mend is one sentence, exit code 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except (UsageError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 2
    if jax.process_count() > 1:
        leave_at_once(code)
    sys.exit(code)


CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def as_one_of(hosts: HostsConfig) -> Iterator[None]:
    """Join the other processes of the run, if there are any; only one prints.

    Raises:
        UsageError: they are not named properly, or not found.
    """
    try:
        join_hosts(hosts)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--hosts: {error}") from error
    with one_voice():
        yield
