"""The processes of the benchmark, seen from the one that measures."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# Who takes part, and the module beside this file that speaks for it.
MODULES = {
    "rpn_jax": "ours",
    "numpy": "numpy_stages",
    "torchvision": "torchvision_stages",
    "torch.compile": "torchvision_compiled",
    "keras-hub": "keras_stages",
}
OURS, REFERENCE = "rpn_jax", "numpy"


class Worker:
    """A process that runs the stages of one participant.

    Attributes:
        name: of the participant, a key of `MODULES`.
        about: versions and device, empty where it is absent.
        absent: why it does not run, or None.
    """

    def __init__(self, name, python=sys.executable, device="cpu"):
        self.name, self._errors = name, tempfile.TemporaryFile("w+")
        path = [str(ROOT)] if name == OURS else []
        path += filter(None, [os.environ.get("PYTHONPATH")])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path),
            "BENCHMARK_DEVICE": device,
            # The allocator keeps what it has, as in a process that has run for a while;
            # else large arrays are paged in anew in each call.
            "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
            "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
            # Several processes share the GPU.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        try:
            self._process = subprocess.Popen(
                [str(python), str(HERE / "worker.py"), MODULES[name]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                text=True,
            )
            reply = self._reply()
        except OSError as error:
            self._process, reply = None, {"absent": str(error)}
        self.about: dict[str, str] = reply.get("about", {})
        self.absent = reply.get("absent") or reply.get("error")

    def ask(self, **request):
        """Send a request and wait for the reply; a dead worker replies an error."""
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except OSError:
            pass
        return self._reply()

    def _reply(self):
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:] or ["no message"]
        return {"error": f"the process ended: {last[0]}"}

    def close(self):
        """End the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
        self._errors.close()
