"""Random weights under which a detector behaves like a trained one.

As it is initialised, a detector tells little of a port: its batch norms do nothing, its
heads answer the same everywhere. Here a batch goes through once, and each layer gets
its numbers before it is called for the first time, from what it is about to receive:

- a norm, statistics near those of its input, and a random scale and shift;
- a layer with a bias, outputs of a given mean and deviation over places, if it sees
  enough of them.

Each filter of a convolution in front of a norm gets a gain between 1/30 and 3, so that
the variances lie between 1e-3 and 10, where the epsilon of a norm can be seen.
"""

import re

import torch
from torch.nn import functional as F

# The last norm of a residual branch, in torchvision and in detectron2. It is kept small
# so that the sums do not grow from block to block.
LAST = re.compile(
    r"layer\d\.\d+\.bn3|res\d\.\d+\.conv3\.norm|(body|features)\.\d+\.block\.\d\.1$"
)


@torch.no_grad()
def fill(model, run, spreads, seed):
    """Give `model` random weights.

    Args:
        model: the module, in evaluation mode; its weights are those of its own
            initialisation.
        run: a function of no arguments that calls the model on a batch.
        spreads: {name of a layer with a bias: (mean, deviation) of its outputs}, each
            a number or one a channel; 0 and 1 for what is not named.
        seed: of the random numbers.
    """
    random = torch.Generator().manual_seed(seed)
    hooks = []
    for name, module in model.named_modules():
        if "running_var" in dict(module.named_buffers(recurse=False)):
            small = 0.3 if LAST.search(name) else 1.0
            prepare = _norm(random, small)
        elif not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            continue
        elif module.bias is None:  # a norm follows
            gain = 10 ** _uniform(random, len(module.weight), -1.5, 0.5)
            module.weight.mul_(gain.reshape(-1, 1, 1, 1))
            continue
        else:
            prepare = _spread(random, *spreads.get(name, (0.0, 1.0)))
        hooks.append(module.register_forward_pre_hook(_once(prepare)))
    run()
    for hook in hooks:
        hook.remove()


def _once(prepare):
    """Call `prepare` before the first call of a module; a head is called per level."""
    seen = []

    def hook(module, inputs):
        if not seen:
            seen.append(True)
            prepare(module, inputs[0])

    return hook


def _norm(random, small):
    def prepare(norm, x):
        variance, mean = torch.var_mean(x, [i for i in range(x.ndim) if i != 1])
        variance = variance.clamp(min=1e-4)
        count = len(mean)
        shift = 0.2 * torch.randn(count, generator=random)
        norm.running_mean.copy_(mean + variance.sqrt() * shift)
        norm.running_var.copy_(variance * _uniform(random, count, 0.6, 1.6))
        norm.weight.copy_(small * _uniform(random, count, 0.5, 1.5))
        norm.bias.copy_(0.2 * torch.randn(count, generator=random))

    return prepare


def _spread(random, mean, deviation):
    def prepare(layer, x):
        # By its parts: some layers have a norm or an activation in their call.
        if x.ndim == 4:
            y = layer._conv_forward(x, layer.weight, None).movedim(1, -1)
        else:
            y = F.linear(x, layer.weight)
        y = y.flatten(0, -2)
        if len(y) < 16:  # behind a global pool
            return
        now, middle = torch.std_mean(y, 0)
        ratio = deviation * _uniform(random, len(now), 0.7, 1.3) / now.clamp(min=1e-6)
        layer.weight.mul_(ratio.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.copy_(mean - middle * ratio)

    return prepare


def _uniform(random, count, low, high):
    return low + (high - low) * torch.rand(count, generator=random)
