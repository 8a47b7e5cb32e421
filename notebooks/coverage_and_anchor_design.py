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
# # 3. Will my objects be missed? Coverage and anchor design
#
# An RPN moves its anchors onto objects, but not over any distance: an object that no
# anchor resembles teaches it next to nothing, and is likely to be missed. Whether that
# happens can be computed from the boxes alone, before any training and without opening
# a single image. That is **coverage**.

# %%
import dataclasses
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from rpn_jax.analysis import (
    LEGEND,
    advise,
    anchor_layout,
    cover,
    design_anchors,
    groups,
    heat_map,
    matched_positives,
    read_objects,
    shifted_objects,
    table,
)
from rpn_jax.data import CocoSource, Resize, ShapesSource, VocSource, export_coco
from rpn_jax.plotting import plot_coverage, plot_recall
from rpn_jax.rpn import RPNConfig

# %config InlineBackend.figure_formats = ["jpeg"]
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
# ## Your data
#
# Name a COCO json, or a folder in the layout of PASCAL VOC. Without either, scenes are
# drawn and written as a COCO data set, so that the notebook runs anywhere.
#
# `RESIZE` is how images are resized before the network sees them. It matters as much as
# the anchors do: an object of 20 pixels in a photograph of 4000 is only 5 pixels high
# for a network that works on 1000.

# %%
COCO_JSON = None  # such as "annotations/instances_train2017.json"
VOC_FOLDER = None  # such as "VOCdevkit/VOC2012"
RESIZE, PADDED = Resize(max_size=256), [(256, 256)]  # images of 256 pixels at most

if COCO_JSON:
    source = CocoSource(COCO_JSON, None)  # no images are needed
elif VOC_FOLDER:
    source = VocSource(VOC_FOLDER, "train")
else:
    scenes = ShapesSource(200, seed=4)
    folder = Path(tempfile.mkdtemp())
    source = CocoSource(export_coco(scenes, folder), folder / "images")

objects = read_objects(source, RESIZE, PADDED)
print(f"{len(objects.boxes):,} objects in {len(objects.image_sizes)} images")

# %%
width, height = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T
plt.figure(figsize=(4.6, 3.6))
plt.loglog(width, height, ".", markersize=3)
plt.gca().set(xlabel="width, px", ylabel="height, px", aspect="equal")
plt.show()

# %% [markdown]
# Each dot is an object, as the network will see it. Ours range from a dozen pixels to
# almost the whole image, evenly on a logarithmic scale, and from lying to standing.

# %% [markdown]
# ## What do the classic nine anchors cover?
#
# As first published, an RPN has one map of stride 16 and nine anchors a point: sizes
# 128, 256 and 512, each in three ratios. They were made for photographs of 600 x 1000
# pixels. Let us see what they do for small images.

# %%
classic = RPNConfig(
    backbone="squeezenet",
    strides=(16,),
    sizes=((128.0, 256.0, 512.0),),
    ratios=(0.5, 1.0, 2.0),
)


def look(objects, config):
    """Compare every object with every anchor."""
    layout = anchor_layout(config, objects.buckets)
    return layout, cover(objects, layout, config.convention.targets)


layout, found = look(objects, classic)
print(f"{found.covered.mean():.0%} of the objects have an anchor at IoU 0.7")
print(f"{found.saved.mean():.0%} get a poorer one, by the low-quality rule")
print(f"{found.lost.mean():.0%} get none")

# %% [markdown]
# "Covered" is what we want: an anchor that fits well, and usually several. "Saved"
# means that only the rule "the best anchor counts, however poor" gives the object
# anything to learn from (notebook 1 shows it). Where is the trouble?

# %%
rows = groups(objects, found, layout)["size, network input"]
print(table(found, "size", rows, threshold=0.7))
print("\n" + LEGEND.format(threshold=0.7))

# %% [markdown]
# Read the columns `>=0.3`, `>=0.5` and `>=0.7` downwards. Objects of up to 64 pixels do
# not even reach an IoU of 0.3 with any anchor. Only of those between 91 and 181 pixels,
# near the smallest anchor, about half are covered.

# %%
plt.figure(figsize=(6.4, 4))
plot_coverage(*heat_map(objects, found.covered), anchors=layout.cells)
plt.show()

# %% [markdown]
# The same by size (to the right) and shape (upwards). Yellow: all objects of this kind
# are covered; dark: none is; the small number says how many there are. The orange
# diamonds are the anchors. They stand far to the right of most objects.

# %%
print("\n".join(advise(objects, found, classic)))

# %% [markdown]
# `advise` says it in words, and tries what one more size or one more ratio would bring.

# %% [markdown]
# ## What about one very small box?
#
# A common question: "my objects are 12 x 30 pixels in an image of 800; can this work?"
# It depends on where the object lies between the points of the grid, so the box is put
# at many places. Boxes and images are (height, width) here.

