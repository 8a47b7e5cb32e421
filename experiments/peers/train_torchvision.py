"""The peer of the config `shapes`: torchvision's RPN on the same trunk and scenes.

usage: python experiments/peers/train_torchvision.py --scenes DIR [--steps 1500 ...]

Runs where torch and torchvision are installed; this project is not needed there. DIR
holds `train` and `val`, each written by `python -m experiments.prepare`. The trunk has
the layers and widths of `small_resnet_fpn`, the optimizer is AdamW with the same rate,
warm-up and cosine; head, anchors, matching, sampling, losses and proposals are
torchvision's own. Prints class-agnostic AR (pycocotools).
"""

import argparse
import contextlib
import io
import json
import math
import pathlib
import time

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

SIZES = ((16.0, 28.0), (44.0, 72.0), (112.0, 176.0))
RATIOS = ((0.5, 1.0, 2.0),) * 3


class Block(nn.Module):
    """Two 3 x 3 convolutions with group norm and a shortcut."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, c_out, eps=1e-6)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride)

    def forward(self, x):
        """Map [B, C, H, W] to half the resolution."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class Trunk(nn.Module):
    """Small ResNet with a feature pyramid at strides 8, 16, 32."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.norm = nn.GroupNorm(8, 16, eps=1e-6)
        widths = (16, 32, 64, 64, 96)
        self.stages = nn.ModuleList(
            Block(a, b, 2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.laterals = nn.ModuleList(nn.Conv2d(c, 64, 1) for c in widths[2:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x):
        """Return three maps of 64 channels, fine to coarse."""
        x = F.relu(self.norm(self.stem(x)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps = [conv(m) for conv, m in zip(self.laterals, maps[1:], strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2.0)
        return maps


def load(folder):
    """Read a COCO folder: the json and (id, image, boxes) of every scene."""
    folder = pathlib.Path(folder)
    data = json.loads((folder / "annotations.json").read_text())
    boxes = {}
    for note in data["annotations"]:
        x, y, w, h = note["bbox"]
        boxes.setdefault(note["image_id"], []).append([x, y, x + w, y + h])
    scenes = [
        (
            image["id"],
            folder / "images" / image["file_name"],
            np.array(boxes.get(image["id"], []), np.float32).reshape(-1, 4),
        )
        for image in data["images"]
    ]
    return data, scenes


MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def make_batch(scenes, rng=None):
    """Read, normalise and, in training, flip."""
    images, targets = [], []
    for _, file, boxes in scenes:
        image = (np.asarray(Image.open(file), np.float32) / 255 - MEAN) / STD
        if rng is not None and rng.random() < 0.5:
            image, width = image[:, ::-1], image.shape[1]
            boxes = np.stack(
                [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1
            )
        images.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        targets.append({"boxes": torch.from_numpy(np.ascontiguousarray(boxes))})
    stack = torch.stack(images)
    return ImageList(stack, [tuple(i.shape[1:]) for i in images]), targets


def recall(json_file, results):
    """Class-agnostic AR by pycocotools, and recall at IoU 0.5 with 300 proposals."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(json_file))
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.params.useCats, run.params.maxDets = 0, [10, 100, 300, 1000]
        run.evaluate()
        run.accumulate()
    table = run.eval["recall"]  # [T, K, area, max]
    counts = enumerate(run.params.maxDets)
    figures = {f"AR@{k}": table[:, 0, 0, i].mean() for i, k in counts}
    for area, name in ((1, "small"), (2, "medium"), (3, "large")):
        figures[f"AR@100_{name}"] = table[:, 0, area, 1].mean()
    figures["R50@300"] = table[0, 0, 0, 2]
    return {name: round(float(value), 4) for name, value in figures.items()}


def main():
    """Train, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--box-weight", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    trunk, head = Trunk(), RPNHead(64, 6)
    counts = {"training": 2000, "testing": 1000}
    rpn = RegionProposalNetwork(
        AnchorGenerator(SIZES, RATIOS), head, 0.7, 0.3, 256, 0.5, counts, counts, 0.7
    )
    params = [*trunk.parameters(), *rpn.parameters()]
    print(sum(p.numel() for p in params), "parameters,", torchvision.__version__)
    optimizer = torch.optim.AdamW(params, args.lr, weight_decay=1e-4)
    _, scenes = load(pathlib.Path(args.scenes) / "train")
    order, times = [], []
    for step in range(args.steps):
        if len(order) < args.batch:
            order += list(rng.permutation(len(scenes)))
        chosen, order = order[: args.batch], order[args.batch :]
        images, targets = make_batch([scenes[i] for i in chosen], rng)
        cosine = 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 50) * cosine
        start = time.perf_counter()
        maps = {str(i): m for i, m in enumerate(trunk(images.tensors))}
        losses = rpn(images, maps, targets)[1]
        loss = losses["loss_objectness"] + args.box_weight * losses["loss_rpn_box_reg"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 10.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
        if step % 100 == 0:
            parts = {k: round(v.item(), 4) for k, v in losses.items()}
            print(step, parts, f"{np.median(times[-100:]):.3f} s/step", flush=True)
    trunk.eval()
    rpn.eval()
    data, scenes = load(pathlib.Path(args.scenes) / "val")
    category, results = data["categories"][0]["id"], []
    for scene in scenes:
        with torch.no_grad():
            images, _ = make_batch([scene])
            maps = list(trunk(images.tensors))
            boxes, scores = propose(rpn, images, maps)
        boxes[:, 2:] -= boxes[:, :2]
        results += [
            {"image_id": scene[0], "category_id": category, "bbox": box, "score": score}
            for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)
        ]
    figures = recall(pathlib.Path(args.scenes) / "val" / "annotations.json", results)
    print(json.dumps(figures | {"s_per_step": round(float(np.median(times)), 4)}))


def propose(rpn, images, maps):
    """Return boxes and scores of one image; `rpn.forward` drops the scores."""
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    logits, deltas = rpn.head(maps)
    anchors = rpn.anchor_generator(images, maps)
    counts = [x[0].numel() for x in logits]
    logits, deltas = concat_box_prediction_layers(logits, deltas)
    decoded = rpn.box_coder.decode(deltas, anchors).view(1, -1, 4)
    boxes, scores = rpn.filter_proposals(decoded, logits, images.image_sizes, counts)
    return boxes[0], scores[0]


if __name__ == "__main__":
    main()
