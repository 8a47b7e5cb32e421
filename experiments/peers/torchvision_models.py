"""Torchvision's detectors and backbones with random weights: files to compare with.

usage: python experiments/peers/torchvision_models.py OUT NAME ... --images FILE ...

Runs where torch and torchvision are installed; this project is not needed there. For
each NAME, a key of `DETECTORS` or `BACKBONES`, writes to the folder OUT

- `NAME.pth`, a state dict with the names of the file that torchvision publishes;
- `NAME_outputs.npz`, what the model gives that has loaded it.

A detector is built by its own builder as for its published weights, which are replaced
by the random ones: what is done to a model after loading is done here too. Arrays of a
detector are named `IMAGE/what` or `IMAGE/what/LEVEL`, with the name of the image file
without its ending; coordinates are those of the network input but for `*_original`.
Heads are NCHW. Of features the first 8 channels are kept, and the mean and the standard
deviation of every channel.
"""

import argparse
import pathlib
import re
from unittest import mock

import numpy as np
import torch
import torchvision
from PIL import Image
from random_weights import fill
from torchvision.models import detection
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.transform import resize_boxes

DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
# The part of a classifier that a detector stands on: the last layer of each map.
RESNET = ("layer1", "layer2", "layer3", "layer4")
BACKBONES = {
    "vgg16": ("features.29",),  # conv5_3 and its relu, stride 16
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnext101_32x8d": RESNET,
    "mobilenet_v3_large": ("features.6", "features.12", "features.13", "features.16"),
    "squeezenet1_1": ("features.12",),  # the last fire module, stride 16
}


def main():
    """Write the files of each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="+", choices=[*DETECTORS, *BACKBONES])
    parser.add_argument("--images", nargs="*", type=pathlib.Path, default=[])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if set(args.names) & set(DETECTORS) and not args.images:
        parser.error("a detector needs --images")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        torch.manual_seed(args.seed)
        with torch.inference_mode():
            if name in DETECTORS:
                outputs = detector(name, args.out, args.images, args.seed)
            else:
                outputs = backbone(name, args.out, args.seed)
        np.savez(args.out / f"{name}_outputs.npz", **outputs)
        print(name, torchvision.__version__, flush=True)
        for key, value in outputs.items():
            if key.endswith(("/proposals", "/detections")):
                print(" ", key, len(value), flush=True)


def read(path, size=None):
    """Read an image as torchvision wants it: RGB, [3, H, W], 0 to 1."""
    image = Image.open(path).convert("RGB")
    image = image.resize(size) if size else image
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


def detector(name, out, images, seed):
    """Write the weights of a detector; return its outputs."""
    build = getattr(detection, name)
    model = build(weights=None, weights_backbone=None).eval()
    background = torch.tensor([3.0] + [0.0] * 90)
    # MobileNet's proposals must score 0.05: so low that not all of the best do.
    objectness = (-5.0, 1.7) if "mobilenet" in name else (-4.0, 1.2)
    spreads = {
        "rpn.head.cls_logits": objectness,
        "rpn.head.bbox_pred": (0.0, 0.1),
        "roi_heads.box_predictor.cls_score": (background, 1.4),
        "roi_heads.box_predictor.bbox_pred": (0.0, 0.7),
    }
    # Stretched to squares, so that no padding has a share in the statistics.
    squares = [read(path, (400, 400)) for path in images]
    fill(model, lambda: model(squares), spreads, seed)
    state = published_names(name, model.state_dict())
    torch.save(state, out / f"{name}.pth")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with mock.patch.object(type(weights), "get_state_dict", return_value=state):
        model = build(weights=weights).eval()
    outputs = {}
    for path in images:
        arrays = detect(model, read(path))
        outputs |= {f"{path.stem}/{key}": value for key, value in arrays.items()}
    return outputs


def published_names(name, state):
    """Return a state dict with the names of the published file.

    The files of version 1 are older than the code: the convolutions of FPN and RPN head
    were no sequences then, and frozen norms count no batches.
    """
    if name.endswith("_v2"):
        return dict(state)
    renamed = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        key = re.sub(r"^(backbone\.fpn\.\w+_blocks\.\d)\.0", r"\1", key)
        renamed[key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = value
    return renamed


def detect(model, image):
    """Run a detector on one image, step by step as its `forward` does."""
    rpn, roi = model.rpn, model.roi_heads
    original = tuple(image.shape[-2:])
    images, _ = model.transform([image])
    size = images.image_sizes[0]
    maps = model.backbone(images.tensors)
    features = list(maps.values())
    logits, deltas = rpn.head(features)
    arrays = {"batch": images.tensors, "image_size": torch.tensor(size)}
    for level, *of_level in zip(maps, features, logits, deltas, strict=True):
        arrays |= summary(f"features/{level}", of_level[0])
        arrays |= {f"logits/{level}": of_level[1], f"deltas/{level}": of_level[2]}
    anchors = rpn.anchor_generator(images, features)
    counts = [x[0].numel() for x in logits]
    logits, deltas = concat_box_prediction_layers(logits, deltas)
    decoded = rpn.box_coder.decode(deltas, anchors).view(1, -1, 4)
    proposals, scores = rpn.filter_proposals(
        decoded, logits, images.image_sizes, counts
    )
    pooled = roi.box_roi_pool(maps, proposals, images.image_sizes)
    class_logits, box_deltas = roi.box_predictor(roi.box_head(pooled))
    boxes, detection_scores, labels = roi.postprocess_detections(
        class_logits, box_deltas, proposals, images.image_sizes
    )
    arrays |= {
        "proposals": proposals[0],
        "proposals_original": resize_boxes(proposals[0], size, original),
        "proposal_scores": scores[0],
        "pooled": pooled[:, :8],
        "class_logits": class_logits,
        "box_deltas": box_deltas,
        "detections": boxes[0],
        "detections_original": resize_boxes(boxes[0], size, original),
        "detection_scores": detection_scores[0],
        "detection_labels": labels[0],
    }
    return {key: value.numpy() for key, value in arrays.items()}


def summary(key, features):
    """Keep the first channels of a map, and what tells of the others."""
    deviation, mean = torch.std_mean(features[0], (1, 2), correction=0)
    return {key: features[:, :8], f"{key}/mean": mean, f"{key}/std": deviation}


def backbone(name, out, seed):
    """Write the weights of a classifier; return features of a small input."""
    model = torchvision.models.get_model(name, weights=None).eval()
    # An odd size: what is done with the last row and column shows.
    x = torch.randn(1, 3, 97, 139)
    fill(model, lambda: model(x), {}, seed)
    torch.save(dict(model.state_dict()), out / f"{name}.pth")
    arrays = {"input": x}
    for layer in BACKBONES[name]:
        model.get_submodule(layer).register_forward_hook(
            lambda module, inputs, y, layer=layer: arrays.update({layer: y.clone()})
        )
    model(x)
    return {key: value.numpy() for key, value in arrays.items()}


if __name__ == "__main__":
    main()
