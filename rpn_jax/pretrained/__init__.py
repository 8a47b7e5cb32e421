"""Weight files in and out of parameter trees."""

from rpn_jax.pretrained.convert import overlay
from rpn_jax.pretrained.export import save_torchvision, torchvision_state_dict
from rpn_jax.pretrained.files import read_state_dict
from rpn_jax.pretrained.load import Loaded, Report, load
from rpn_jax.pretrained.npz import is_own, load_params_npz, save_params_npz
from rpn_jax.pretrained.zoo import model_config

__all__ = [
    "Loaded",
    "Report",
    "is_own",
    "load",
    "load_params_npz",
    "model_config",
    "overlay",
    "read_state_dict",
    "save_params_npz",
    "save_torchvision",
    "torchvision_state_dict",
]
