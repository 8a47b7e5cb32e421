"""The page of `experiments.scaling`: its tables, and the formula for other machines."""

from collections.abc import Sequence
from typing import Any

EXAMPLE_DEVICES = (8, 64, 512)
EXAMPLE_LINKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9, "400 GB/s": 400e9}
"""Bytes a second that a device sends, and receives, in the example."""

HEAD = """\
# Scaling

`python -m experiments.scaling CONFIG --out experiments/results` measures and writes
this page; the numbers are in `scaling.json`. For your own machine: run it there,
without `--out` it only prints.

* **input**: images/s read, decoded and resized while nothing else runs;
* **step alone**: the compiled training step on one batch that lies on the devices,
  median;
* **together**: the loop, each step with a new batch;
* **compile**: of a program that was read from the cache, the seconds are those of the
  time when it was compiled;
* **collectives**: what the devices say to each other in a step, read from the compiled
  program. Bytes are those of the whole arrays, on each device: of an all-gather what
  comes out, of the others what goes in.

The batch is that of the config, split over the devices. **On a CPU the devices are
simulated: they share its cores, and their images/s say nothing of how a run scales.**
What these rows show is the collectives, and the memory of each device. Matching,
proposals and pooling need none: each device does them for its own images. With `--fsdp`
the gradients of split parameters are reduced by an all-reduce and a slice on a CPU, not
by a reduce-scatter.
"""

FORMULA = """\
## Your own cluster

With n devices, on H hosts, and B images a step:

    t(n) = t_compute(B / n) + sum over the collectives of t_wire

    t_wire = 2 (n - 1) / n * bytes / bandwidth    all-reduce, in a ring
                 (n - 1) / n * bytes / bandwidth    all-gather, reduce-scatter,
                                                    all-to-all
                               bytes / bandwidth    collective-permute

    images/s = min(B / t(n), H * images/s of the input of one host)

* `t_compute(B / n)`: measure the step alone on one device with that batch
  (`python -m experiments.scaling CONFIG --devices 1 --batch 2`).
* `bytes`: from the tables above, or from yours. Almost all are the gradients': 4 bytes
  a trained parameter, for the head, which all levels share, once a level. They depend
  neither on n nor on B.
* `bandwidth`: bytes a second that a device sends over the slowest link of the ring. The
  formula leaves out latency (what matters with many small collectives), and that XLA
  lets communication and backward pass overlap on GPUs and TPUs.
* the input: each host needs B / (H t(n)) images/s; the first table has what this one
  reads with its cores.
"""


def input_table(rates: Sequence[dict[str, Any]]) -> str:
    """Lay out images/s of the input alone."""
    rows = [
        (str(r["workers"] or "none"), str(r["threads"]), f"{r['rate']:.1f}")
        for r in rates
    ]
    return table(("worker processes", "threads (of each)", "input, images/s"), rows)


def step_table(steps: Sequence[dict[str, Any]]) -> str:
    """Lay out images/s of the step, and its memory, by number of devices."""
    head = "devices|batch|padded to|step alone, images/s|together, images/s|compile, s"
    rows = [
        (
            str(s["devices"]),
            str(s["batch"]),
            "{} x {}".format(*s["size"]),
            f"{s['alone']:.1f}",
            f"{s['together']:.1f}",
            f"{s['compile']:.1f}",
            f"{s['arguments'] / 2**20:.1f}",
            f"{s['temporaries'] / 2**20:.1f}",
        )
        for s in steps
    ]
    memory = ("arguments, MiB a device", "temporaries, MiB a device")
    return table((*head.split("|"), *memory), rows)


def collective_table(steps: Sequence[dict[str, Any]]) -> str:
    """Lay out the collectives of a step, by number of devices."""
    rows = [
        (
            str(s["devices"]),
            c["kind"],
            f"{c['count']}{' or more' if c['looped'] else ''}",
            f"{c['bytes']:,}",
        )
        for s in steps
        for c in s["collectives"]
    ]
    return table(("devices", "collective", "a step", "bytes a step"), rows)


def markdown(entries: dict[str, Any]) -> str:
    """Make the page from what `scaling.json` holds."""
    parts = [HEAD]
    for name, entry in entries.items():
        about = "\n".join(f"* {k}: {v}" for k, v in entry["about"].items() if v != "")
        parts += [
            f"## `{name}`",
            f"{about}\n{busy(entry['about'])}".strip(),
            input_table(entry["input"]),
            step_table(entry["step"]),
            collective_table(entry["step"]),
        ]
    return "\n\n".join(part.strip() for part in [*parts, FORMULA, example(entries)]) + (
        "\n"
    )


def busy(about: dict[str, Any]) -> str:
    """Say so where the machine did other work when the measurement began."""
    load = float(str(about["load at the start"]).split()[0])
    if load < 0.5:
        return ""
    return f"* other work was running, load {load} at the start: times may be too long"


def example(entries: dict[str, Any]) -> str:
    """Work the formula out for the collectives of the largest mesh of each config."""
    lines = [
        "### Worked out",
        "",
        "Computed by the formula from the bytes above, not measured: what the",
        "collectives of a step take on the wire.",
        "",
    ]
    rows = []
    for name, entry in entries.items():
        talk = max(entry["step"], key=lambda s: s["devices"])["collectives"]
        for link, bandwidth in EXAMPLE_LINKS.items():
            times = (1e3 * seconds(talk, n, bandwidth) for n in EXAMPLE_DEVICES)
            rows.append((f"`{name}`", link, *(f"{t:.2f}" for t in times)))
    head = ("config", "link", *(f"{n} devices, ms" for n in EXAMPLE_DEVICES))
    return "\n".join([*lines, table(head, rows)])


def seconds(
    collectives: Sequence[dict[str, Any]], devices: int, bandwidth: float
) -> float:
    """Return the time that the collectives of a step take on the wire.

    Args:
        collectives: with `kind` and `bytes`, as of `experiments.collectives`.
        devices: n of the formula.
        bandwidth: bytes a second.
    """
    share = (devices - 1) / devices
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0}
    return sum(factor.get(c["kind"], share) * c["bytes"] for c in collectives) / (
        bandwidth
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
