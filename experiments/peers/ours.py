"""The stages of this project: jitted, a batch by `vmap`."""

import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from numpy_stages import boxes_alone, named_matches, state_dict

import rpn_jax as rj
from experiments.config import load_config
from rpn_jax.batch import Batch
from rpn_jax.faster_rcnn import FasterRCNN, make_network
from rpn_jax.pretrained import load
from rpn_jax.rpn import rpn
from rpn_jax.training.mesh import data_mesh, put_batch, replicated
from rpn_jax.training.optimizer import make_optimizer
from rpn_jax.training.state import create_state
from rpn_jax.training.step import make_train_step

# Or the seconds of compilation would be those of reading a file.
jax.config.update("jax_enable_compilation_cache", False)
# A call runs in the thread that makes it, as torch's do; else handing it to another
# one takes as long as a small NMS.
jax.config.update("jax_cpu_enable_async_dispatch", False)


def about():
    """Tell what runs here, and on what."""
    device = jax.devices()[0]
    return {
        "rpn_jax": rj.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "platform": device.platform,
        "device": device.device_kind,
    }


def compiled(function, *args):
    """Compile for args on the device; return `run` and the facts of compiling."""
    args = jax.device_put(args)
    function = jax.jit(function)
    start = time.perf_counter()
    program = function.lower(*args).compile()
    facts = compile_facts(program, time.perf_counter() - start)
    return lambda: jax.block_until_ready(program(*args)), facts


def compile_facts(program, seconds):
    """Tell what compiling took, and what the program holds while it runs."""
    memory = program.memory_analysis()
    temporary = None if memory is None else memory.temp_size_in_bytes
    return {"compile_s": seconds, "temp_bytes": temporary}


def named(*names):
    """Make a function that turns a tuple of arrays into a dict of NumPy arrays."""
    return lambda result: dict(zip(names, map(np.asarray, result), strict=True))


def prepare_nms(arrays, options):
    """`nms` of each image."""

    def one(boxes, scores, groups=None):
        return rj.nms(
            boxes,
            scores,
            iou_threshold=options["threshold"],
            max_outputs=options["most"],
            groups=groups,
        ).indices

    args = [arrays[x] for x in ("boxes", "scores", "groups") if x in arrays]
    if len(args[0]) == 1:  # one image is not a batch of one
        args = [x[0] for x in args]
        run, facts = compiled(one, *args)
        return run, lambda kept: {"kept": np.asarray(kept)[None]}, facts
    run, facts = compiled(jax.vmap(one), *args)
    return run, lambda kept: {"kept": np.asarray(kept)}, facts


def prepare_topk(arrays, options):
    """`top_k`."""

    def best(scores):
        found = rj.top_k(scores, options["k"])
        return found.indices[None], found.values

    run, facts = compiled(best, arrays["scores"])
    return run, named("chosen", "values"), facts


def prepare_match(arrays, options):
    """`match_anchors`."""

    def match(anchors, gt):
        found = rj.match_anchors(anchors, gt)
        return found.labels, found.gt_index

    run, facts = compiled(match, arrays["anchors"], arrays["gt"])
    return run, lambda found: named_matches(*found), facts


def prepare_sample(arrays, options):
    """`sample_balanced`, 256 of which half may be positive."""
    draw = partial(rj.sample_balanced, size=256, positive_fraction=0.5)
    labels = arrays["labels"]
    run, facts = compiled(draw, jax.random.key(0), labels)
    return run, lambda mask: {"counts": drawn(labels, mask)}, facts


def drawn(labels, mask):
    """How many positives and negatives were drawn."""
    labels, mask = np.asarray(labels), np.asarray(mask)
    return np.array([((labels == x) & mask).sum() for x in (1, 0)])


def prepare_encode(arrays, options):
    """`encode_boxes` of all anchors."""
    run, facts = compiled(rj.encode_boxes, arrays["boxes"], arrays["anchors"])
    return run, lambda deltas: {"deltas": np.asarray(deltas)}, facts


def prepare_targets(arrays, options):
    """`anchor_targets`."""

    def targets(key, anchors, gt):
        made = rj.anchor_targets(key, anchors, gt, None, options["size"])
        return made.labels, made.sampled, made.deltas

    def collect(made):
        labels, sampled, deltas = map(np.asarray, made)
        # Positives that were not drawn are not coded; the others' are, so for the
        # comparison they are put in here.
        anchors, gt = arrays["anchors"], arrays["gt"]
        every = rj.encode_boxes(gt[rj.match_anchors(anchors, gt).gt_index], anchors)
        left = ((labels == 1) & ~sampled)[:, None]
        deltas = np.where(left, every, deltas)
        return {"labels": labels, "counts": drawn(labels, sampled), "deltas": deltas}

    args = (jax.random.key(0), arrays["anchors"], arrays["gt"])
    run, facts = compiled(targets, *args)
    return run, collect, facts


