"""Names of the trunks' modules in torchvision's and detectron2's files.

Each function maps a module path below the trunk, such as `res2_0/conv1`, to the peer's
name below its own.
"""

import re

from rpn_jax.models.mobilenet import BNECKS

# Indices within torchvision's `features`, which counts ReLUs and pools too.
VGG_FEATURES = {
    "conv1/conv1": 0,
    "conv1/conv2": 2,
    "conv2/conv1": 5,
    "conv2/conv2": 7,
    "conv3/conv1": 10,
    "conv3/conv2": 12,
    "conv3/conv3": 14,
    "conv4/conv1": 17,
    "conv4/conv2": 19,
    "conv4/conv3": 21,
    "conv5/conv1": 24,
    "conv5/conv2": 26,
    "conv5/conv3": 28,
}
FIRE_FEATURES = {"conv1": 0} | {
    f"fire{number}": index
    for number, index in enumerate((3, 4, 6, 7, 9, 10, 11, 12), start=2)
}


def torchvision_resnet(module: str) -> str:
    """`res2_0/shortcut_norm` is `layer1.0.downsample.1`."""
    if module in ("stem", "stem_norm"):
        return {"stem": "conv1", "stem_norm": "bn1"}[module]
    stage, block, part = _block(module)
    part = {"shortcut": "downsample.0", "shortcut_norm": "downsample.1"}.get(
        part, part.replace("norm", "bn")
    )
    return f"layer{stage - 1}.{block}.{part}"


def detectron2_resnet(module: str) -> str:
    """`res2_0/norm1` is `res2.0.conv1.norm`."""
    if module in ("stem", "stem_norm"):
        return {"stem": "stem.conv1", "stem_norm": "stem.conv1.norm"}[module]
    stage, block, part = _block(module)
    if part == "shortcut_norm":
        part = "shortcut.norm"
    elif part.startswith("norm"):
        part = f"conv{part[4:]}.norm"
    return f"res{stage}.{block}.{part}"


def torchvision_vgg(module: str) -> str:
    """`conv2/conv1` is `features.5`."""
    return f"features.{VGG_FEATURES[module]}"


def torchvision_squeezenet(module: str) -> str:
    """`fire2/squeeze1x1` is `features.3.squeeze`."""
    fire, _, part = module.partition("/")
    name = f"features.{FIRE_FEATURES[fire]}"
    return f"{name}.{part.replace('squeeze1x1', 'squeeze')}" if part else name


def torchvision_mobilenet(module: str) -> str:
    """`bneck4/depthwise_norm` is `4.block.1.1`, below `features`."""
    ends = {"stem": 0, "last": len(BNECKS) + 1}
    first, _, part = module.partition("/")
    if not part:
        layer = first.removesuffix("_norm")
        return f"{ends[layer]}.{int(first.endswith('_norm'))}"
    number = int(first.removeprefix("bneck"))
    before = BNECKS[number - 2].features if number > 1 else 16
    row = BNECKS[number - 1]
    parts = ["expand"] if row.expand != before else []
    parts += ["depthwise"] + (["excite"] if row.excite else []) + ["project"]
    if part in ("squeeze", "excite"):
        fc = 1 if part == "squeeze" else 2
        return f"{number}.block.{parts.index('excite')}.fc{fc}"
    index = parts.index(part.removesuffix("_norm"))
    return f"{number}.block.{index}.{int(part.endswith('_norm'))}"


def from_caffe2(name: str) -> str:
    """Translate Caffe2's name of an array to detectron2's; others stay.

    Example:
        >>> from_caffe2("res2_0_branch2a_bn_s"), from_caffe2("conv1_w")
        ('res2.0.conv1.norm.weight', 'stem.conv1.weight')
    """
    match = re.fullmatch(
        r"(?:res_)?(?:conv1|res(\d)_(\d+)_branch(1|2a|2b|2c))(_bn)?_"
        r"(w|b|s|gamma|beta|rm|riv|running_mean|running_var)",
        name,
    )
    if match is None:
        return name
    stage, block, branch, norm, leaf = match.groups()
    module = "stem.conv1"
    if stage:
        part = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}[branch]
        module = f"res{stage}.{block}.{part}"
    leaf = {
        "w": "weight",
        "s": "weight",
        "gamma": "weight",
        "b": "bias",
        "beta": "bias",
        "rm": "running_mean",
        "riv": "running_var",
    }.get(leaf, leaf)
    return f"{module}{'.norm' if norm else ''}.{leaf}"


def _block(module: str) -> tuple[int, int, str]:
    match = re.fullmatch(r"res(\d)_(\d+)/(\w+)", module)
    if match is None:
        raise ValueError(f"{module} is no module of a ResNet")
    return int(match[1]), int(match[2]), match[3]
