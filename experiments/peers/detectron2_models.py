"""Detectron2's models with random weights: files to compare with.

usage: python experiments/peers/detectron2_models.py OUT NAME ... --images FILE ...

Runs where torch and detectron2 are installed; this project is not needed there. For
each NAME, a config of `COCO-Detection` or a key of `BACKBONES`, writes to the folder
OUT

- `NAME.pkl`, in the form of the files that detectron2 publishes;
- `NAME.pth`, in the form of those that its trainer saves (not for a backbone);
- `NAME_outputs.npz`, what the model gives that has loaded the first.

Arrays of a detector are named `IMAGE/what` or `IMAGE/what/LEVEL`, with the name of the
image file without its ending; coordinates are those of the network input but for
`*_original`. Heads are NCHW, `image` is what goes into the model, [H, W, BGR]. Of
features the first 8 channels are kept, and the mean and the standard deviation of every
channel.
"""

import argparse
import io
import pathlib
import pickle
import struct

import detectron2
import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import detection_utils, transforms
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList
from PIL import Image
from random_weights import fill
from torchvision.models import resnet50

# Published ImageNet backbones, and a config in which each is the trunk.
BACKBONES = {
    "R-50": "rpn_R_50_C4_1x",
    "R-101": "faster_rcnn_R_101_C4_3x",
    "X-101-32x8d": "faster_rcnn_X_101_32x8d_FPN_3x",
    "R-50-torchvision": "rpn_R_50_C4_1x",
}
STAGES = ("res2", "res3", "res4", "res5")


