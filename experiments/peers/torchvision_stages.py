"""The stages in torchvision.

Each is the code that `RegionProposalNetwork` runs, image by image where it does so.
Tensors lie on the device before the clock starts. On CPU torch gets as many threads as
the process has cores; on a GPU each call ends with a synchronisation.
"""

import os
import time

import numpy as np
import torch
import torchvision
from numpy_stages import boxes_alone, named_matches, pad, state_dict
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import FrozenBatchNorm2d, batched_nms, nms, roi_align

GPU = os.environ.get("BENCHMARK_DEVICE") == "gpu" and torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
torch.set_num_threads(len(os.sched_getaffinity(0)))


def about():
    """Tell what runs here, and on what."""
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name() if GPU else "cpu",
        "threads": torch.get_num_threads(),
    }


def transform(function):
    """Leave a function as it is; `torchvision_compiled` puts torch.compile here."""
    return function


def tensors(*arrays):
    """Move arrays to the device."""
    return [torch.from_numpy(np.ascontiguousarray(x)).to(DEVICE) for x in arrays]


def job(function, args, collect):
    """Make the `run`, `collect` and facts of a function without gradients."""
    transformed = transform(function)

    def run():
        with torch.no_grad():
            result = transformed(*args)
        if GPU:
            torch.cuda.synchronize()
        return result

    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    return run, collect, {} if transformed is function else {"compile_s": first}


def make_rpn(pre, post, threshold):
    """Build the network's last part; trunk and head are not used by most stages."""
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((1.0,),) * 5)
    counts = ({"training": n, "testing": n} for n in (pre, post))
    head = RPNHead(8, 3)
    rpn = RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, *counts, threshold)
    return rpn.to(DEVICE).eval()


def cpu(tensor):
    """Make a NumPy array of a tensor."""
    return tensor.detach().cpu().numpy()


def prepare_nms(arrays, options):
    """`nms`, or `batched_nms` where there are groups; the first so many are taken."""
    threshold, most = options["threshold"], options["most"]
    names = [x for x in ("boxes", "scores", "groups") if x in arrays]
    args = tensors(*(arrays[x] for x in names))
    suppress = batched_nms if "groups" in names else nms

    def images(*args):
        return [suppress(*image, threshold)[:most] for image in zip(*args, strict=True)]

    def collect(kept):
        return {"kept": pad([cpu(x) for x in kept], most, -1)}

    return job(images, args, collect)


def prepare_topk(arrays, options):
    """`torch.topk`."""

    def best(scores):
        return scores.topk(options["k"])

    def collect(found):
        return {"chosen": cpu(found.indices)[None], "values": cpu(found.values)}

    return job(best, tensors(arrays["scores"]), collect)


def prepare_match(arrays, options):
    """IoU and `Matcher`, as in `assign_targets_to_anchors`."""
    rpn = make_rpn(1000, 1000, 0.7)

    def match(anchors, gt):
        return rpn.proposal_matcher(rpn.box_similarity(gt, anchors))

    def collect(index):
        index = cpu(index)
        return named_matches(np.select([index >= 0, index == -1], [1, 0], -1), index)

    return job(match, tensors(arrays["anchors"], arrays["gt"]), collect)


def prepare_sample(arrays, options):
    """`BalancedPositiveNegativeSampler`."""
    sampler = make_rpn(1000, 1000, 0.7).fg_bg_sampler

    def collect(masks):
        return {"counts": np.array([int(cpu(mask[0]).sum()) for mask in masks])}

    return job(
        lambda labels: sampler([labels]), tensors(arrays["labels"] + 0.0), collect
    )


def prepare_encode(arrays, options):
    """`BoxCoder.encode` of all anchors."""
    coder = make_rpn(1000, 1000, 0.7).box_coder
    args = tensors(arrays["boxes"], arrays["anchors"])

    def encode(boxes, anchors):
        return coder.encode([boxes], [anchors])[0]

    return job(encode, args, lambda deltas: {"deltas": cpu(deltas)})


