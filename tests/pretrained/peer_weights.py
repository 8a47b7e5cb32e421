"""Weights from a seed under the peers' names; as a script, what the peers make of them.

    python tests/pretrained/peer_weights.py OUT_DIR NAME ...

writes the goldens `pretrained_NAME.npz`: names and shapes of the peer's state dict and
its outputs with the weights that `state_dict` makes for these. It needs torch and
torchvision, and detectron2 for its models.
"""

import sys
import zlib

import numpy as np

TRUNKS = {
    "squeezenet1_1": ("features.12",),
    "vgg16": ("features.29",),
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("layer2", "layer4"),
    "resnext101_32x8d": ("layer2",),
    "mobilenet_v3_large": ("features.13", "features.16"),
}
IMAGE = (64, 96)
SCALES = {
    "bottom_up.stem.conv1.weight": 0.02,
    "backbone.stem.conv1.weight": 0.02,
    "body.0.0.weight": 0.05,
    "cls_logits.weight": 0.05,
    "objectness_logits.weight": 0.05,
    "bbox_pred.weight": 0.005,
    "anchor_deltas.weight": 0.005,
}
"""Of what is drawn for a convolution, by the end of its name."""


def state_dict(names, shapes):
    """Fill a state dict: each array is drawn from a seed that is its name."""
    arrays = {}
    for name, shape in zip(map(str, names), shapes, strict=True):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        shape = tuple(int(side) for side in shape if side)
        if name.endswith("num_batches_tracked"):
            arrays[name] = np.array(7)
            continue
        if name.endswith("running_var") or (
            name.endswith("weight") and len(shape) == 1
        ):
            array = rng.uniform(0.5, 1.5, shape)
            if name.endswith(("bn3.weight", "conv3.norm.weight")):
                array *= 0.25  # or a deep trunk's activations grow beyond measure
        elif name.endswith(("bias", "running_mean")):
            array = rng.normal(0, 0.1, shape)
        else:
            array = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
            # So that logits and deltas are of a trained head's size.
            if ".block." in name:  # MobileNet's, whose h-swish amplifies
                array *= 0.5
            array *= next((f for end, f in SCALES.items() if name.endswith(end)), 1)
        arrays[name] = array.astype(np.float32)
    return arrays


def from_golden(golden):
    """Rebuild the state dict that the outputs of a golden file belong to."""
    return state_dict(golden["names"], golden["shapes"])


def image(height=IMAGE[0], width=IMAGE[1]):
    """One random image, RGB in 0..255, [H, W, 3] float32."""
    rng = np.random.default_rng(1)
    return rng.uniform(0, 255, size=(height, width, 3)).astype(np.float32)


def unit_image(height=IMAGE[0], width=IMAGE[1]):
    """One random NHWC image, as if normalised."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(1, height, width, 3)).astype(np.float32)


def main(folder, names):
    """Run the peers."""
    for name in names:
        if name.startswith(("rpn_", "faster_rcnn_")):
            model, outputs = detectron2_model(name)
        elif name.startswith("fasterrcnn"):
            model, outputs = torchvision_detector(name)
        else:
            model, outputs = torchvision_trunk(name)
        keys, shapes = described(model)
        arrays = {"names": keys, "shapes": shapes, **outputs}
        np.savez_compressed(f"{folder}/pretrained_{name}.npz", **arrays)
        print(name, {k: v.shape for k, v in outputs.items()})


def described(model):
    """Names and shapes of a model's state dict, shapes padded with zeros."""
    state = model.state_dict()
    shapes = np.zeros((len(state), 4), np.int32)
    for row, value in zip(shapes, state.values(), strict=True):
        row[: value.ndim] = value.shape
    return np.array(list(state)), shapes


def filled(model):
    """Load the weights of the model's names into it."""
    import torch

    arrays = state_dict(*described(model))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
    return model.eval()


def torchvision_trunk(name):
    """Features of a classifier, every fourth channel."""
    import torch
    import torchvision

    model = filled(getattr(torchvision.models, name)())
    outputs = {}

    def keep(key, size):
        def hook(module, inputs, y):
            outputs[f"{key}_{size}"] = y.permute(0, 2, 3, 1).numpy()[..., ::4]

        return hook

    # The second is odd: what is done with the last row and column shows.
    for height, width in (IMAGE, (65, 97)):
        hooks = [
            model.get_submodule(layer).register_forward_hook(
                keep(layer, f"{height}x{width}")
            )
            for layer in TRUNKS[name]
        ]
        x = torch.from_numpy(unit_image(height, width)).permute(0, 3, 1, 2)
        with torch.no_grad():
            model(x)
        for hook in hooks:
            hook.remove()
    return model, outputs


def torchvision_detector(name):
    """Heads and proposals of a detector; batch norms have epsilon 1e-5."""
    import torch
    import torchvision
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    build = getattr(torchvision.models.detection, name)
    model = build(weights=None, weights_backbone=None)
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5
    model = filled(model)
    mean, std = (
        np.float32(x) for x in (model.transform.image_mean, model.transform.image_std)
    )
    pixels = (image() / 255 - mean) / std
    images = ImageList(torch.from_numpy(pixels.transpose(2, 0, 1))[None], [IMAGE])
    rpn = model.rpn
    with torch.no_grad():
        maps = list(model.backbone(images.tensors).values())
        logits, deltas = rpn.head(maps)
        anchors = rpn.anchor_generator(images, maps)
        counts = [x[0].numel() for x in logits]
        logits, deltas = concat_box_prediction_layers(logits, deltas)
        decoded = rpn.box_coder.decode(deltas, anchors).view(1, -1, 4)
        boxes, scores = rpn.filter_proposals(
            decoded, logits, images.image_sizes, counts
        )
    outputs = {
        "logits": logits[:, 0].numpy(),
        "deltas": deltas.numpy(),
        "boxes": boxes[0].numpy(),
        "scores": scores[0].numpy(),
    }
    return model, outputs


def detectron2_model(name):
    """Heads and proposals of a detectron2 model."""
    import torch
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    from detectron2.structures import ImageList

    schedule = "3x" if "101" in name else "1x"
    cfg = model_zoo.get_config(f"COCO-Detection/{name}_{schedule}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    model = filled(build_model(cfg))
    pixels = torch.from_numpy(image()[..., ::-1].transpose(2, 0, 1).copy())
    pixels = (pixels - model.pixel_mean) / model.pixel_std
    images = ImageList(pixels[None], [IMAGE])
    rpn = model.proposal_generator
    with torch.no_grad():
        maps = model.backbone(images.tensor)
        logits, deltas = rpn.rpn_head([maps[k] for k in rpn.in_features])
        (found,), _ = rpn(images, maps)
    logits = [x.permute(0, 2, 3, 1).flatten() for x in logits]
    deltas = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in deltas]
    outputs = {
        "logits": torch.cat(logits).numpy(),
        "deltas": torch.cat(deltas).numpy(),
        "boxes": found.proposal_boxes.tensor.numpy(),
        "scores": found.objectness_logits.numpy(),
    }
    return model, outputs


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
