"""From a picture to boxes in one call."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from rpn_jax.data import Resize, decode_image
from rpn_jax.data.transforms import pad_image, resize_pixels
from rpn_jax.faster_rcnn import FasterRCNN, FasterRCNNConfig, make_network
from rpn_jax.pretrained import is_own, load, load_params_npz
from rpn_jax.pretrained.load import network_config
from rpn_jax.proposals import Proposals
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.checkpoint import Checkpoints, best_figure
from rpn_jax.training.config import config_from_json

DEMO = Path(__file__).parent / "pretrained" / "demo.npz"
"""The packaged weights, trained on synthetic scenes."""


class Prediction(NamedTuple):
    """Where objects may be in one image, best first.

    Attributes:
        boxes: `[n, 4]` float32 xyxy, pixels of the image as given.
        scores: `[n]` float32, descending.
    """

    boxes: np.ndarray
    scores: np.ndarray

    def best(self, count: int) -> "Prediction":
        """Return the best `count` of them."""
        return Prediction(self.boxes[:count], self.scores[:count])


class Objects(NamedTuple):
    """Objects found in one image, best first.

    Attributes:
        boxes: `[n, 4]` float32 xyxy, pixels of the image as given.
        scores: `[n]` float32, descending.
        labels: `[n]` int32, classes from 0.
        names: of the classes of these, n of them.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]

    def best(self, count: int) -> "Objects":
        """Return the best `count` of them."""
        arrays = (self.boxes[:count], self.scores[:count], self.labels[:count])
        return Objects(*arrays, self.names[:count])


class Model(NamedTuple):
    """A network with its weights.

    Attributes:
        config: of the network.
        params: its variables dict.
        resize: how images get the size that it was trained at.
        data: the data fields of the run that it comes from, if any.
        pad_to: images are padded to multiples of this. Much padding means few sizes,
            so few compilations; weights of a peer want what the peer pads to, because
            its anchors (torchvision) or features at the border depend on it.
    """

    config: RPNConfig | FasterRCNNConfig
    params: Any
    resize: Resize = Resize()
    data: Any = None
    pad_to: int = 128

    @classmethod
    def of(cls, config: RPNConfig | FasterRCNNConfig, params: Any) -> "Model":
        """Take weights trained elsewhere: images as their convention wants them."""
        image = config.convention.image
        return cls(config, params, Resize.of(image), pad_to=image.pad_to)


class Predictor:
    """Proposes boxes, or with a detector detects objects, in images of any size.

    Images are resized as in evaluation and padded to multiples of `pad_to`, with one
    compilation for each padded size met.

    Args:
        model: a run's folder (its best checkpoint, else its last), a weight file of
            ours or of a peer (see `load_model`), a `Model`, or None for the packaged
            demo weights.
        pad_to: pixels; None: the model's own.

    Example:
        >>> predict = Predictor("runs/demo")  # doctest: +SKIP
        >>> boxes, scores = predict("photo.jpg")  # doctest: +SKIP
        >>> detect = Predictor("fasterrcnn_resnet50_fpn.pth")  # doctest: +SKIP
        >>> boxes, scores, labels, names = detect("photo.jpg")  # doctest: +SKIP
    """

    def __init__(
        self, model: str | Path | Model | None = None, *, pad_to: int | None = None
    ) -> None:
        if not isinstance(model, Model):
            model = load_model(DEMO if model is None else model)
        self.model = model
        self.pad_to = model.pad_to if pad_to is None else pad_to
        self._params = jax.device_put(model.params)
        network = make_network(model.config)
        self._classes: tuple[str, ...] = ()
        if isinstance(network, FasterRCNN):
            self._classes = network.config.classes
            self._find = jax.jit(network.detect)
        else:
            self._find = jax.jit(network.propose)

    def __call__(
        self, image: str | Path | Image.Image | np.ndarray | jax.Array
    ) -> Prediction | Objects:
        """Find boxes in one image.

        Args:
            image: a path, a PIL image, or an array `[H, W]`, `[H, W, 3]` or
                `[H, W, 4]`. A photograph is turned upright by its EXIF tag.

        Returns:
            Boxes in pixels of the (upright) image, best first; none of them padding.
            `Prediction` of an RPN, `Objects` of a detector.

        Raises:
            DataError: the image is missing, broken or empty.
        """
        name = str(image) if isinstance(image, str | Path) else "image"
        if isinstance(image, jax.Array):
            image = np.asarray(image)
        image = decode(image, name=name)
        pixels, scales = resize_pixels(image, self.model.resize)
        size = pixels.shape[:2]
        padded = tuple(-(-side // self.pad_to) * self.pad_to for side in size)
        batch = pad_image(pixels, padded)[None]
        sizes = np.array([size], np.int32)
        scale = np.array([np.mean(scales)], np.float32)
        found = self._find(self._params, batch, sizes, image_scales=scale)
        found = jax.device_get(found)
        valid = found.valid[0]
        sy, sx = scales
        boxes = found.boxes[0][valid] * np.array([1 / sx, 1 / sy] * 2, np.float32)
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        scores = found.scores[0][valid]
        if isinstance(found, Proposals):
            return Prediction(boxes, scores)
        labels = found.labels[0][valid]
        names = [self._classes[label] for label in labels]
        return Objects(boxes, scores, labels, names)


decode = partial(decode_image, upright=True)


def load_model(path: str | Path) -> Model:
    """Load a network from a run's folder or a weight file.

    Args:
        path: a folder made by `experiments.train` (best checkpoint, else last), an
            `.npz` written at its end, or a file that `pretrained.load` knows.

    Raises:
        FileNotFoundError: there is no such folder or file, or no checkpoint in it.
        ValueError: the file is no weight file, does not say its network or the size of
            its images, or holds a trunk alone.
        ImportError: the library that reads it is missing.
    """
    path = Path(path)
    if path.is_dir():
        return _load_run(path)
    config, params, report, _ = load(path)
    if report.missing:
        raise ValueError(f"{path} holds a trunk, {report.model}, not a whole network")
    data = load_params_npz(path)[1].get("data") if is_own(path) else None
    if data is None:
        return Model.of(config, params)
    try:
        resize = config_from_json(Resize, data["resize"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say how images are resized") from error
    return Model(config, params, resize, data)


def _load_run(folder: Path) -> Model:
    file = folder / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} holds no run: there is no {file}")
    try:
        values = json.loads(file.read_text())
        config, data = network_config(values["model"]), values["data"]
        resize = config_from_json(Resize, data["resize"])
        averaged = values["optimizer"]["ema"] > 0
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file} is no configuration of a run: {reason}") from error
    side = resize.max_size
    init = partial(make_network(config).init, image_size=(side, side))
    like = jax.eval_shape(init, jax.random.key(0))
    if not (folder / "checkpoints").is_dir():
        raise FileNotFoundError(f"{folder} holds no checkpoint yet")
    figure = best_figure(config)
    with Checkpoints(
        folder / "checkpoints", metric=figure, read_only=True
    ) as checkpoints:
        step = checkpoints.last if checkpoints.best is None else checkpoints.best
        if step is None:
            raise FileNotFoundError(f"{folder} holds no checkpoint yet")
        params = checkpoints.restore_params(like, step=step, ema=averaged)
    return Model(config, params, resize, data)
