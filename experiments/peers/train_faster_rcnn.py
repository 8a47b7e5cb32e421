"""The peer of `bccd_faster_rcnn` and `voc_faster_rcnn`: torchvision's `FasterRCNN`.

usage: python experiments/peers/train_faster_rcnn.py --train JSON --val JSON \
           --images DIR --weights NPZ [--steps 600 ...] [--rpn-only]

Runs where torch and torchvision are installed; this project is not needed there. JSON
is in COCO's form; NPZ holds Keras' SqueezeNet 1.1. Trunk, images (long side 384, padded
to a square, Caffe's mean), optimizer, schedule, number of proposals and width of the
box head are those of the configs; everything else is torchvision's own, initial weights
too. Objects with `iscrowd` are absent in training and count for nothing in the
evaluation. Prints AP of detections, class-agnostic AR of the RPN's proposals (both
pycocotools) and seconds per step. With --rpn-only the second stage is left out: the
peer of `bccd` and `voc`.
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
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, poolers, roi_align

SIDE = 384
SIZES, RATIOS = ((32.0, 64.0, 128.0, 256.0),), ((0.5, 1.0, 2.0),)
MEAN = np.array([103.939, 116.779, 123.68], np.float32)  # BGR
FIRES = (
    *((64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)),
    *((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)),
)


class Fire(nn.Module):
    """A 1 x 1 convolution to few channels, then 1 x 1 and 3 x 3 side by side."""

    def __init__(self, c_in, squeeze, expand):
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(c_in, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        """Map [B, C, H, W] to twice `expand` channels."""
        x = F.relu(self.squeeze1x1(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 up to fire9, stride 16."""

    out_channels = 512

    def __init__(self, npz):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1)
        self.fires = nn.ModuleList(Fire(*widths) for widths in FIRES)
        arrays = np.load(npz)

        def put(conv, name):
            kernel = arrays[f"{name}/kernel"].transpose(3, 2, 0, 1)
            conv.weight.data = torch.from_numpy(np.ascontiguousarray(kernel))
            conv.bias.data = torch.from_numpy(arrays[f"{name}/bias"])

        put(self.conv1, "conv1")
        for number, fire in enumerate(self.fires, 2):
            for name, conv in fire.named_children():
                put(conv, f"fire{number}/{name}")

    def forward(self, x):
        """Return one map of 512 channels."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, 1)
        for number, fire in enumerate(self.fires, 2):
            x = fire(x)
            if number in (3, 5):
                x = F.max_pool2d(x, 3, 2, 1)
        return x


class DenseGradient(torch.autograd.Function):
    """torchvision's RoIAlign whose gradient is a matmul with dense weights.

    The same sum in another order; torchvision's own loop is the costliest part of a
    step on CPU.
    """

    @staticmethod
    def forward(ctx, features, rois, output_size, spatial_scale, sampling_ratio):
        """Call torchvision's op."""
        ctx.save_for_backward(rois)
        ctx.shape, ctx.sampling = features.shape, (spatial_scale, sampling_ratio)
        return roi_align(features, rois, output_size, spatial_scale, sampling_ratio)

    @staticmethod
    def backward(ctx, gradient):
        """Contract each image's RoIs with the weights of its rows and columns."""
        (rois,), (scale, samples) = ctx.saved_tensors, ctx.sampling
        total = gradient.new_zeros(ctx.shape)

        def weights(first, last, bins, length):
            size = ((last - first) * scale).clamp(min=1.0)
            at = (torch.arange(bins * samples) + 0.5) / (bins * samples)
            sample = first[:, None] * scale + size[:, None] * at
            near = sample.clamp(0, length - 1)[..., None] - torch.arange(length)
            tent = (1 - near.abs()).clamp(min=0)
            tent = tent * ((sample >= -1) & (sample <= length))[..., None]
            return tent.unflatten(1, (bins, samples)).mean(2)

        for i in range(len(total)):
            here = rois[:, 0] == i
            part, (x1, y1, x2, y2) = gradient[here], rois[here, 1:].unbind(1)
            y = weights(y1, y2, part.shape[2], total.shape[2])
            x = weights(x1, x2, part.shape[3], total.shape[3])
            rows = torch.einsum("rcpq,rqw->rpcw", part, x)
            total[i] = torch.einsum("rpcw,rph->chw", rows, y)
        return total, None, None, None, None


class Padded(nn.Module):
    """Stands for `GeneralizedRCNNTransform`: images are resized, and only padded."""

    def forward(self, images, targets=None):
        """Put images [3, h, w] into the corner of squares of zeros."""
        batch = torch.zeros(len(images), 3, SIDE, SIDE)
        for square, image in zip(batch, images, strict=True):
            square[:, : image.shape[1], : image.shape[2]] = image
        return ImageList(batch, [tuple(x.shape[1:]) for x in images]), targets

    def postprocess(self, result, image_sizes, original_sizes):
        """Leave detections in pixels of the resized image."""
        return result


def dense_roi_align(features, rois, output_size, spatial_scale, sampling_ratio):
    """Stand for `torchvision.ops.roi_align` in its poolers."""
    return DenseGradient.apply(
        features, rois, output_size, spatial_scale, sampling_ratio
    )


def make_model(weights, classes):
    """Make the detector; the RPN's last proposals and scores are in `model.found`."""
    anchors = AnchorGenerator(SIZES, RATIOS)
    pool = MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2)
    # Else guessed from the size of the first image without its padding: for a flat one
    # the result would be 1 / 8.
    pool.scales, pool.map_levels = [1 / 16], poolers.initLevelMapper(4, 4)
    model = FasterRCNN(
        SqueezeNet(weights),
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=1000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=300,
        box_roi_pool=pool,
        box_head=TwoMLPHead(512 * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, classes + 1),
    )
    model.transform = Padded()
    choose = model.rpn.filter_proposals

    def filter_proposals(*args):  # `RegionProposalNetwork.forward` drops the scores
        model.found = choose(*args)
        return model.found

    model.rpn.filter_proposals = filter_proposals
    return model


