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
# # 2. Train a small RPN, and look at it
#
# We train a region proposal network from random weights, on scenes that are drawn while
# it learns, and look at what it says before and after. It takes about a minute on a
# laptop, so do not expect wonders: at the end the weights that come with the package,
# trained on ten times as many scenes, show where this leads.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import rpn_jax as rj
from rpn_jax.conventions import TORCHVISION
from rpn_jax.data import Resize, ShapesSource, decode_image, make_dataset
from rpn_jax.evaluation import IOU_THRESHOLDS, average_recall
from rpn_jax.plotting import (
    GREEN,
    draw_boxes,
    plot_objectness,
    plot_proposals,
    plot_recall,
    plot_training,
)
from rpn_jax.predict import Predictor
from rpn_jax.rpn import RPNConfig, rpn

# %config InlineBackend.figure_formats = ["jpeg"]
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})

STEPS, BATCH = 300, 4
PICTURE = None  # a picture of your own for the last cell, such as "photo.jpg"

# %% [markdown]
# ## The data
#
# `ShapesSource` draws scenes with 1 to 20 shapes of all sizes. Scenes of another seed
# are other scenes, so seed 1 can serve to measure what was learned from seed 0. To
# learn from your own images, put `CocoSource(json, images)` or `VocSource(folder,
# "train")` in its place; the rest stays as it is.

# %%
SIZE = 256
plain = dict(buckets=[(SIZE, SIZE)], max_boxes=32, resize=Resize(max_size=SIZE))
train = make_dataset(ShapesSource(20_000, seed=0), batch=BATCH, seed=0, **plain)
held_out = make_dataset(ShapesSource(32, seed=1), batch=8, train=False, **plain)
held_out = list(held_out)  # four batches of eight scenes

batch = held_out[0]
for name, array in batch._asdict().items():
    print(f"{name:12} {array.dtype} {array.shape}")

# %% [markdown]
# A batch is a tuple of arrays. Images have different numbers of objects; arrays cannot,
# so all get 32 rows, and `valid` says which rows are real. You will meet this pair of a
# padded array and a mask everywhere in the library.

# %%
figure, axes = plt.subplots(1, 4, figsize=(10, 2.8))
for ax, image, boxes, valid in zip(axes, batch.images, batch.boxes, batch.valid):
    ax.imshow(image.astype(np.uint8), extent=(0, SIZE, SIZE, 0))
    draw_boxes(boxes[valid], ax=ax, color=GREEN)
    ax.set_axis_off()
plt.show()

# %% [markdown]
# Four held-out scenes and their objects. Some are tiny, and some are partly hidden.

# %% [markdown]
# ## The network
#
# A small residual network with a feature pyramid: three maps, of stride 8, 16 and 32.
# Each has anchors of its own sizes, small ones on the fine map and large ones on the
# coarse map.
#
# `convention` holds every choice on which implementations differ. We take torchvision's
# and change one thing: the box loss gets ten times its weight (notebook 1 showed how
# little it counts otherwise).
#
# The weights that come with the package belong to this very network, after 1500 steps
# of 8 scenes (`python -m experiments.train shapes`, some minutes). We load them to
# compare.

# %%
convention = dataclasses.replace(
    TORCHVISION, loss=dataclasses.replace(TORCHVISION.loss, box_weight=10.0)
)
config = RPNConfig(
    backbone="small_resnet_fpn",
    strides=(8, 16, 32),
    sizes=((16.0, 28.0), (44.0, 72.0), (112.0, 176.0)),
    ratios=(0.5, 1.0, 2.0),
    convention=convention,
)
model = rpn(config)  # four pure functions: init, apply, loss, propose
untrained = model.init(jax.random.key(0), image_size=(SIZE, SIZE))
count = sum(x.size for x in jax.tree.leaves(untrained))
print(f"{count:,} parameters")

demo = Predictor()
packaged = demo.model.params

# %% [markdown]
# ## Training
#
# This is the whole loop. The loss draws its sample of anchors at random, so each step
# gets its own key.

# %%
schedule = optax.warmup_cosine_decay_schedule(0.0, 0.003, 20, STEPS)
optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(schedule))


@jax.jit
def step(params, state, key, batch):
    """One update."""
    gradient = jax.value_and_grad(model.loss, argnums=1, has_aux=True)
    (_, metrics), grads = gradient(key, params, batch)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, metrics


params, state = untrained, optimizer.init(untrained)
history = []
for number in range(1, STEPS + 1):
    key = jax.random.fold_in(jax.random.key(1), number)
    params, state, metrics = step(params, state, key, next(train))
    history.append({"step": number, **{k: float(v) for k, v in metrics.items()}})
    if number % 100 == 0:
        print(f"step {number}: loss {metrics['loss']:.3f}")
train.close()

# %%
plt.figure(figsize=(6, 3.2))
plot_training(history)
plt.gca().set(ylabel="loss", ylim=(0, None))
plt.show()

# %% [markdown]
# The loss and its two parts, faint as they were and bold as a mean of 20 steps. `loss`
# is `loss_objectness` plus ten times `loss_box`. It falls fast at first and slowly
# later, and it is noisy, because each step sees four scenes only.

# %% [markdown]
# ## What it says: objectness
#
# `model.apply` gives for each level the anchors, their logits and their deltas. The
# logits become probabilities, and the best anchor of each cell gives the cell its
# colour.

