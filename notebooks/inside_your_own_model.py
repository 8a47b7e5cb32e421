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
# # 5. Inside your own model: the functions alone
#
# Perhaps you have a network of your own and want nothing but the pieces between it and
# its boxes. All functions of `rpn_jax` are plain functions of arrays: no classes, no
# hidden state, no configuration. They can be compiled, mapped over a batch,
# differentiated, spread over devices and exported like any other JAX code. This
# notebook does each of these once.

# %%
import jax

jax.config.update("jax_num_cpu_devices", 4)  # four pretended devices, for later

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import rpn_jax as rj
from rpn_jax.data import ShapesSource, decode_image
from rpn_jax.plotting import plot_proposals

# %config InlineBackend.figure_formats = ["jpeg"]
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
# ## "Your own model"
#
# To keep it short, ours is the simplest that shows something: no deep network, but five
# numbers at each pixel (three colours, saturation, edges) and six weights. It compares
# the mean inside an anchor with the mean around it; where they differ, there may be an
# object. `roi_align` does the averaging: it pools a map under each box.

# %%
SIZE, STRIDE = 256, 16
PICTURE = None  # a picture of your own, such as "photo.jpg"

anchors = rj.grid_anchors((SIZE // STRIDE,) * 2, scales=(2, 4, 8), stride=STRIDE)
middle, half = (
    rj.box_convert(anchors, "xyxy", "cxcywh").reshape(-1, 2, 2).swapaxes(0, 1)
)
around = jnp.concatenate([middle - 0.75 * half, middle + 0.75 * half], axis=1)


def maps_of(image):
    """Five numbers a pixel, of an image [H, W, 3] in 0..255."""
    x = image / 255.0
    saturation = x.max(axis=2) - x.min(axis=2)
    dy, dx = jnp.gradient(x.mean(axis=2))
    return jnp.dstack([x, saturation, jnp.hypot(dx, dy)])


def mean_under(maps, boxes):
    """Mean of each map under each box."""
    pooled = rj.roi_align(
        maps, boxes, output_size=4, spatial_scale=1.0, sampling_ratio=1, aligned=True
    )
    return pooled.mean(axis=(1, 2))


def features_of(image):
    """How much each anchor differs from what is around it, [A, 5]."""
    maps = maps_of(image)
    return 10 * jnp.abs(mean_under(maps, anchors) - mean_under(maps, around))


def logits_of(weights, features):
    """The score of each anchor."""
    return features @ weights["w"] + weights["b"]


# %% [markdown]
# From scores to boxes is one call. This model does not move its anchors, so its deltas
# are zero.


# %%
def propose(weights, image, iou_threshold=0.5):
    """From an image to its best boxes."""
    return rj.generate_proposals(
        [anchors],
        [logits_of(weights, features_of(image))],
        [jnp.zeros_like(anchors)],
        (SIZE, SIZE),
        pre_nms_top_n=500,
        post_nms_top_n=12,
        iou_threshold=iou_threshold,
    )


# %% [markdown]
# ## `grad` and `vmap`: train it
#
# Six weights can be trained in a moment. `jax.vmap` turns functions of one image into
# functions of a batch; scenes have different numbers of objects, so their boxes are
# padded and `valid` says which are real.

# %%
source = ShapesSource(24, seed=0)
images = jnp.stack([record.image for record in source])
boxes = np.zeros((len(source), 20, 4), np.float32)
valid = np.zeros((len(source), 20), bool)
for i, record in enumerate(source):
    boxes[i, : len(record.boxes)] = record.boxes
    valid[i, : len(record.boxes)] = True

features = jax.jit(jax.vmap(features_of))(images)
print("images", images.shape, "-> features", features.shape)


# %%
def loss(weights, key):
    """Objectness loss over all images."""

    def targets_of(key, boxes, valid):
        return rj.anchor_targets(key, anchors, boxes, valid, (SIZE, SIZE))

    targets = jax.vmap(targets_of)(jax.random.split(key, len(boxes)), boxes, valid)
    each = rj.sigmoid_objectness_loss(logits_of(weights, features), targets.labels)
    none = jnp.zeros_like(each)  # no box loss
    return rj.rpn_losses(each, none, targets.labels, targets.sampled).objectness


optimizer = optax.adam(0.1)


@jax.jit
def step(weights, state, key):
    """One update."""
    value, grads = jax.value_and_grad(loss)(weights, key)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(weights, updates), state, value


weights = {"w": jnp.zeros(5), "b": jnp.zeros(())}
state = optimizer.init(weights)
for i in range(100):
    weights, state, value = step(weights, state, jax.random.key(i))
    if i in (0, 99):
        print(f"step {i + 1}: loss {value:.3f}")
for name, w in zip(("red", "green", "blue", "saturation", "edges"), weights["w"]):
    print(f"{name:10} {w:+.2f}")

# %% [markdown]
# The loss falls, and the weights can be read: differences of colour and saturation
# speak for an object.

# %%
image = ShapesSource(20, seed=3)[11].image
if PICTURE:
    photo = decode_image(PICTURE, upright=True)
    photo = jax.image.resize(photo, (SIZE, SIZE, 3), "linear")
    image = np.asarray(photo).astype(np.uint8)

found = jax.jit(propose)(weights, image)
plt.figure(figsize=(4.2, 4.2))
plot_proposals(image, found.boxes, found.scores, top=12)
plt.show()

# %% [markdown]
# Its twelve best boxes on a scene that it was not trained on, and the scores of the
# first five. Not bad for six numbers.

# %% [markdown]
# ## A batch, and no recompilation
#
# `vmap` again, now over whole images. Thresholds are ordinary arguments, so a new value
# does not compile anything anew. Only sizes, such as how many boxes come out, are
# fixed.

# %%
many = jax.jit(jax.vmap(propose, in_axes=(None, 0, None)))
at = np.linspace(0.1, 0.9, 9, dtype=np.float32)
others, kept = ~np.eye(12, dtype=bool), []  # a box is compared with the others
for threshold in at:
    result = many(weights, images[:8], threshold)
    iou = jax.vmap(rj.box_iou)(result.boxes, result.boxes)
    kept.append(float(iou[:, others].mean()))
print("boxes of eight images:", result.boxes.shape)
print("compiled", many._cache_size(), "time for", len(at), "thresholds")

# %%
plt.figure(figsize=(4.6, 3))
plt.plot(at, kept, "o-")
plt.gca().set(xlabel="IoU threshold of NMS", ylabel="mean IoU of the boxes kept")
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# What the threshold does: the higher it is, the more alike are the twelve boxes that
# survive.

# %% [markdown]
# ## Pooling features: `roi_align`
#
# A second stage looks into each box. `roi_align` cuts a piece of fixed size out of a
# feature map for each box, whatever the size of the box. To see what that means, let
# the feature map be the image itself:


# %%
@jax.jit
def crops_of(image, boxes, valid):
    """Cut the boxes out of an image, 32 x 32 each."""
    return rj.roi_align(
        image,
        boxes,
        valid=valid,
        output_size=32,
        spatial_scale=1.0,  # a feature map of stride 16 would have 1 / 16
        sampling_ratio=2,
        aligned=True,
    )


crops = crops_of(image, found.boxes, found.valid)
figure, axes = plt.subplots(1, 6, figsize=(9, 1.7))
for ax, crop in zip(axes, crops):
    ax.imshow(np.asarray(crop).astype(np.uint8))
    ax.set_axis_off()
plt.show()
print(crops.shape)

# %% [markdown]
# The first six boxes above, each 32 x 32 now, long ones squeezed.

# %% [markdown]
# ## `grad` through the pieces
#
# The gradient of the pooled values with respect to the map says which pixels the boxes
# look at:


# %%
def looked_at(image):
    """Some number that depends on what is under the boxes."""
    return crops_of(image, found.boxes[:6], found.valid[:6]).sum()


gradient = jax.grad(looked_at)(jnp.asarray(image, jnp.float32))
plt.figure(figsize=(4.6, 3.8))
plt.imshow(gradient.sum(axis=2), cmap="viridis")
plt.colorbar(label="gradient")
plt.axis("off")
plt.show()

# %% [markdown]
# Bright is what small boxes look at (each of their few pixels weighs much), dark blue
# what large boxes look at, and darkest what none does.
#
# The gradient also flows through `generate_proposals`, from the boxes to the deltas of
# the anchors that were chosen. The choice itself has no gradient: ranks do not change
# smoothly.

# %%
logits = logits_of(weights, features_of(image))


def total_width(deltas):
    """The widths of the proposals, added up."""
    kept = rj.generate_proposals(
        [anchors],
        [logits],
        [deltas],
        (SIZE, SIZE),
        pre_nms_top_n=500,
        post_nms_top_n=12,
    )
    return (kept.boxes[:, 2] - kept.boxes[:, 0]).sum()


gradient = jax.jit(jax.grad(total_width))(jnp.zeros_like(anchors))
some = (gradient != 0).any(axis=1)
print(f"{int(some.sum())} of {len(anchors):,} anchors get a gradient")

# %% [markdown]
# Those are the anchors that became proposals.

# %% [markdown]
# ## Many devices: `shard_map`
#
# Here are four devices, pretended by the CPU. `shard_map` gives each its share of the
# images, and nothing is sent between them.

# %%
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@jax.jit
def spread(weights, images):
    """Propose on eight images, two a device."""
    share = jax.vmap(propose, in_axes=(None, 0))
    return jax.shard_map(
        share, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P("data")
    )(weights, images)


on_four = spread(weights, images[:8])
on_one = many(weights, images[:8], 0.5)
print(
    "lies on",
    len(on_four.boxes.sharding.device_set),
    "devices:",
    on_four.boxes.sharding,
)
print(
    "same boxes:", bool((np.asarray(on_four.boxes) == np.asarray(on_one.boxes)).all())
)

# %% [markdown]
# ## Export
#
# `jax.export` turns a compiled function into bytes that run elsewhere without this
# library and without Python code of yours, and here for three kinds of devices at once.
# The result becomes a plain tuple, so that whoever reads the bytes need not know what
# `Proposals` are. (`serialize` needs the small package `flatbuffers`.)


# %%
@jax.jit
def to_export(weights, image):
    """Boxes, scores, levels, valid."""
    return tuple(propose(weights, image))


exported = jax.export.export(to_export, platforms=("cpu", "cuda", "tpu"))(
    weights, jax.ShapeDtypeStruct((SIZE, SIZE, 3), jnp.uint8)
)
data = exported.serialize()
print(f"{len(data) / 1000:.0f} kB for", ", ".join(exported.platforms))

restored = jax.export.deserialize(data)
boxes_again = restored.call(weights, image)[0]
print("same boxes:", bool((boxes_again == found.boxes).all()))