def without_second_stage(model):
    """Leave trunk and RPN of a detector; forward gives the RPN's losses."""

    def forward(images, targets=None):
        batch, targets = model.transform(images, targets)
        return model.rpn(batch, {"0": model.backbone(batch.tensors)}, targets)[1]

    del model.roi_heads
    model.forward = forward
    return model


def load(json_file):
    """Read a COCO json: category ids and (id, file, boxes, classes from 1)."""
    data = json.loads(pathlib.Path(json_file).read_text())
    categories = sorted(c["id"] for c in data["categories"])
    notes = {image["id"]: [] for image in data["images"]}
    for note in data["annotations"]:
        if not note.get("iscrowd", 0):
            x, y, w, h = note["bbox"]
            label = categories.index(note["category_id"]) + 1
            notes[note["image_id"]].append(([x, y, x + w, y + h], label))
    records = []
    for image in data["images"]:
        boxes = [box for box, _ in notes[image["id"]]]
        labels = torch.tensor([label for _, label in notes[image["id"]]]).long()
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        records.append((image["id"], image["file_name"], boxes, labels))
    return categories, records


def read(file):
    """Return the image [3, h, w], normalised, and its scale [4] for xyxy boxes."""
    image = Image.open(file).convert("RGB")
    width, height = image.size
    w, h = (round(x * SIDE / max(width, height)) for x in image.size)
    pixels = np.asarray(image.resize((w, h), Image.BILINEAR), np.float32)
    pixels = (pixels[..., ::-1] - MEAN).transpose(2, 0, 1)
    scale = np.array([w / width, h / height] * 2, np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels)), scale


def make_batch(folder, records, rng):
    """Read images and boxes; mirror half of them."""
    images, targets = [], []
    for _, name, boxes, labels in records:
        image, scale = read(folder / name)
        boxes = torch.from_numpy(boxes * scale)
        if rng.random() < 0.5:
            image, (x1, y1, x2, y2) = image.flip(2), boxes.unbind(1)
            width = image.shape[2]
            boxes = torch.stack([width - x2, y1, width - x1, y2], 1)
        images.append(image)
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


def evaluate(json_file, results, *, max_proposals=None):
    """Run pycocotools: AP of detections, or class-agnostic AR of proposals."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(json_file))
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        if max_proposals is not None:
            run.params.useCats, run.params.maxDets = 0, list(max_proposals)
        run.evaluate()
        run.accumulate()
        if max_proposals is None:
            run.summarize()
    if max_proposals is None:
        names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
        figures = dict(zip(names, run.stats, strict=False))
    else:
        table = run.eval["recall"]  # [T, K, area, max]
        counts = enumerate(max_proposals)
        figures = {f"AR@{k}": table[:, 0, 0, i].mean() for i, k in counts}
        figures[f"R50@{max_proposals[-1]}"] = table[0, 0, 0, -1]
    return {name: round(float(value), 4) for name, value in figures.items()}


def results_of(image_id, boxes, scores, categories):
    """Make COCO results of boxes [n, 4] xyxy in original pixels."""
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    return [
        {"image_id": image_id, "category_id": c, "bbox": b, "score": s}
        for b, s, c in zip(boxes.tolist(), scores.tolist(), categories, strict=True)
    ]


def main():
    """Train, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--images", required=True, type=pathlib.Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dense-gradient", action="store_true")
    parser.add_argument("--rpn-only", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.dense_gradient:
        poolers.roi_align = dense_roi_align
    rng = np.random.default_rng(args.seed)
    categories, scenes = load(args.train)
    model = make_model(args.weights, len(categories)).train()
    if args.rpn_only:
        model = without_second_stage(model)
    params = list(model.parameters())
    print(sum(p.numel() for p in params), "parameters,", torchvision.__version__)
    optimizer = torch.optim.SGD(params, args.lr, momentum=0.9, weight_decay=1e-4)
    order, times = [], []
    for step in range(args.steps):
        if len(order) < args.batch:
            order += list(rng.permutation(len(scenes)))
        chosen, order = order[: args.batch], order[args.batch :]
        images, targets = make_batch(args.images, [scenes[i] for i in chosen], rng)
        cosine = 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 50) * cosine
        start = time.perf_counter()
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(params, 10.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
        if step % 20 == 0 or step == args.steps - 1:
            parts = {k: round(v.item(), 4) for k, v in losses.items()}
            print(step, parts, f"{np.median(times[-20:]):.3f} s/step", flush=True)
    model.eval()
    detections, proposals = [], []
    for image_id, name, _, _ in load(args.val)[1]:
        image, scale = read(args.images / name)
        with torch.no_grad():
            found = model([image])
        if not args.rpn_only:
            (found,) = found
            labels = [categories[i - 1] for i in found["labels"].tolist()]
            boxes, scores = found["boxes"].numpy() / scale, found["scores"].numpy()
            detections += results_of(image_id, boxes, scores, labels)
        (boxes,), (scores,) = model.found
        boxes, scores = boxes.numpy() / scale, scores.numpy()
        labels = [categories[0]] * len(boxes)
        proposals += results_of(image_id, boxes, scores, labels)
    figures = {} if args.rpn_only else evaluate(args.val, detections)
    figures |= evaluate(args.val, proposals, max_proposals=(10, 100, 300))
    print(json.dumps(figures | {"s_per_step": round(float(np.median(times)), 4)}))


if __name__ == "__main__":
    main()
