"""Torchvision trains a detector; what it saw and lost is written down.

usage: python experiments/peers/follow_torchvision.py OUT.npz [--weights FILE.pth]

Runs where torch and torchvision are installed; this project is not needed there.
`python -m experiments.follow OUT.npz` takes the same steps and compares.

The model is `fasterrcnn_resnet50_fpn`, built by its own builder as for its published
weights: frozen batch norms, stem and layer1 not trained. In place of these it gets
those of a file, or random ones with the statistics of a batch in their norms. Trunk,
pyramid and both stages are trained by SGD, images going through torchvision's own
transform. Nothing is drawn: every anchor and every RoI is trained on. With --tiny, for
the tests, the trunk is two convolutions, the first not trained: `--tiny --steps 5 --lr
0.1 --weight-decay 0.05` gave their file.

OUT.npz holds `weights/NAME`, the start; `lr`, `momentum`, `weight_decay`; `proposals`,
how many an image has at most; and with one entry a step (B images, H x W with their
padding, G boxes at most)

- `images` [B, H, W, 3] uint8 RGB, zero where padded, and `image_sizes` [B, 2];
- `boxes` [B, G, 4] xyxy, `labels` [B, G], classes from 0, -1 where there is no box;
- `loss_classifier`, `loss_box_reg`, `loss_objectness` and `loss_rpn_box_reg`.
"""

import argparse
import pathlib
from unittest import mock

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

BOXES = 6
MOMENTUM = 0.9
EVERYTHING = 20_000  # anchors of an image, or RoIs: more than there are


class Tiny(nn.Module):
    """Maps of strides 4 and 8; a kernel is as large as its stride."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4).requires_grad_(False)
        self.down = nn.Conv2d(8, 8, 2, 2)

    def forward(self, x):
        """Return the maps, fine to coarse."""
        x = F.relu(self.stem(x))
        return {"0": x, "1": F.relu(self.down(x))}


def tiny():
    """Build a detector of two classes around the tiny trunk."""
    model = FasterRCNN(
        Tiny(),
        min_size=32,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,)), ((0.5, 1.0, 2.0),) * 2),
        box_head=TwoMLPHead(8 * 7 * 7, 16),
        box_predictor=FastRCNNPredictor(16, 3),
    )
    for parameter in model.rpn.head.parameters():
        if parameter.ndim == 4:  # large, so that the trunk has a share in the losses
            nn.init.normal_(parameter, std=0.2)
    return model


def published(file):
    """Build `fasterrcnn_resnet50_fpn` as for its weights; return its state dict too."""
    build = torchvision.models.detection.fasterrcnn_resnet50_fpn
    sizes = {"min_size": 192, "max_size": 256, "rpn_post_nms_top_n_train": 300}
    if file:
        state = torch.load(file, weights_only=True)
    else:
        state = calibrated(build(weights=None, weights_backbone=None, **sizes))
    weights = torchvision.models.get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT
    with mock.patch.object(type(weights), "get_state_dict", return_value=state):
        return build(weights=weights, **sizes), state


def calibrated(model):
    """Make of the initial weights such as training leaves; return the state dict.

    The builder has put frozen norms only where there are weights: the others become
    fixed by what a batch has given them.
    """
    for name, norm in model.backbone.body.named_modules():
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        norm.momentum = None  # the average over batches, here one
        # Small at the end of a block, so that the sums do not grow from block to block.
        least = 0.15 if name.endswith("bn3") else 0.5
        nn.init.uniform_(norm.weight, least, 3 * least)
        nn.init.normal_(norm.bias, std=0.2)
    for layer in (model.rpn.head.cls_logits, model.rpn.head.bbox_pred):
        nn.init.normal_(layer.weight, std=0.03)
    rng = np.random.default_rng(0)
    images = [as_torch(scene(rng, 192, 256, 1)[0]) for _ in range(4)]
    images, _ = model.transform(images)
    with torch.no_grad():
        model.train().backbone(images.tensors)
    return {key: value.clone() for key, value in model.state_dict().items()}


def scene(rng, height, width, least, classes=1):
    """Draw rectangles on noise: pixels [H, W, 3] uint8, boxes [n, 4] xyxy, labels."""
    image = rng.integers(0, 128, (height, width, 3), dtype=np.uint8)
    boxes = []
    for _ in range(rng.integers(least, BOXES + 1)):
        h, w = (int(side * rng.uniform(0.15, 0.7)) for side in (height, width))
        y, x = rng.integers(height - h), rng.integers(width - w)
        image[y : y + h, x : x + w] //= 2
        image[y : y + h, x : x + w] += rng.integers(0, 192, 3, dtype=np.uint8)
        boxes.append((x, y, x + w, y + h))
    labels = rng.integers(0, classes, len(boxes))
    return image, np.array(boxes, np.float32).reshape(-1, 4), labels


def as_torch(pixels, dtype=torch.float32):
    """Turn an image into what torchvision's transform wants."""
    return torch.from_numpy(pixels).permute(2, 0, 1).to(dtype) / 255


