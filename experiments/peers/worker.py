"""One side of the benchmark, in a process of its own.

usage: PYTHON worker.py MODULE

Imports MODULE (say `torchvision_stages`), tells its versions, and then answers one
JSON object a line on stdin with one on stdout: `prepare` a case, `sample` its time.
Arrays come and go as .npz files. NumPy and the standard library suffice here.

MODULE has `about() -> dict` and `STAGES`, which maps the name of a stage to
`prepare(arrays, options) -> (run, collect, facts)`: `run()` computes once and returns
when the result is there, `collect(result)` makes named NumPy arrays of it, `facts` is
what else there is to tell, such as seconds of compilation. A stage that MODULE lacks or
that raises NotImplementedError is absent, not wrong.
"""

import ctypes
import importlib
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np


def main():
    """Answer until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the replies

    def say(**reply):
        print(json.dumps(reply), file=replies, flush=True)

    try:
        module = importlib.import_module(sys.argv[1])
        say(about=module.about())
    except ImportError as error:
        say(absent=str(error))
        return
    job = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                job = None  # its arrays go first
                job, reply = prepare(module.STAGES, request)
            else:
                reply = job.sample(request["seconds"])
        except NotImplementedError as error:
            reply = {"absent": str(error)}
        except Exception as error:
            text = " ".join(str(error).split())
            reply = {"error": f"{type(error).__name__}: {text}"[:400]}
        say(**reply)


def prepare(stages, request):
    """Run a case for the first times and save its result."""
    if request["stage"] not in stages:
        raise NotImplementedError("no such stage")
    with np.load(request["arrays"]) as file:
        arrays = dict(file)
    run, collect, facts = stages[request["stage"]](arrays, request["options"])
    np.savez(request["outputs"], **collect(run()))
    job = Job(run)
    return job, {**facts, "rss_bytes": peak_growth(run)}


class Job:
    """A case that is ready to be timed."""

    def __init__(self, run):
        self.run = run
        self.last = 0.0

    def sample(self, seconds):
        """Time as many calls as take so long, one at least; the mean of them."""
        if self.last < seconds:
            self.run()  # wakes threads and caches; not worth it for long calls
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < seconds:
            self.run()
            calls += 1
        self.last = (time.perf_counter() - start) / calls
        return {"seconds": self.last, "calls": calls}


def peak_growth(run):
    """Bytes by which a call raises the process's resident memory at its peak.

    What the process holds already and uses again does not count. None where the
    system does not tell.
    """
    run()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        run()
        return max(0, resident("VmHWM") - before)
    except (OSError, TypeError):
        return None


def resident(field):
    """Read a size from /proc in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s*(\d+) kB", text)[1])


if __name__ == "__main__":
    main()
