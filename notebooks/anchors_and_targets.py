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
# # 1. Anchors and targets, step by step
#
# A region proposal network (RPN) looks at an image and says where objects may be. It
# does not guess boxes out of nothing: it starts from thousands of fixed boxes, the
# **anchors**, and answers two questions about each one. Is there an object here? And
# how must this box be moved and stretched to fit that object?
#
# To train it, somebody must know the right answers. They are called **targets**. This
# notebook makes them by hand, on one image, one step after the other. Nothing is
# trained here.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import rpn_jax as rj
from rpn_jax.data import ShapesSource, decode_image
from rpn_jax.plotting import (
    BLUE,
    GREEN,
    ORANGE,
    draw_boxes,
    plot_anchor_grid,
    plot_anchors,
    plot_targets,
)

# %config InlineBackend.figure_formats = ["jpeg"]
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
# ## The image and its objects
#
# The package can draw scenes of coloured shapes, so that we need no download. To use a
# picture of your own, say where it is and where its objects are. A box is written
# `x1, y1, x2, y2` in pixels: its left, top, right and bottom edge.

# %%
PICTURE = None  # such as "photo.jpg"
OBJECTS = None  # such as [[48, 240, 195, 371], [8, 12, 352, 498]]

scene = ShapesSource(num=20, seed=3)[11]
image = scene.image if PICTURE is None else decode_image(PICTURE)
objects = jnp.asarray(scene.boxes if OBJECTS is None else OBJECTS, jnp.float32)
height, width = image.shape[:2]
print(f"an image of {width} x {height} pixels with {len(objects)} objects")

# %%
plt.figure(figsize=(4, 4))
plt.imshow(image, extent=(0, width, height, 0))
draw_boxes(objects, color=GREEN, linewidth=2)
for number, (x1, y1, _, _) in enumerate(objects):
    frame = dict(facecolor="black", pad=1, linewidth=0)
    plt.text(x1, y1, str(number), color="white", fontsize=8, bbox=frame)
plt.axis("off")
plt.show()

# %% [markdown]
# The green boxes are the **ground truth**: a person, or here the program that drew the
# scene, says that these are the objects. We will call them by their numbers.

# %% [markdown]
# ## Anchors: sizes and shapes
#
# At one point of the image we place nine boxes: three sizes times three shapes. The
# shape is the **aspect ratio**, height divided by width: 0.5 is lying, 1 is a square, 2
# is standing. Sizes are usually given as **scales**, in units of the **stride**, about
# which more in a moment: scale 2 at stride 16 means a box as large as a square of 32
# pixels.

# %%
STRIDE = 16
SCALES = (2, 4, 8)
RATIOS = (0.5, 1.0, 2.0)

grid = height // STRIDE, width // STRIDE
anchors = rj.grid_anchors(grid, scales=SCALES, ratios=RATIOS, stride=STRIDE)

for x1, y1, x2, y2 in np.asarray(anchors[:9]):
    w, h = x2 - x1, y2 - y1
    print(
        f"{w:5.1f} x {h:5.1f} px: ratio {h / w:.1f}, area {np.sqrt(w * h):.0f} squared"
    )

# %%
plt.figure(figsize=(5, 4))
plot_anchors(image, anchors)
plt.show()

# %% [markdown]
# The nine anchors of the point in the middle. The three boxes of one colour have the
# same area and differ in shape alone. The largest are 128 pixels, half as wide as the
# image.