def main():
    """Write the files of each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--images", nargs="*", type=pathlib.Path, default=[])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        torch.manual_seed(args.seed)
        with torch.no_grad():
            if name in BACKBONES:
                outputs = backbone(name, args.out, args.seed)
            elif args.images:
                outputs = detector(name, args.out, args.images, args.seed)
            else:
                parser.error("a detector needs --images")
        np.savez(args.out / f"{name}_outputs.npz", **outputs)
        print(name, detectron2.__version__, flush=True)
        for key, value in outputs.items():
            if key.endswith(("/proposals", "/detections")):
                print(" ", key, len(value), flush=True)


def config(name):
    """Return a config of the model zoo, without weights, for CPU."""
    cfg = model_zoo.get_config(f"COCO-Detection/{name}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    return cfg


def detector(name, out, images, seed):
    """Write the weights of a model; return its outputs."""
    cfg = config(name)
    model = build_model(cfg).eval()
    background = torch.tensor([0.0] * 80 + [3.0])
    spreads = {
        "proposal_generator.rpn_head.objectness_logits": (-4.0, 1.2),
        "proposal_generator.rpn_head.anchor_deltas": (0.0, 0.1),
        "roi_heads.box_predictor.cls_score": (background, 1.4),
        "roi_heads.box_predictor.bbox_pred": (0.0, 0.7),
    }
    # Stretched to squares, so that no padding has a share in the statistics.
    squares = [
        Image.fromarray(detection_utils.read_image(path, cfg.INPUT.FORMAT))
        for path in images
    ]
    squares = [np.asarray(image.resize((800, 800))) for image in squares]
    fill(model, lambda: model([{"image": tensor(x)} for x in squares]), spreads, seed)
    state = model.state_dict()
    torch.save({"model": state}, out / f"{name}.pth")
    # Published files are of 2019, when these were saved too.
    buffers = {"pixel_mean": model.pixel_mean, "pixel_std": model.pixel_std}
    for i, cells in enumerate(model.proposal_generator.anchor_generator.cell_anchors):
        buffers[f"proposal_generator.anchor_generator.cell_anchors.{i}"] = cells
    write(out / f"{name}.pkl", "Detectron2 Model Zoo", state | buffers)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(out / f"{name}.pkl"))
    outputs = {}
    for path in images:
        arrays = detect(cfg, model, path)
        outputs |= {f"{path.stem}/{key}": value for key, value in arrays.items()}
    return outputs


def write(path, author, state, **more):
    """Write a pickle of arrays, as the model zoo has them."""
    arrays = {key: value.numpy() for key, value in state.items()}
    content = {"model": arrays, "__author__": author} | more
    path.write_bytes(old_numpy(pickle.dumps(content, protocol=3)))


def old_numpy(data):
    """Name the module of arrays as before NumPy 2; it is named once, at the start."""
    return data.replace(b"numpy._core.", b"numpy.core.", 1)


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as one kind of string, as Python 2 did."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, value):
        """Write a string."""
        data = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def tensor(image):
    """Return [H, W, 3] as float [3, H, W]."""
    return torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1).copy())


def detect(cfg, model, path):
    """Run a model on one image, step by step as its `forward` does."""
    image = detection_utils.read_image(path, cfg.INPUT.FORMAT)
    height, width = image.shape[:2]
    low, high = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    resize = transforms.ResizeShortestEdge([low, low], high).get_transform(image)
    image = resize.apply_image(image)
    pixels = (tensor(image) - model.pixel_mean) / model.pixel_std
    images = ImageList.from_tensors([pixels], model.backbone.size_divisibility)
    maps = model.backbone(images.tensor)
    rpn = model.proposal_generator
    features = [maps[level] for level in rpn.in_features]
    logits, deltas = rpn.rpn_head(features)
    arrays = {
        "image": torch.tensor(image),
        "batch_shape": torch.tensor(images.tensor.shape),
    }
    for level, *of_level in zip(rpn.in_features, features, logits, deltas, strict=True):
        arrays |= summary(f"features/{level}", of_level[0])
        arrays |= {f"logits/{level}": of_level[1], f"deltas/{level}": of_level[2]}
    proposals, _ = rpn(images, maps)
    arrays |= {
        "proposals": proposals[0].proposal_boxes.tensor.clone(),
        "proposal_logits": proposals[0].objectness_logits,
    }
    if hasattr(model, "roi_heads"):
        arrays |= second_stage(model.roi_heads, maps, proposals, height, width)
    # Scales the boxes in place.
    original = detector_postprocess(proposals[0], height, width)
    arrays["proposals_original"] = original.proposal_boxes.tensor
    return {key: value.numpy() for key, value in arrays.items()}


def second_stage(roi, maps, proposals, height, width):
    """Pool the proposals and detect."""
    features = [maps[level] for level in roi.in_features]
    boxes = [proposals[0].proposal_boxes]
    if hasattr(roi, "res5"):
        pooled = roi.pooler(features, boxes)
        vectors = roi.res5(pooled).mean((2, 3))
    else:
        pooled = roi.box_pooler(features, boxes)
        vectors = roi.box_head(pooled)
    class_logits, box_deltas = roi.box_predictor(vectors)
    (found,), _ = roi.box_predictor.inference((class_logits, box_deltas), proposals)
    arrays = {
        "pooled": pooled[:, :8].clone(),
        "class_logits": class_logits,
        "box_deltas": box_deltas,
        "detections": found.pred_boxes.tensor.clone(),
    }
    # Scales the boxes in place.
    original = detector_postprocess(found, height, width)
    return arrays | {
        "detections_original": original.pred_boxes.tensor,
        "detection_scores": found.scores,
        "detection_labels": found.pred_classes,
    }


def summary(key, features):
    """Keep the first channels of a map, and what tells of the others."""
    deviation, mean = torch.std_mean(features[0], (1, 2), correction=0)
    return {key: features[:, :8], f"{key}/mean": mean, f"{key}/std": deviation}


def backbone(name, out, seed):
    """Write an ImageNet backbone; return its features of a small input."""
    cfg = config(BACKBONES[name])
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    if name == "R-50-torchvision":
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    shape = ShapeSpec(channels=3)
    # An odd size: what is done with the last row and column shows.
    x = 60 * torch.randn(1, 3, 97, 139)
    path = out / f"{name}.pkl"
    if name == "R-50-torchvision":
        source = resnet50().eval()
        fill(source, lambda: source(x), {}, seed)
        state = {converted_name(k): v for k, v in source.state_dict().items()}
        write(path, "torchvision", state, matching_heuristics=True)
    else:
        source = build_resnet_backbone(cfg, shape).eval()
        fill(source, lambda: source(x), {}, seed)
        file = io.BytesIO()
        Python2Pickler(file, protocol=2).dump(caffe2_blobs(source))
        path.write_bytes(old_numpy(file.getvalue()))
    model = build_resnet_backbone(cfg, shape).eval()
    DetectionCheckpointer(model).load(str(path))
    return {"input": x.numpy()} | {k: v.numpy() for k, v in model(x).items()}


def converted_name(key):
    """Return the name of a torchvision weight in a file converted to detectron2."""
    key = key if key.startswith("layer") else f"stem.{key}"
    key = key.replace("downsample.0", "shortcut").replace(
        "downsample.1", "shortcut.norm"
    )
    for i in range(1, 5):
        key = key.replace(f"layer{i}.", f"res{i + 1}.").replace(
            f"bn{i}.", f"conv{i}.norm."
        )
    return key


def caffe2_blobs(trunk):
    """Return a trunk as an ImageNet file of Caffe2: its names, its folded norms."""
    branches = {
        "conv1": "branch2a",
        "conv2": "branch2b",
        "conv3": "branch2c",
        "shortcut": "branch1",
    }
    blobs = {}
    for name, conv in trunk.named_modules():
        if not isinstance(conv, torch.nn.Conv2d):
            continue
        *block, conv_name = name.split(".")
        if block == ["stem"]:
            blob, norm_blob = "conv1", "res_conv1_bn"
            blobs["conv1_b"] = np.zeros(len(conv.weight), np.float32)
        else:
            blob = "_".join([*block, branches[conv_name]])
            norm_blob = f"{blob}_bn"
        norm = conv.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        blobs[f"{blob}_w"] = conv.weight.numpy()
        blobs[f"{norm_blob}_s"] = scale.numpy()
        blobs[f"{norm_blob}_b"] = (norm.bias - norm.running_mean * scale).numpy()
    random = np.random.default_rng(0)
    blobs["fc1000_w"] = random.normal(size=(1000, 2048)).astype(np.float32) / 100
    blobs["fc1000_b"] = np.zeros(1000, np.float32)
    return blobs


if __name__ == "__main__":
    main()
