"""The stages of torchvision, each function under `torch.compile`.

Compilation is asked for with static shapes. What cannot be traced, torch runs as it is;
where it raises instead, the benchmark shows the error.
"""

import torch
import torchvision_stages
from torchvision_stages import about  # noqa: F401, the worker asks for it


def transform(function):
    """Compile a function."""
    return torch.compile(function, dynamic=False)


torchvision_stages.transform = transform

NAMES = ("topk", "match", "sample", "encode", "targets", "decode", "proposals")
STAGES = {name: torchvision_stages.STAGES[name] for name in NAMES}