# %%
apply, cells = jax.jit(model.apply), [SIZE // stride for stride in config.strides]
SHOWN = 1  # which scene of the batch
image = batch.images[SHOWN].astype(np.uint8)
objects = batch.boxes[SHOWN][batch.valid[SHOWN]]


def maps(params):
    """Objectness of the scene, one map a level, the anchors of a cell last."""
    outputs = apply(params, batch.images, batch.image_sizes)
    return [
        jax.nn.sigmoid(logits[SHOWN]).reshape(side, side, -1)
        for logits, side in zip(outputs.logits, cells)
    ]


networks = {"untrained": untrained, f"{STEPS} steps": params, "packaged": packaged}
figure, axes = plt.subplots(3, 3, figsize=(10, 9))
for row, (name, weights) in zip(axes, networks.items()):
    for ax, scores, stride in zip(row, maps(weights), config.strides):
        plot_objectness(image, scores, title=f"{name}, stride {stride}", ax=ax)
plt.show()

# %% [markdown]
# Above, the network before training: it has no opinion anywhere. In the middle, ours:
# it has learned that most places are empty, and begins to see something. Below, the
# packaged weights: the fine map (stride 8) lights up on the smallest objects, the
# coarse one (stride 32) on the large ones. Nobody told the levels apart; each has
# learned what its anchors can fit.

# %% [markdown]
# ## From scores to proposals: before and after NMS
#
# Neighbouring anchors see the same object, so the best boxes lie in heaps.
# **Non-maximum suppression** (NMS) goes through them from the best to the worst and
# drops each one that overlaps a better one by more than IoU 0.7. With
# `iou_threshold=None` it is left out.


# %%
def best(params, threshold, number):
    """The best boxes of the scene."""
    outputs = apply(params, batch.images, batch.image_sizes)
    levels = outputs.anchors, *([x[SHOWN] for x in y] for y in outputs[1:])
    return rj.generate_proposals(
        *levels,
        (SIZE, SIZE),
        pre_nms_top_n=300,
        post_nms_top_n=number,
        iou_threshold=threshold,
    ).boxes


figure, axes = plt.subplots(2, 2, figsize=(8, 8.3))
for row, name in zip(axes, list(networks)[1:]):
    for ax, threshold, when in zip(row, (None, 0.7), ("before", "after")):
        boxes = best(networks[name], threshold, 20)
        title = f"{name}, {when} NMS"
        plot_proposals(image, boxes, gt_boxes=objects, title=title, ax=ax)
handles = axes[1, 1].get_legend_handles_labels()
figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# The twenty best boxes of our network (above) and of the packaged weights (below).
# Green are the objects; a blue box meets one of them (IoU of at least 0.5), a dashed
# orange one does not. Left, without NMS, many boxes say nearly the same; right, they
# are spread out. Once a network has learned enough, the same number of boxes then finds
# more:


# %%
def met(boxes):
    """Count the objects that some box meets."""
    return int((rj.box_iou(boxes, objects).max(axis=0) >= 0.5).sum())


print(f"of the {len(objects)} objects the best boxes meet")
for name in list(networks)[1:]:
    for number in (20, 50, 100):
        before, after = (met(best(networks[name], t, number)) for t in (None, 0.7))
        print(f"{name:9} {number:3} boxes: {before:2} before NMS, {after:2} after")

# %% [markdown]
# ## How good is it? Average recall
#
# Proposals are judged by **recall**: the share of objects that some proposal hits. What
# is a hit depends on the IoU asked for, and more proposals find more. **AR@100** is the
# recall with the 100 best proposals of each image, averaged over IoU 0.5, 0.55, ...
# 0.95.

# %%
propose = jax.jit(model.propose)
COUNTS = (10, 100, 300)


def measure(params):
    """Recall over the held-out scenes."""
    found = [propose(params, b.images, b.image_sizes) for b in held_out]
    boxes = jnp.concatenate([x.boxes for x in found])
    valid = jnp.concatenate([x.valid for x in found])
    objects = np.concatenate([b.boxes for b in held_out])
    there = np.concatenate([b.valid for b in held_out])
    return average_recall(boxes, valid, objects, there, max_proposals=COUNTS)


results = {name: measure(weights) for name, weights in networks.items()}
print(" " * 10, *(f"AR@{k:<6}" for k in COUNTS), "recall at IoU 0.5, 300 proposals")
for name, result in results.items():
    row = "  ".join(f"{x:.3f}   " for x in result.average[0])
    print(f"{name:10} {row} {result.recall[0, -1, 0]:.3f}")

# %%
plt.figure(figsize=(5, 3.6))
curves = {name: result.recall[0, 1].tolist() for name, result in results.items()}
plot_recall(IOU_THRESHOLDS, curves)
plt.title("100 proposals an image", fontsize=10)
plt.show()

# %% [markdown]
# Recall falls to the right, where a closer fit is asked for. Even the short training is
# far above no training; the packaged weights find more, and fit more closely.

# %% [markdown]
# ## One picture, one call
#
# `Predictor` takes a path, a PIL image or an array of any size and gives boxes in its
# pixels. It also opens the folder of a run of your own, or a weight file. The packaged
# weights know drawn shapes and nothing else: on a photograph do not expect much of
# them.

# %%
picture = ShapesSource(10, seed=2)[4].image
if PICTURE:
    picture = decode_image(PICTURE, upright=True)
boxes, scores = demo(picture)
plt.figure(figsize=(4, 4))
plot_proposals(picture, boxes, scores, top=10)
plt.show()

# %% [markdown]
# The ten best proposals of the packaged weights on a new scene, with the scores of the
# first five. The next notebook asks what no amount of training can mend: objects that
# the anchors cannot fit.
