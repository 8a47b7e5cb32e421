"""Weight files in and out of parameter trees."""

from rpn_jax.pretrained.npz import load_params_npz, save_params_npz
from rpn_jax.pretrained.squeezenet import (
    from_torchvision_squeezenet,
    load_squeezenet_npz,
)

__all__ = [
    "from_torchvision_squeezenet",
    "load_params_npz",
    "load_squeezenet_npz",
    "save_params_npz",
]
