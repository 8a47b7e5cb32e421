# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. A torchvision checkpoint in JAX
#
# You have a detector that was trained in torchvision, and you work in JAX. Its weights
# give the same proposals and the same detections here (the tests of the library hold
# the outputs against torchvision's own arrays), and what you train here can go back.
#
# **One warning.** This notebook must run without a download, so unless you name a file
# below it draws *random* weights of the right names and shapes. Everything works as
# with the real file, but the boxes that come out mean nothing. With the published file
# the same lines give real detections.

# %%
import dataclasses
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from rpn_jax.batch import Batch
from rpn_jax.data import Resize, ShapesSource, decode_image, make_dataset
from rpn_jax.faster_rcnn import FasterRCNNConfig, faster_rcnn
from rpn_jax.plotting import plot_detections, plot_proposals
from rpn_jax.predict import Model, Predictor
from rpn_jax.pretrained import (
    load,
    model_config,
    overlay,
    save_torchvision,
    torchvision_state_dict,
)
from rpn_jax.pretrained.coco import COCO_IDS
from rpn_jax.training.optimizer import OptimizerConfig, make_optimizer

# %config InlineBackend.figure_formats = ["jpeg"]
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
# Name the file that torchvision downloads, as it is (a `.pth` needs torch to be
# installed, a `.safetensors` does not), and a photograph:

# %%
CHECKPOINT = None  # such as "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
PICTURE = None  # such as "photo.jpg"
NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"

# %% [markdown]
# ## Stand-in weights
#
# The detector of that name, on MobileNetV3 for images of 320 pixels, with COCO's
# classes. We initialise it at random and write the arrays under torchvision's names. An
# untrained backbone gives huge features, and untrained heads hardly an opinion; so the
# former are made smaller and the latter larger, to be of the size of trained ones.

# %%
published = FasterRCNNConfig(
    rpn=model_config(NAME), classes=COCO_IDS, box_background=True
)


def stand_in():
    """Random weights under torchvision's names."""
    params = faster_rcnn(published).init(jax.random.key(0), image_size=(64, 64))
    arrays = torchvision_state_dict(published, params)
    last = {
        "rpn.head.cls_logits": 3.0,
        "rpn.head.bbox_pred": 0.8,
        "roi_heads.box_predictor.cls_score": 0.7,
    }
    for name in arrays:
        if name.startswith("backbone.fpn.layer_blocks"):
            arrays[name] = 0.02 * arrays[name]
    rng = np.random.default_rng(0)
    for layer, spread in last.items():
        shape = arrays[f"{layer}.weight"].shape
        scale = spread / np.sqrt(np.prod(shape[1:]))
        arrays[f"{layer}.weight"] = rng.normal(0, scale, shape).astype(np.float32)
    return arrays


checkpoint = CHECKPOINT or stand_in()
if not CHECKPOINT:
    for name in sorted(checkpoint):
        if name.startswith(("rpn.", "roi_heads.")):
            print(f"{name:40} {checkpoint[name].shape}")

# %% [markdown]
# The arrays of both heads; those of the backbone are many more. Names and layouts are
# torch's, with the channels of a convolution in front. Loading turns them round.

# %% [markdown]
# ## Load
#
# `load` takes a file or a dict of arrays. It recognises the model by the names in it,
# and refuses a file that lacks something or has something that nothing uses.

# %%
loaded = load(checkpoint)
print(loaded.report)

# %% [markdown]
# Always print the report: it says what the file was taken for, how many arrays are
# used, and what had to be assumed. Here the names cannot tell the variant for 320
# pixels from that for 800, so we say which one it is. The weights stay as they are.

# %%
config = dataclasses.replace(loaded.config, rpn=model_config(NAME))
print("backbone:", config.rpn.backbone)
print("anchor sizes at each point:", config.rpn.sizes[0])
print("classes:", ", ".join(config.classes[:6]), "...")

# %% [markdown]
# ## Proposals and detections
#
# A detector works in two stages. The RPN proposes boxes; a second stage looks into each
# proposal, names what it sees, and moves the box once more.
#
# `Predictor` does all the work around it for a picture of any size: resize, pad, go
# back to the pixels of the picture. It takes the two stages, or the RPN alone, which
# uses the same parameters. (Below it is `faster_rcnn(config).detect(params, images,
# image_sizes)`, a pure function to be jitted, which you can build into a program of
# your own.)

# %%
SIZE = 320
picture = ShapesSource(20, seed=3, size=SIZE)[7].image
if PICTURE:
    picture = decode_image(PICTURE, upright=True)