def prepare_targets(arrays, options):
    """`assign_targets_to_anchors`, the sampler, `BoxCoder.encode`."""
    rpn = make_rpn(1000, 1000, 0.7)

    def targets(anchors, gt):
        labels, matched = rpn.assign_targets_to_anchors([anchors], [{"boxes": gt}])
        positive, negative = rpn.fg_bg_sampler(labels)
        deltas = rpn.box_coder.encode(matched, [anchors])
        return labels[0], positive[0], negative[0], deltas[0]

    def collect(made):
        labels, positive, negative, deltas = map(cpu, made)
        return {
            "labels": labels.astype(np.int64),
            "counts": np.array([positive.sum(), negative.sum()]),
            # Those of the other anchors are coded too, and never used.
            "deltas": np.where(labels[:, None] == 1, deltas, 0),
        }

    return job(targets, tensors(arrays["anchors"], arrays["gt"]), collect)


def prepare_decode(arrays, options):
    """`BoxCoder.decode` of all anchors."""
    coder = make_rpn(1000, 1000, 0.7).box_coder
    args = tensors(arrays["deltas"], arrays["anchors"])

    def decode(deltas, anchors):
        count = len(deltas)
        boxes = coder.decode(deltas.reshape(-1, 4), [anchors] * count)
        return boxes.view(count, -1, 4)

    return job(decode, args, lambda boxes: {"boxes": cpu(boxes)})


def prepare_proposals(arrays, options, *, decoded=False):
    """`BoxCoder.decode` and `filter_proposals`, as in `forward`."""
    rpn = make_rpn(options["pre"], options["most"], options["threshold"])
    counts = [end - at for at, end in options["levels"]]
    logits, deltas, anchors = tensors(
        *(arrays[name] for name in ("logits", "deltas", "anchors"))
    )
    sizes = [tuple(options["size"])] * len(logits)

    def decode(deltas):
        boxes = rpn.box_coder.decode(deltas.reshape(-1, 4), [anchors] * len(deltas))
        return boxes.view(len(deltas), -1, 4)

    def propose(logits, deltas):
        boxes = deltas if decoded else decode(deltas)
        return rpn.filter_proposals(boxes, logits, sizes, counts)

    def collect(made):
        rows = [
            np.column_stack([cpu(x) for x in image])
            for image in zip(*made, strict=True)
        ]
        return {"rows": pad(rows, options["most"], 0)}

    return job(propose, [logits, decode(deltas) if decoded else deltas], collect)


def prepare_filter(arrays, options):
    """`filter_proposals` alone; the boxes are decoded before the clock starts."""
    return prepare_proposals(arrays, options, decoded=True)


def prepare_roi(arrays, options):
    """`roi_align`, and the gradient of its features where there is a cotangent."""
    first = [arrays["features"].transpose(2, 0, 1)[None]]
    if "cotangent" in arrays:
        first.append(arrays["cotangent"].transpose(0, 3, 1, 2))
    boxes, features, *cotangent = tensors(arrays["boxes"], *first)
    features.requires_grad_(bool(cotangent))

    def run():
        pooled = roi_align(
            features,
            [boxes],
            options["bins"],
            options["scale"],
            options["sampling"],
            options["aligned"],
        )
        result = (
            pooled,
            *(torch.autograd.grad(pooled, features, x)[0] for x in cotangent),
        )
        if GPU:
            torch.cuda.synchronize()
        return result

    def collect(result):
        last = [np.moveaxis(cpu(x), 1, -1) for x in result]
        return {"pooled": last[0]} | ({"gradient": last[1][0]} if cotangent else {})

    return run, collect, {}


