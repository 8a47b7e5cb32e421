"""SqueezeNet weights from a seed, under torchvision's names; as a script, the goldens.

    python tests/pretrained/squeezenet_weights.py OUT.npz

needs torch and torchvision and writes `tests/golden/squeezenet.npz`.
"""

import sys

import numpy as np

FIRES = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)}
FIRES |= {9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}


def state_dict(seed=0):
    """Random weights of `squeezenet1_1`'s features, in float32, kernels OIHW."""
    shapes = {"features.0": (64, 3, 3, 3)}
    for n, (c, squeeze, expand) in FIRES.items():
        shapes[f"features.{n}.squeeze"] = (squeeze, c, 1, 1)
        shapes[f"features.{n}.expand1x1"] = (expand, squeeze, 1, 1)
        shapes[f"features.{n}.expand3x3"] = (expand, squeeze, 3, 3)
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weights[f"{name}.weight"] = rng.normal(0, scale, shape).astype(np.float32)
        weights[f"{name}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    return weights


def image(height=65, width=97):
    """One random NHWC image."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(1, height, width, 3)).astype(np.float32)


def main(path):
    """Run torchvision's trunk, as it is and with all pools and conv1 padded by 1."""
    import torch
    import torchvision

    net = torchvision.models.squeezenet1_1()
    weights = {k: torch.from_numpy(v) for k, v in state_dict().items()}
    missing = net.load_state_dict(weights, strict=False)
    assert missing.missing_keys == ["classifier.1.weight", "classifier.1.bias"]
    assert not missing.unexpected_keys
    out = {}
    with torch.no_grad():
        for name in ("torchvision", "same"):
            for height, width in ((65, 97), (64, 96)):
                x = torch.from_numpy(image(height, width)).permute(0, 3, 1, 2)
                y = net.features(x).permute(0, 2, 3, 1).numpy()
                out[f"{name}_{height}x{width}"] = y[..., ::4]
            net.features[0].padding = (1, 1)
            for pool in (net.features[n] for n in (2, 5, 8)):
                pool.padding, pool.ceil_mode = 1, False
    np.savez_compressed(path, **out)
    print({k: v.shape for k, v in out.items()})


if __name__ == "__main__":
    main(sys.argv[1])