propose = Predictor(Model.of(config.rpn, loaded.params))
detect = Predictor(Model.of(config, loaded.params))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.6))
boxes, scores = propose(picture)
plot_proposals(picture, boxes, scores, top=15, ax=left, title="15 best proposals")
boxes, scores, _, names = detect(picture).best(5)
plot_detections(picture, boxes, scores, names, threshold=0.0, ax=right)
right.set_title("5 best detections", fontsize=9)
plt.show()

# %% [markdown]
# Left, what the first stage proposes; right, what the second stage makes of it. With
# the stand-in weights both are noise, and the names are a lottery. Put the published
# file into `CHECKPOINT`, a street scene into `PICTURE`, and raise the threshold to 0.5.

# %%
for name, score, box in zip(names, scores, boxes):
    print(f"{name:15} {score:.2f}  {box.round()}")

# %% [markdown]
# ## Fine-tuning: your classes, the trunk frozen
#
# Usually one keeps the backbone and the RPN and trains the second stage for classes of
# one's own. So: a configuration with six classes (those of the drawn shapes), `freeze`
# to leave the trunk alone, and `parts` to take only what fits from the checkpoint.
# `overlay` puts that onto a freshly initialised network.

# %%
mine = dataclasses.replace(
    published,
    classes=ShapesSource.classes,
    rpn=dataclasses.replace(published.rpn, freeze=("backbone/bottom_up",)),
)
model = faster_rcnn(mine)
partly = load(checkpoint, config=mine, parts=("backbone", "rpn"))
start = overlay(model.init(jax.random.key(1), image_size=(64, 64)), partly.params)
print("kept:", ", ".join(partly.params["params"]))
print("new: ", ", ".join(sorted(set(start["params"]) - set(partly.params["params"]))))

# %% [markdown]
# Three updates on one scene are enough to see that it works. Each draws the same sample
# (one key), so that their losses can be compared. The optimizer sees the collection
# `params`; the statistics of the batch norms lie in another, `constants`, and are never
# trained.

# %%
settings = OptimizerConfig(name="adamw", warmup=1, schedule="constant")
optimizer = make_optimizer(settings, lr=1e-5, steps=3, freeze=mine.freeze)


@jax.jit
def step(params, state, key, batch: Batch):
    """One update."""

    def loss(trained):
        return model.loss(key, {**params, "params": trained}, batch)

    trained = params["params"]
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    updates, state = optimizer.update(grads, state, trained)
    return {**params, "params": optax.apply_updates(trained, updates)}, state, value


square = dict(buckets=[(SIZE, SIZE)], max_boxes=20, resize=Resize(max_size=SIZE))
data = make_dataset(ShapesSource(100, seed=0, size=SIZE), batch=1, **square)
batch = next(data)
data.close()

tuned, state = start, optimizer.init(start["params"])
for number in range(3):
    tuned, state, value = step(tuned, state, jax.random.key(2), batch)
    print(f"step {number + 1}: loss {value:.2f}")


# %%
def moved(part):
    """Tell whether any parameter below `part` has changed."""
    pairs = jax.tree.map(lambda a, b: bool((a != b).any()), part(start), part(tuned))
    return any(jax.tree.leaves(pairs))


print("trunk moved:       ", moved(lambda p: p["params"]["backbone"]["bottom_up"]))
print("second stage moved:", moved(lambda p: p["params"]["box_predictor"]))

# %% [markdown]
# The trunk is as it was, to the last bit; no gradient was computed for it, either,
# which saves time.

# %% [markdown]
# ## Back to torchvision
#
# The way back gives the arrays torchvision's names and layouts. We write a file and
# look whether what was frozen is what it was in the checkpoint.

# %%
file = Path(tempfile.mkdtemp()) / "tuned.safetensors"
save_torchvision(file, mine, tuned, counts=loaded.counts)
again = load(file)
print(again.report.model)
print("classes:", len(again.config.classes))

# %%
arrays = torchvision_state_dict(mine, tuned, counts=loaded.counts)
print(f"{len(arrays)} arrays")
if not CHECKPOINT:
    trunk = [name for name in arrays if name.startswith("backbone.body")]
    same = sum(np.array_equal(arrays[name], checkpoint[name]) for name in trunk)
    print(f"{same} of {len(trunk)} arrays of the trunk are those of the checkpoint")

# %% [markdown]
# Over there, seven classes with the background:
#
# ```python
# from safetensors.torch import load_file
# from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
#
# model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None,
#                                               num_classes=7)
# model.load_state_dict(load_file("tuned.safetensors"))
# ```
#
# Other checkpoints are loaded by the same `load`: torchvision's Faster R-CNNs on
# ResNets, its classification networks (as a trunk to start from), and the RPNs and
# Faster R-CNNs of detectron2's model zoo.
