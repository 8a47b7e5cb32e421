"""NMS in keras-hub, on its JAX backend, jitted."""

import os
import time

os.environ["KERAS_BACKEND"] = "jax"  # before keras is imported

import jax
import keras
import keras_hub
import numpy as np
from keras_hub.src.layers.modeling.non_max_supression import non_max_suppression

jax.config.update("jax_cpu_enable_async_dispatch", False)  # as in `ours`


def about():
    """Tell what runs here."""
    return {
        "keras": keras.__version__,
        "keras-hub": keras_hub.__version__,
        "jax": jax.__version__,
    }


def prepare_nms(arrays, options):
    """The function behind `keras_hub.layers.NonMaxSuppression`; all images at once."""
    if "groups" in arrays:
        raise NotImplementedError("its NMS knows no groups")
    most = options["most"]

    @jax.jit
    def suppress(boxes, scores):
        return non_max_suppression(
            boxes[..., [1, 0, 3, 2]],  # it wants y first
            scores,
            max_output_size=most,
            iou_threshold=options["threshold"],
            score_threshold=float("-inf"),
        )

    args = jax.device_put((arrays["boxes"], arrays["scores"]))

    def collect(result):
        indices, count = map(np.asarray, result)
        return {"kept": np.where(np.arange(most) < count[:, None], indices, -1)}

    start = time.perf_counter()
    program = suppress.lower(*args).compile()
    facts = {"compile_s": time.perf_counter() - start}
    facts["temp_bytes"] = program.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(program(*args)), collect, facts


STAGES = {"nms": prepare_nms}
