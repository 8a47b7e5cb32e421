"""Make tests/golden/preprocessing.npz: what each peer's network gets for an image.

usage: python preprocessing.py FILE        with torchvision, Pillow and OpenCV

Two synthetic images, upright and wide, each enlarged and reduced, alone in a batch.
A row of 4001 pixels shows the rounding of torch's positions. torchvision runs its own
transform; of detectron2 (`ResizeShortestEdge`,
`preprocess_image`) and py-faster-rcnn (`prep_im_for_blob`) the rules are written down
here, on the libraries that they call.
"""

import sys

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform

# The shorter side, and the bound of the longer one.
SIZES = {"up": (32, 60), "down": (12, 40)}


def torchvision(image, min_size, max_size):
    """RGB of 0..1, normalised, then resized, then padded to multiples of 32."""
    transform = GeneralizedRCNNTransform(
        min_size, max_size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ).eval()
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    batch, _ = transform([pixels])
    return batch.tensors[0].permute(1, 2, 0).numpy(), batch.image_sizes[0]


def detectron2(image, min_size, max_size):
    """BGR bytes resized by Pillow, less the mean, padded to multiples of 32."""
    height, width = image.shape[:2]
    scale = min_size / min(height, width)
    h, w = (min_size, scale * width) if height < width else (scale * height, min_size)
    if max(h, w) > max_size:
        scale = max_size / max(h, w)
        h, w = h * scale, w * scale
    h, w = int(h + 0.5), int(w + 0.5)
    bgr = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    pixels = np.asarray(bgr.resize((w, h), Image.Resampling.BILINEAR), np.float32)
    pixels = pixels - np.array([103.53, 116.28, 123.675], np.float32)
    return np.pad(pixels, ((0, -h % 32), (0, -w % 32), (0, 0))), (h, w)


def py_faster_rcnn(image, min_size, max_size):
    """BGR floats less the mean, resized by OpenCV, not padded."""
    pixels = image[..., ::-1].astype(np.float32)
    pixels -= np.array([102.9801, 115.9465, 122.7717])
    scale = min_size / min(image.shape[:2])
    if np.round(scale * max(image.shape[:2])) > max_size:
        scale = max_size / max(image.shape[:2])
    pixels = cv2.resize(
        pixels, None, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR
    )
    return pixels, pixels.shape[:2]


PEERS = {
    "torchvision": torchvision,
    "detectron2": detectron2,
    "py_faster_rcnn": py_faster_rcnn,
}


def main(file):
    """Write the arrays."""
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        for name, shape in {"upright": (37, 23), "wide": (20, 45)}.items()
    }
    arrays = dict(images)
    for peer, prepare in PEERS.items():
        for way, sizes in SIZES.items():
            arrays[f"sizes_{way}"] = np.array(sizes)
            for name, image in images.items():
                pixels, size = prepare(image, *sizes)
                arrays[f"{peer}_{way}_{name}"] = pixels.astype(np.float32)
                arrays[f"{peer}_{way}_{name}_size"] = np.array(size)
    arrays["row"] = rng.integers(0, 256, (1, 4001), dtype=np.uint8)
    row = torch.from_numpy(arrays["row"])[None, None].float()
    row = F.interpolate(row, (1, 1066), mode="bilinear", align_corners=False)
    arrays["torchvision_row"] = row[0, 0].numpy()
    np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