def train_step(model, optimizer, scenes, dtype):
    """Take one step; return what belongs to it, by name."""
    images = [as_torch(pixels, dtype) for pixels, *_ in scenes]
    targets = [
        {"boxes": torch.from_numpy(boxes).to(dtype), "labels": torch.tensor(labels) + 1}
        for _, boxes, labels in scenes
    ]
    batch, resized = model.transform(images, targets)
    for (pixels, boxes, _), target, size in zip(
        scenes, resized, batch.image_sizes, strict=True
    ):  # the scenes have their size already
        assert size == pixels.shape[:2] and np.array_equal(target["boxes"], boxes)
    losses = model(images, targets)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    padded = np.zeros((len(scenes), *batch.tensors.shape[-2:], 3), np.uint8)
    padded_boxes = np.zeros((len(scenes), BOXES, 4), np.float32)
    padded_labels = np.full((len(scenes), BOXES), -1, np.int32)
    for i, (pixels, boxes, labels) in enumerate(scenes):
        padded[i, : pixels.shape[0], : pixels.shape[1]] = pixels
        padded_boxes[i, : len(boxes)] = boxes
        padded_labels[i, : len(boxes)] = labels
    return {
        "images": padded,
        "image_sizes": np.array(batch.image_sizes, np.int32),
        "boxes": padded_boxes,
        "labels": padded_labels,
        **{name: loss.item() for name, loss in losses.items()},
    }


def main():
    """Train, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--weights", type=pathlib.Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--double", action="store_true", help="train in float64")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.0025)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    if args.tiny:
        model = tiny()
        state = {key: value.clone() for key, value in model.state_dict().items()}
    else:
        model, state = published(args.weights)
    dtype = torch.float64 if args.double else torch.float32
    model.to(dtype)
    short, long = model.transform.min_size[0], model.transform.max_size
    sampler = BalancedPositiveNegativeSampler(EVERYTHING, 0.5)
    model.rpn.fg_bg_sampler = model.roi_heads.fg_bg_sampler = sampler
    classes = model.roi_heads.box_predictor.cls_score.out_features - 1
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained, args.lr, momentum=MOMENTUM, weight_decay=args.weight_decay
    )
    model.train()
    steps = []
    for step in range(args.steps):
        # One lies, one stands: both are padded. The second may have no object.
        sizes = ((short, long, 1), (long, short, 0))
        scenes = [scene(rng, *size, classes) for size in sizes]
        steps.append(train_step(model, optimizer, scenes, dtype))
        losses = {key: x for key, x in steps[-1].items() if key.startswith("loss")}
        print(step + 1, *(f"{x:.4f} {key}" for key, x in losses.items()), flush=True)
    np.savez_compressed(
        args.out,
        **{f"weights/{key}": value.numpy() for key, value in state.items()},
        **{key: np.stack([step[key] for step in steps]) for key in steps[0]},
        lr=args.lr,
        momentum=MOMENTUM,
        weight_decay=args.weight_decay,
        proposals=model.rpn.post_nms_top_n(),
    )
    print("torchvision", torchvision.__version__, "torch", torch.__version__)


if __name__ == "__main__":
    main()