# %%
BOX, IMAGE = (30, 12), (800, 800)
places = shifted_objects(BOX, IMAGE, Resize(max_size=800), [IMAGE], classic.strides)
small = dataclasses.replace(classic, sizes=((16.0, 32.0, 64.0),))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
for ax, config in zip(axes, (classic, small)):
    iou = look(places, config)[1].iou
    side = int(np.sqrt(len(iou)))
    shown = ax.imshow(
        iou.reshape(side, side), vmin=0, vmax=1, extent=(-8, 8, 8, -8), cmap="viridis"
    )
    sizes = ", ".join(f"{s:g}" for s in config.sizes[0])
    ax.set_title(f"sizes {sizes}: IoU {iou.min():.2f} to {iou.max():.2f}", fontsize=10)
    ax.set(xlabel="shift to the right, px", ylabel="shift down, px")
figure.colorbar(shown, ax=axes, label="IoU with the best anchor")
plt.show()

# %% [markdown]
# Left, the classic anchors: dark everywhere. The box is a speck within the smallest of
# them, and no shift helps. Right, anchors of 16 pixels and up: good in the middle,
# where the box lies on a grid point, and poor half-way between two points. That is why
# a small object needs small anchors **and** a fine stride, or simply a larger image.

# %% [markdown]
# ## A better configuration
#
# `design_anchors` looks for sizes and ratios that cover as many objects as possible,
# with as many anchors as before. To be honest about the gain it must be measured on
# objects that were not used for the search: every fifth image is held out.

# %%
held_out = np.arange(len(objects.image_sizes)) % 5 == 4
search, test = objects.of_images(~held_out), objects.of_images(held_out)

designed = design_anchors(search, classic)
print("sizes:", designed.sizes[0], " ratios:", designed.ratios)

# %% [markdown]
# Equal in number, much smaller. A second way is to add a finer map: a feature pyramid
# has small anchors on a map of stride 8 and large ones on a map of stride 32. This
# costs more anchors; the design then chooses their sizes, too.

# %%
pyramid = RPNConfig(
    backbone="small_resnet_fpn",
    strides=(8, 16, 32),
    sizes=((16.0, 28.0), (44.0, 72.0), (112.0, 176.0)),
)
choices = {
    "classic nine": classic,
    "nine, designed": designed,
    "pyramid": pyramid,
    "pyramid, designed": design_anchors(search, pyramid),
}

# %%
print(f"{'on held-out objects':20} anchors  IoU>=0.5  IoU>=0.7")
at = np.linspace(0, 1, 101)
curves = {}
for name, config in choices.items():
    layout, result = look(test, config)
    number = int(layout.grids[0].prod(axis=1).sum())
    at_5, at_7 = ((result.iou >= t).mean() for t in (0.5, 0.7))
    print(f"{name:20} {number:7,} {at_5:9.0%} {at_7:9.0%}")
    curves[name] = [float((result.iou >= t).mean()) for t in at]

# %%
plt.figure(figsize=(5.4, 3.8))
plot_recall(at, curves)
plt.gca().set(xlabel="IoU with the best anchor", ylabel="share that reaches it")
plt.axvline(0.7, color="black", linewidth=1, linestyle=":")
plt.show()

# %% [markdown]
# Each curve says which share of the held-out objects has an anchor of at least that
# IoU; higher is better, and the dotted line marks 0.7. The design alone doubles the
# share at IoU 0.5 and costs nothing. The pyramid brings most of the rest, since small
# objects get a fine grid.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4))
for ax, name in zip(axes, ("classic nine", "pyramid, designed")):
    layout, result = look(objects, choices[name])
    plot_coverage(*heat_map(objects, result.covered), anchors=layout.cells, ax=ax)
    ax.set_title(name, fontsize=10)
plt.show()

# %% [markdown]
# Before and after, as a map. On the right all but the smallest objects are served;
# these want a map of stride 4, or larger images.

# %% [markdown]
# ## The ceiling
#
# Objects of one image compete: an anchor can learn only one of them.
# `matched_positives` matches all anchors of an image and counts what each object really
# gets. Objects that get nothing cannot be taught, so this share is a ceiling of recall.

# %%
few = test.of_images(np.arange(len(test.image_sizes)) < 20)
for name in ("classic nine", "pyramid, designed"):
    positives = matched_positives(few, choices[name])
    share, mean = (positives > 0).mean(), positives.mean()
    print(
        f"{name:18} {share:.1%} of {len(positives)} objects get some, {mean:.1f} each"
    )

# %% [markdown]
# With the classic nine more than a third of the objects get no anchor at all. The
# low-quality rule names a best anchor for each, but that one fits a larger neighbour
# even better, and learns the neighbour. (Do not be misled by the average. A speck has
# the same poor IoU with every large anchor around it; all tie as its best, and all
# become positive.) With the pyramid every object has an anchor of its own.
#
# ## The same from the command line
#
# ```
# python -m experiments.coverage coco_json --design \
#     --data.train train.json --data.val val.json
# python -m experiments.coverage voc --data.root VOCdevkit/VOC2012
# python -m experiments.coverage classic --box 12x30 --image 800x800
# ```
#
# And to use the result, paste it into a configuration:

# %%
best = choices["pyramid, designed"]
for field in ("backbone", "strides", "sizes", "ratios"):
    print(f"{field}={getattr(best, field)!r},")