def prepare_decode(arrays, options):
    """`decode_boxes` of all anchors."""
    decode = jax.vmap(rj.decode_boxes, in_axes=(0, None))
    run, facts = compiled(decode, arrays["deltas"], arrays["anchors"])
    return run, lambda boxes: {"boxes": np.asarray(boxes)}, facts


def prepare_proposals(arrays, options):
    """`generate_proposals` of each image, from the head's outputs."""
    levels = options["levels"]

    def one(anchors, logits, deltas):
        return rj.generate_proposals(
            anchors,
            logits,
            deltas,
            options["size"],
            pre_nms_top_n=options["pre"],
            post_nms_top_n=options["most"],
            iou_threshold=options["threshold"],
            min_size=options["min_size"],
            min_size_strict=False,
        )

    anchors = [arrays["anchors"][at:end] for at, end in levels]
    logits, deltas = (
        [arrays[name][:, at:end] for at, end in levels] for name in ("logits", "deltas")
    )

    def collect(made):
        rows = np.concatenate([made.boxes, made.scores[..., None]], -1)
        return {"rows": rows.reshape(-1, options["most"], 5)}

    if len(arrays["logits"]) == 1:
        logits, deltas = [x[0] for x in logits], [x[0] for x in deltas]
        run, facts = compiled(one, anchors, logits, deltas)
    else:
        run, facts = compiled(
            jax.vmap(one, in_axes=(None, 0, 0)), anchors, logits, deltas
        )
    return run, collect, facts


def prepare_roi(arrays, options):
    """`roi_align`, and the gradient of its features where there is a cotangent."""
    align = partial(
        rj.roi_align,
        output_size=options["bins"],
        spatial_scale=options["scale"],
        sampling_ratio=options["sampling"],
        aligned=options["aligned"],
    )

    def pool(features, boxes, *cotangent):
        pooled, pull = jax.vjp(lambda x: align(x, boxes), features)
        return pooled, *(gradient for x in cotangent for gradient in pull(x))

    def collect(result):
        names = ("pooled", "gradient")[: len(result)]
        return named(*names)(result)

    run, facts = compiled(pool, *arrays.values())
    return run, collect, facts


def prepare_train(arrays, options):
    """The training step of the config `bccd`, random weights."""
    config = load_config("bccd")
    model, mesh = rpn(config.model), data_mesh(1)
    optimizer = make_optimizer(config.optimizer, lr=config.lr, steps=config.steps)

    def init(key):
        params = model.init(key, image_size=arrays["images"].shape[1:3])
        return create_state(params, optimizer)

    state = jax.jit(init, out_shardings=replicated(mesh))(jax.random.key(0))
    step = make_train_step(model.loss, optimizer, key=jax.random.key(1), mesh=mesh)
    count, most = arrays["valid"].shape
    batch = Batch(
        arrays["images"],
        arrays["sizes"],
        arrays["boxes"],
        arrays["valid"],
        np.zeros((count, most), bool),
        np.ones((count, 2), np.float32),
        np.arange(count, dtype=np.int32),
        np.where(arrays["valid"], 0, -1).astype(np.int32),
    )
    batch = put_batch(mesh, batch)
    start = time.perf_counter()
    program = step.lower(state, batch).compile()
    facts = compile_facts(program, time.perf_counter() - start)
    # Each step takes the state that the one before left.
    holder = [state]

    def run():
        holder[0], metrics = jax.block_until_ready(program(holder[0], batch))
        return metrics["loss"]

    return run, lambda loss: {"loss": np.asarray(jnp.isfinite(loss))}, facts


def prepare_network(arrays, options):
    """Proposals or detections of a whole network, from torchvision's weights."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.npz"
        np.savez(file, **state_dict(arrays))
        loaded = load(file)
    model = make_network(loaded.config)
    assert isinstance(model, FasterRCNN)
    function = model.detect if options["what"] == "detections" else model.propose
    images = arrays["images"]
    run, facts = compiled(
        function, loaded.params, images, np.array([images.shape[1:3]])
    )
    return run, lambda found: {"rows": boxes_alone(found.boxes)}, facts


STAGES = {
    "nms": prepare_nms,
    "topk": prepare_topk,
    "match": prepare_match,
    "sample": prepare_sample,
    "encode": prepare_encode,
    "targets": prepare_targets,
    "decode": prepare_decode,
    "proposals": prepare_proposals,
    "filter": prepare_proposals,
    "roi": prepare_roi,
    "train": prepare_train,
    "network": prepare_network,
}
