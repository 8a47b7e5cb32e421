"""What a run compiled, how long that took, and why the step was compiled again."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

NAMES = {"train_step": "training step", "count": "evaluation"}
"""How the functions that a run compiles are called in its report."""

_COMPILED = "/jax/core/compile/backend_compile_duration"
_READ = "/jax/compilation_cache/cache_retrieval_time_sec"
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"


class Program(NamedTuple):
    """One program that XLA compiled, or read from the cache on disk.

    Attributes:
        name: of the function.
        seconds: to compile or to read it.
        cached: it was read.
        compiling: seconds that compiling it took, now or when it was written there.
    """

    name: str
    seconds: float
    cached: bool
    compiling: float


class Compilations:
    """Notes the programs compiled since it was made, in this process."""

    def __init__(self):
        self._first = len(_programs())
        self._seen: list[dict[str, str]] = []
        self._reasons: list[str] = []

    @property
    def programs(self) -> list[Program]:
        """The programs, in order."""
        return _programs()[self._first :]

    def explain(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the training step, so that the report says why it was compiled again.

        Args:
            step: `step(state, batch)`, jitted.
        """

        def call(state: Any, batch: Any):
            before = len(_programs())
            result = step(state, batch)
            if any(p.name == "train_step" for p in _programs()[before:]):
                self._note({"state": state, "batch": batch})
            return result

        return call

    def report(self) -> str:
        """Say in a line what was compiled, and below it why the step was again."""
        groups: dict[str, list[Program]] = {}
        for program in self.programs:
            groups.setdefault(NAMES.get(program.name, "other"), []).append(program)
        parts = []
        for name in (*NAMES.values(), "other"):
            if name in groups:
                seconds = sum(p.seconds for p in groups[name])
                parts.append(f"{name} {len(groups[name])} x, {seconds:.1f} s")
        cached = sum(p.cached for p in self.programs)
        end = f" ({cached} of them read from the cache)" if cached else ""
        first = f"compiled    {'; '.join(parts) or 'nothing'}{end}"
        return "\n".join([first, *(f"            {r}" for r in self._reasons)])

    def _note(self, arguments: Any) -> None:
        """Compare the arguments with those of the compilation most like this one."""
        now = _describe(arguments)
        if self._seen:
            differences = [
                [
                    f"{k}: {then.get(k)} -> {v}"
                    for k, v in now.items()
                    if then.get(k) != v
                ]
                for then in self._seen
            ]
            fewest = min(differences, key=len)
            more = f" and {len(fewest) - 3} more" if len(fewest) > 3 else ""
            why = "; ".join(fewest[:3]) + more
            # A changed setting of JAX, or a function that was made anew.
            why = why or "shapes, types and shardings are those of an earlier time"
            self._reasons.append(f"training step again: {why}")
        self._seen.append(now)


def _describe(arguments: Any) -> dict[str, str]:
    """Write down what a compilation depends on: each array's type, shape, sharding."""
    described = {}
    for path, x in jax.tree.flatten_with_path(arguments)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        size = " x ".join(str(n) for n in x.shape) or "scalar"
        described[name] = f"{x.dtype} {size}"
        spec = getattr(getattr(x, "sharding", None), "spec", "one device")
        described[f"sharding of {name}"] = str(spec)
    return described


@functools.cache
def _programs() -> list[Program]:
    """Listen to JAX from the first call on; return what was heard."""
    heard: list[Program] = []
    read: dict[str, float] = {}

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event in (_READ, _SAVED):  # these two come before the third
            read[event] = duration_secs
        elif event == _COMPILED:
            name = str(kwargs.get("fun_name", ""))
            name = name.removeprefix("jit(").removesuffix(")")
            compiling = sum(read.values()) if read else duration_secs
            heard.append(Program(name, duration_secs, bool(read), compiling))
            read.clear()

    jax.monitoring.register_event_duration_secs_listener(listen)
    return heard
