"""Export: a network and its weights in one file that JAX alone can run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from rpn_jax.faster_rcnn import FasterRCNN, FasterRCNNConfig, make_network
from rpn_jax.rpn import RPNConfig

PLATFORMS = ("cpu", "cuda", "tpu")


def export_network(
    config: RPNConfig | FasterRCNNConfig,
    params: Any,
    *,
    image_size: tuple[int, int],
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """Serialize `propose`, or `detect` of a detector, for batches of any size.

    What it gives is run by `jax.export.deserialize(...).call(images, image_sizes,
    image_scales)`, which needs JAX and nothing else: not this library, nor the weights,
    which are constants of the program. Results are those of the function called
    directly, to the bit on a platform.

    Args:
        config: of the network.
        params: its variables dict.
        image_size: (H, W) of the padded images, in pixels; fixed in what is exported.
        platforms: where it is to run, of "cpu", "cuda", "rocm" and "tpu".

    Returns:
        Bytes, to be written to a file. The exported function takes `images`
        `[b, H, W, 3]` uint8 RGB, zero where padded, `image_sizes` `[b, 2]` int32,
        (height, width) of their content, and `image_scales` `[b]` float32, network size
        / original size (1 where in doubt: it matters to `py_faster_rcnn` alone). It
        returns a dict of `boxes` `[b, K, 4]` float32 xyxy in pixels of the padded
        image, `scores` `[b, K]`, `valid` `[b, K]` bool, and `levels` of proposals or
        `labels` of detections, `[b, K]` int32: the fields of `Proposals` and
        `Detections`.

    Raises:
        ImportError: the package `flatbuffers` is missing.
        ValueError: a platform is unknown, or a side of the image is not positive.

    Example:
        >>> from rpn_jax.rpn import rpn
        >>> config = RPNConfig(backbone="small_resnet", sizes=((32.0, 64.0),))
        >>> params = rpn(config).init(jax.random.key(0), image_size=(64, 64))
        >>> data = export_network(config, params, image_size=(64, 64))
        >>> export.deserialize(data).in_avals[0].str_short()
        'uint8[b,64,64,3]'
    """
    if not platforms or not {*platforms} <= {*PLATFORMS, "rocm"}:
        raise ValueError(
            f"platforms must be some of cpu, cuda, rocm and tpu, got {platforms}"
        )
    height, width = image_size
    if min(height, width) < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
    network = make_network(config)
    detector = isinstance(network, FasterRCNN)
    find = network.detect if detector else network.propose
    constants = jax.tree.map(np.asarray, params)

    def call(images, image_sizes, image_scales):
        # A plain dict: a NamedTuple would have to be known where this is loaded.
        return find(constants, images, image_sizes, image_scales=image_scales)._asdict()

    (b,) = export.symbolic_shape("b")
    arguments = (
        jax.ShapeDtypeStruct((b, height, width, 3), jnp.uint8),
        jax.ShapeDtypeStruct((b, 2), jnp.int32),
        jax.ShapeDtypeStruct((b,), jnp.float32),
    )
    exported = export.export(jax.jit(call), platforms=list(platforms))(*arguments)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ImportError(
            "export wants the package flatbuffers: pip install 'rpn_jax[export]'"
        ) from error