# %% [markdown]
# ## The grid: one point for every cell of the feature map
#
# The network shrinks the image to a small map of features. If one cell of that map
# stands for 16 x 16 pixels of the image, the stride is 16. Every cell gets its nine
# anchors. A stride of 8 gives four times as many points.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4))
plot_anchor_grid(image, anchors, ax=left)
finer = rj.grid_anchors((height // 8, width // 8), stride=8)
plot_anchor_grid(image, finer, ax=right)
plt.show()
print(f"stride 16: {grid[0]} x {grid[1]} points x 9 = {len(anchors):,} anchors")
print(f"stride  8: {len(finer):,} anchors")

# %% [markdown]
# Left, the points at stride 16, which we will use. Right, those at stride 8: a small
# object always has a point nearby, but there is four times as much to compute.
#
# (Here the first point lies in the corner of the image, as in torchvision and
# detectron2. `offset=0.5` puts it in the middle of its cell.)

# %% [markdown]
# ## IoU: how well do two boxes agree?
#
# **Intersection over union** is the area that two boxes share, divided by the area that
# they cover together. 1 means the same box, 0 means that they do not touch.

# %%
iou = rj.box_iou(anchors, objects)
print("IoU of every anchor with every object:", iou.shape)

NUMBER = int(jnp.argmax(iou.max(axis=0)))  # the object that has the best anchor
order = jnp.argsort(-iou[:, NUMBER])
figure, axes = plt.subplots(1, 3, figsize=(9, 3.3))
for ax, rank in zip(axes, (0, 8, 60)):
    ax.imshow(image, extent=(0, width, height, 0))
    draw_boxes(objects[NUMBER], ax=ax, color=GREEN, linewidth=3)
    draw_boxes(anchors[order[rank]], ax=ax, color=BLUE, linewidth=2)
    ax.set_title(f"IoU {iou[order[rank], NUMBER]:.2f}")
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
plt.show()

# %% [markdown]
# One object (green) and three of the anchors (blue). An IoU of 0.5, which sounds like
# little, already looks like a fair hit; 0.7 and more looks good.

# %% [markdown]
# ## Matching: which anchor answers for which object?
#
# With two thresholds every anchor gets a label:
#
# * IoU of at least **0.7** with some object: **positive**, label 1. It must find it.
# * IoU below **0.3** with every object: **negative**, label 0. It must say "nothing".
# * in between: **not used**, label -1. It is neither right nor wrong enough to teach.

# %%
strict = rj.match_anchors(anchors, objects, low_quality="off")

for label, name in ((1, "positive"), (0, "negative"), (-1, "not used")):
    print(f"{name}: {int((strict.labels == label).sum()):,} anchors")


# %%
def positives_of(matches):
    """Count the positive anchors of each object."""
    mine = matches.gt_index[:, None] == jnp.arange(len(objects))
    return (mine & (matches.labels == 1)[:, None]).sum(axis=0)


print("object  best IoU  positive anchors")
for i, (best, count) in enumerate(zip(strict.gt_iou, positives_of(strict))):
    print(f"{i:6}  {best:8.3f}  {count:16}")

# %% [markdown]
# Look at the last column. Most objects have no anchor that reaches 0.7: they are too
# small, or lie between the points of the grid, or have a shape that no anchor has. With
# these labels the network would never hear of them.

# %% [markdown]
# ## The low-quality rule
#
# So there is a second rule: for each object the anchor that fits it **best** becomes
# positive too, however badly it fits (if several fit equally well, all of them). This
# is what `low_quality="label"` does, and it is the default.

# %%
matches = rj.match_anchors(anchors, objects)

print("object  positive anchors: without the rule, with it")
for i, (a, b) in enumerate(zip(positives_of(strict), positives_of(matches))):
    print(f"{i:6}  {a:29}  {b:7}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 5))
plot_targets(
    image, anchors, strict.labels, gt_boxes=objects, title="thresholds alone", ax=left
)
plot_targets(
    image, anchors, matches.labels, gt_boxes=objects, title="low-quality rule", ax=right
)
plt.show()

# %% [markdown]
# Blue boxes are positive anchors, green ones the objects; of all other anchors only the
# centre is marked. With the rule every object has a blue box, but some of those fit
# poorly. An object much smaller than the smallest anchor stays hard to find. (How many
# of *your* objects that concerns is what notebook 3 is about.)
#
# A curiosity: an object may still have no anchor of its own. If the anchor that fits it
# best fits another object even better, that anchor is positive, yet it learns the
# other.

# %% [markdown]
# ## Sampling
#
# There are hundreds of negatives for each positive. If all of them counted, "nothing
# here" would be a very good answer. So 256 anchors are drawn at random, at most half of
# them positive; negatives fill the rest. `anchor_targets` does the matching, this draw
# and the next step at once. As everywhere in JAX, what is random takes a key.

# %%
targets = rj.anchor_targets(
    jax.random.key(0), anchors, objects, None, (height, width), sample_size=256
)
for label, name in ((1, "positives"), (0, "negatives")):
    there = targets.labels == label
    drawn = there & targets.sampled
    print(f"{name}: {int(there.sum()):,} there, {int(drawn.sum())} drawn")

# %%
plt.figure(figsize=(4.6, 5))
plot_targets(image, anchors, targets.labels, sampled=targets.sampled, gt_boxes=objects)
plt.show()

# %% [markdown]
# The sample. All positives are in it, because they are fewer than 128, and a scatter of
# negatives. Only these anchors will teach the network from this image.

# %% [markdown]
# ## Encoding: how must the anchor move?
#
# Each positive must learn the way to its object: four numbers.
#
# * `dx, dy`: how far the centre moves, in widths and heights of the anchor;
# * `dw, dh`: the logarithm of how much wider and higher it becomes.
#
# Counting in units of the anchor makes the numbers small and alike for small and large
# objects.

# %%
chosen = int(order[0])  # the best anchor of the object above
delta = rj.encode_boxes(objects[NUMBER], anchors[chosen])
print("anchor:", anchors[chosen])
print("object:", objects[NUMBER].round(1))
for name, value in zip(("dx", "dy", "dw", "dh"), delta):
    print(f"{name} = {value:+.3f}")

# %% [markdown]
# Read it so: move right by `dx` anchor widths and down by `dy` anchor heights, then
# become exp(`dw`) times as wide and exp(`dh`) times as high. Going back gives the
# object, which is how the network's answers become boxes later:

# %%
print("decoded:", rj.decode_boxes(delta, anchors[chosen]).round(1))
print("the same in targets.deltas:", targets.deltas[chosen].round(3))

# %% [markdown]
# ## The two losses
#
# The network will give each anchor a **logit** (a score: above 0 means "object") and
# four **deltas**. Two losses say how wrong they are.
#
# * **Objectness**: cross-entropy between the score and the label, over the sample.
# * **Box**: smooth L1 between the deltas and those above, over the sampled positives.
#   It is a parabola near 0 and a straight line further out, so that one wild box does
#   not outweigh all others.

# %%
logit = jnp.linspace(-4, 4, 200)
off = jnp.linspace(-1, 1, 200)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for label, name, color, style in (
    (1, "positive", BLUE, "-"),
    (0, "negative", ORANGE, "--"),
):
    loss = rj.sigmoid_objectness_loss(logit, jnp.full(200, label))
    left.plot(logit, loss, style, color=color, linewidth=2, label=f"a {name} anchor")
left.set(xlabel="logit", ylabel="objectness loss")
left.legend(frameon=False)
right.plot(off, rj.smooth_l1_loss(off, jnp.zeros(200)), color=BLUE, linewidth=2)
right.set(xlabel="predicted minus wanted delta", ylabel="smooth L1")
right.set_xticks([-1, -0.5, 0, 0.5, 1])
plt.show()

# %% [markdown]
# Left: a positive anchor with a low score costs much, a negative one with a high score
# likewise. Right: the price of a delta that is off.
#
# Now let us pretend to be the network, twice. A network that knows nothing says 0 to
# everything. A perfect one gives high scores to the positives, low ones to the rest,
# and the deltas as they should be.


# %%
def losses(logits, deltas):
    """Both parts of the loss of one image."""
    objectness = rj.sigmoid_objectness_loss(logits, targets.labels)
    box = rj.smooth_l1_loss(deltas, targets.deltas).sum(axis=-1)
    # The reduction counts over a batch of images: ours has one, hence [None].
    per_image = (objectness, box, targets.labels, targets.sampled)
    return rj.rpn_losses(*(x[None] for x in per_image))


nothing = losses(jnp.zeros(len(anchors)), jnp.zeros_like(anchors))
perfect = losses(jnp.where(targets.labels == 1, 8.0, -8.0), targets.deltas)
print(f"knows nothing: objectness {nothing.objectness:.4f}, box {nothing.box:.4f}")
print(f"perfect:       objectness {perfect.objectness:.4f}, box {perfect.box:.4f}")

# %% [markdown]
# 0.6931 is the logarithm of 2: the price of a fair coin. The box part is small even for
# the network that knows nothing, because it is divided by all 256 sampled anchors and
# only a few of them are positive; that is why many people give it a larger weight.
#
# That is all that an RPN is taught. The next notebook, `train_a_small_rpn`, does it.