class Fire(nn.Module):
    """SqueezeNet's block."""

    def __init__(self, channels, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        """Map [B, C, H, W] to as many pixels of 2 * expand channels."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


def squeezenet():
    """Build the trunk of the config `bccd`: SqueezeNet 1.1 at stride 16."""
    fires = [(64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)]
    fires += [(256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)]
    layers = [nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for i, widths in enumerate(fires):
        layers += [Fire(*widths)] + ([nn.MaxPool2d(3, 2, 1)] if i in (1, 3) else [])
    return nn.Sequential(*layers)


def prepare_train(arrays, options):
    """Forward, backward and SGD of the recipe of the config `bccd`.

    `RegionProposalNetwork.forward` makes proposals in training too, for a second stage
    that is not there. Without the option `proposals` they are left out.
    """
    anchors = AnchorGenerator(((32, 64, 128, 256),), ((0.5, 1.0, 2.0),))
    counts = [{"training": n, "testing": n} for n in (2000, 1000)]
    rpn = RegionProposalNetwork(
        anchors, RPNHead(512, 12), 0.7, 0.3, 256, 0.5, *counts, 0.7
    )
    trunk, rpn = squeezenet().to(DEVICE).train(), rpn.to(DEVICE).train()
    params = [*trunk.parameters(), *rpn.parameters()]
    optimizer = torch.optim.SGD(params, 0.01, momentum=0.9, weight_decay=1e-4)
    mean = np.array([103.939, 116.779, 123.68], np.float32)
    images = arrays["images"][..., ::-1] - mean
    for image, (height, width) in zip(images, arrays["sizes"], strict=True):
        image[height:], image[:, width:] = 0, 0
    (pixels,) = tensors(images.transpose(0, 3, 1, 2))
    batch = ImageList(pixels, [tuple(size) for size in arrays["sizes"].tolist()])
    truth = [
        {"boxes": tensors(boxes[valid])[0]}
        for boxes, valid in zip(arrays["boxes"], arrays["valid"], strict=True)
    ]

    def losses(maps):
        if options["proposals"]:
            return rpn(batch, {"0": maps}, truth)[1].values()
        made = rpn.anchor_generator(batch, [maps])
        logits, deltas = concat_box_prediction_layers(*rpn.head([maps]))
        labels, matched = rpn.assign_targets_to_anchors(made, truth)
        wanted = rpn.box_coder.encode(matched, made)
        return rpn.compute_loss(logits, deltas, labels, wanted)

    def run():
        loss = sum(losses(trunk(batch.tensors)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 10.0)
        optimizer.step()
        return loss.item()  # waits for the device

    return run, lambda loss: {"loss": np.isfinite(loss)}, {}


def prepare_network(arrays, options):
    """`fasterrcnn_resnet50_fpn` with the frozen norms of its published weights.

    Without the resizing of `GeneralizedRCNNTransform`, which has nothing to do here.
    """
    trunk = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d
    )
    model = FasterRCNN(trunk, num_classes=91).to(DEVICE).eval()
    model.load_state_dict(
        {name: torch.from_numpy(x) for name, x in state_dict(arrays).items()}
    )
    (images,) = tensors(np.float32(arrays["images"].transpose(0, 3, 1, 2) / 255))

    def find(images):
        batch = torch.stack([model.transform.normalize(x) for x in images])
        sizes = [tuple(batch.shape[2:])] * len(batch)
        maps = model.backbone(batch)
        boxes, _ = model.rpn(ImageList(batch, sizes), maps)
        if options["what"] == "proposals":
            return boxes[0]
        return model.roi_heads(maps, boxes, sizes)[0][0]["boxes"]

    def collect(boxes):
        most = 1000 if options["what"] == "proposals" else 100
        return {"rows": boxes_alone(pad([cpu(boxes)], most, 0))}

    return job(find, [images], collect)


STAGES = {
    "nms": prepare_nms,
    "topk": prepare_topk,
    "match": prepare_match,
    "sample": prepare_sample,
    "encode": prepare_encode,
    "targets": prepare_targets,
    "decode": prepare_decode,
    "proposals": prepare_proposals,
    "filter": prepare_filter,
    "roi": prepare_roi,
    "train": prepare_train,
    "network": prepare_network,
}
