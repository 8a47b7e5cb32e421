"""What the benchmark writes: a table to read, json to compute with, plots."""

import json
from pathlib import Path
from statistics import median, quantiles

from experiments.peers.client import OURS


def summary(seconds):
    """Describe samples: median, least, lower and upper quartile."""
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return {"median": median(seconds), "min": min(seconds), "q1": low, "q3": high}


def milliseconds(seconds):
    """Write a time with three significant digits."""
    return f"{1e3 * seconds:.4g}"


def ratio(row, name):
    """Our median over that of another, None where one of them is missing."""
    ours, theirs = (row["results"].get(x, {}).get("median") for x in (OURS, name))
    return ours / theirs if ours and theirs else None


def line(row):
    """Describe a case in one line, for whoever watches."""
    parts = []
    for name, result in row["results"].items():
        if "median" not in result:
            continue
        text = f"{name} {milliseconds(result['median'])}"
        quotient = None if name == OURS else ratio(row, name)
        text += "" if quotient is None else f" (ratio {quotient:.3g})"
        text += f" [{result['check']}]" if "wrong" in result["check"] else ""
        parts.append(text)
    failed = [
        f"{name}: {result['error']}"
        for name, result in row["results"].items()
        if "error" in result
    ]
    return f"{row['case']}: " + ", ".join(parts + failed)


def markdown(report):
    """Write the report: who took part, ratios, then everything."""
    names = [
        name for name, who in report["participants"].items() if "absent" not in who
    ]
    peers = [name for name in names if name != OURS]
    lines = ["# Benchmark", ""]
    lines += [f"* {key}: {value}" for key, value in report["machine"].items()]
    for name, who in report["participants"].items():
        told = ", ".join(f"{key} {value}" for key, value in who.items())
        lines.append(f"* {name}: {told}")
    lines += ["", "## Medians, ms; ratio = rpn_jax / peer", ""]
    head = ["case", OURS] + [x for name in peers for x in (name, "ratio")]
    lines += _head(head)
    for row in report["rows"]:
        cells = [row["case"], _median(row, OURS)]
        for name in peers:
            quotient = ratio(row, name)
            cells += [_median(row, name), "" if quotient is None else f"{quotient:.3g}"]
        lines.append(_row(cells))
    notes = {}
    for row in report["rows"]:
        if row["note"]:
            notes.setdefault(row["note"], []).append(row["case"])
    lines += [""] + [f"* {', '.join(c)}: {note}." for note, c in notes.items()]
    lines += ["", "## In full", ""]
    lines += [
        "Times in ms. `result`: beside plain NumPy, of networks beside rpn_jax. "
        "`peak`: growth of the process's resident memory in a call, MB; `temporary`: "
        "what XLA plans for a call, MB; `compile`: s.",
        "",
    ]
    columns = "case who median min quartiles result peak temporary compile".split()
    lines += _head(columns)
    for row in report["rows"]:
        for name, result in row["results"].items():
            lines.append(_row([row["case"], name, *_details(result)]))
    return "\n".join(lines) + "\n"


def _head(cells):
    return [_row(cells), "|" + " --- |" * len(cells)]


def _row(cells):
    return "| " + " | ".join(cells) + " |"


def _median(row, name):
    """The cell of a participant in the short table."""
    result = row["results"].get(name, {})
    if "error" in result:
        return "error"
    if "median" not in result:
        return "-"
    wrong = f" ({result['check']})" if "wrong" in result["check"] else ""
    return milliseconds(result["median"]) + wrong


def _details(result):
    """The cells of a participant in the long table."""
    if "median" not in result:
        return [result.get("error", "").replace("|", "/")] + [""] * 6
    size = [
        "" if result.get(key) is None else f"{result[key] / 1e6:.1f}"
        for key in ("rss_bytes", "temp_bytes")
    ]
    quartiles = " to ".join(milliseconds(result[key]) for key in ("q1", "q3"))
    took = result.get("compile_s")
    return [
        milliseconds(result["median"]),
        milliseconds(result["min"]),
        quartiles,
        result["check"],
        *size,
        "" if took is None else f"{took:.2f}",
    ]


def write(report, folder: Path):
    """Write `benchmark.json`, `benchmark.md` and, if it can be drawn, a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "benchmark.md").write_text(markdown(report))
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    draw(report, folder / "benchmark.png")


def draw(report, file: Path):
    """Draw time against number, one panel for each axis that the cases name."""
    from matplotlib.figure import Figure

    panels = {}
    for row in report["rows"]:
        if row["x"]:
            panels.setdefault(row["x"][0], []).append(row)
    panels = {axis: rows for axis, rows in panels.items() if len(rows) > 1}
    if not panels:
        return
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * height), layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    curves = {}
    for axes, (title, rows) in zip(grid, panels.items(), strict=False):
        rows = sorted(rows, key=lambda row: row["x"][1])
        for i, name in enumerate(report["participants"]):
            points = [
                (row["x"][1], 1e3 * row["results"][name]["median"])
                for row in rows
                if "median" in row["results"].get(name, {})
            ]
            if points:
                style = "o-" if name == OURS else "s--"
                (curves[name],) = axes.loglog(
                    *zip(*points, strict=True), style, color=f"C{i}"
                )
        what, _, unit = title.partition(": ")
        axes.set(title=what, xlabel=unit, ylabel="ms")
        ticks = [row["x"][1] for row in rows]
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=30)
        axes.set_xticks([], minor=True)
        axes.grid(True, which="major", alpha=0.3)
    figure.legend(
        curves.values(), curves, loc="outside upper center", ncols=len(curves)
    )
    figure.savefig(file, dpi=110)
