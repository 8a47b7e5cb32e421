"""Synthetic scenes, drawn on the fly: shapes before textures, lines and clutter.

Every scene is a pure function of (seed, index). Over many scenes

- a scene has 1 to 20 objects;
- the square root of an object's box area is log-uniform in 12..200 px (of a 256 px
  image; both bounds scale with it), its height / width lies in 1/3..3, log-uniform as
  far as the object fits into the image;
- 30 % of the objects are occluded by more than a quarter of their pixels.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from rpn_jax.data.records import Record

CLASSES = ("rectangle", "ellipse", "triangle", "diamond", "cross", "star")
MAX_OBJECTS = 20
MIN_SIDE, MAX_SIDE = 12 / 256, 200 / 256  # of the image's side
MAX_ASPECT = 3.0
OCCLUDED_SHARE = 0.3
OCCLUDED = 0.25  # an object counts as occluded when more of its pixels are covered

_CROWDING = 0.8
_DELIBERATE = 0.297  # crowded scenes hide the rest of the 30 % by themselves
_UNTOUCHED = 0.22  # an object that should stay visible is covered by no more
_HIDDEN = 0.6  # nor an occluded one by more
_TRIES = 12


class Scene(NamedTuple):
    """One drawn scene.

    Attributes:
        image: [S, S, 3] uint8 RGB.
        boxes: [n, 4] float32 xyxy, the whole extent of each object, hidden parts too.
        labels: [n] int32, index into `CLASSES`.
        covered: [n] float32, share of each object's pixels that others hide.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    covered: np.ndarray


class _Object(NamedTuple):
    label: int
    extent: np.ndarray  # x1, y1, x2, y2 relative to the patch's corner
    mask: np.ndarray  # [h, w] float32, how much of each pixel the object covers
    bar: np.ndarray  # [h, w] bool, what hides a part of it; all False for most


class ShapesSource:
    """Scenes as records; nothing is stored and nothing read.

    Args:
        num: Number of scenes.
        seed: Scenes of different seeds have nothing in common.
        size: Side of the square image in pixels.

    Examples:
        >>> source = ShapesSource(num=100, seed=0)
        >>> source[7].image.shape
        (256, 256, 3)
    """

    classes = CLASSES

    def __init__(self, num: int, seed: int, size: int = 256):
        self.num, self.seed, self.size = num, seed, size

    @property
    def sizes(self) -> np.ndarray:
        """[num, 2] int32, (height, width) of every record."""
        return np.full((self.num, 2), self.size, np.int32)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.num

    def __getitem__(self, index: int) -> Record:
        """Draw one scene."""
        index = range(len(self))[index]
        scene = draw_scene(np.random.default_rng((self.seed, index)), self.size)
        x1, y1, x2, y2 = scene.boxes.T
        return Record(
            scene.image,
            index,
            f"shapes-{self.seed}-{index:06d}.png",
            (self.size, self.size),
            scene.boxes,
            scene.labels,
            np.zeros(len(scene.boxes), bool),
            (x2 - x1) * (y2 - y1),
        )


def draw_scene(rng: np.random.Generator, size: int = 256) -> Scene:
    """Draw one scene of `size` x `size` pixels."""
    # Large objects first, so that a small one is hidden only where that is meant.
    extents = sorted(_draw_extents(rng, size), key=math.prod, reverse=True)
    background = _background(rng, size)
    canvas = background.copy()
    owner = np.zeros((size, size), np.uint8)  # the visible object + 1, 0 for none
    total, seen = np.zeros((2, len(extents)))  # pixels of each object
    hidden = rng.random(len(extents)) < _DELIBERATE
    boxes, labels = [], []
    for i, extent in enumerate(extents):
        thing = _make_object(rng, extent, bool(hidden[i]))
        (x, y), lost = _place(rng, thing, owner, total, seen, hidden[:i])
        if lost is not None and not hidden[lost]:
            _swap(rng, hidden, lost, i)
            if not hidden[i]:
                thing = thing._replace(bar=np.zeros_like(thing.bar))
        h, w = thing.mask.shape
        here = np.s_[y : y + h, x : x + w]
        solid = thing.mask > 0.5
        cover = solid | thing.bar
        seen[:i] -= np.bincount(owner[here][cover], minlength=i + 1)[1:]
        total[i], seen[i] = max(solid.sum(), 1), (solid & ~thing.bar).sum()
        owner[here][solid] = i + 1
        owner[here][thing.bar] = 0
        _paint(rng, canvas[here], background[here], thing)
        boxes.append(thing.extent + np.array([x, y, x, y]))
        labels.append(thing.label)
    grain = np.frombuffer(rng.bytes(size * size), np.uint8).reshape(size, size, 1)
    canvas += (grain & 15) - np.float32(7.5)
    return Scene(
        np.clip(canvas, 0, 255, out=canvas).astype(np.uint8),
        np.array(boxes, np.float32),
        np.array(labels, np.int32),
        (1 - seen / total).astype(np.float32),
    )


def _draw_extents(rng: np.random.Generator, size: int) -> list[tuple[float, float]]:
    """Draw the (height, width) of a scene's objects.

    Drawing stops after the object that makes the scene crowded, not before it: with a
    stopping rule that does not look ahead the sizes over all scenes stay exactly
    log-uniform (Wald's identity), though crowded scenes have fewer objects.
    """
    extents, area = [], 0.0
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        side = size * math.exp(rng.uniform(math.log(MIN_SIDE), math.log(MAX_SIDE)))
        room = 2 * math.log((size - 2) / side)
        spread = min(math.log(MAX_ASPECT), room)
        aspect = math.exp(rng.uniform(-spread, spread))
        extents.append((side * math.sqrt(aspect), side / math.sqrt(aspect)))
        area += side * side
        if area > _CROWDING * size * size:
            break
    return extents


def _outline(rng: np.random.Generator, label: int) -> np.ndarray:
    """Corners [n, 2] (x, y) of a shape that touches all sides of the unit square."""
    kind = CLASSES[label]
    if kind == "rectangle":
        angle = np.array([0.25, 0.75, 1.25, 1.75]) * np.pi
        radius = np.ones(4)
    elif kind == "ellipse":
        angle, radius = np.linspace(0, 2 * np.pi, 64, endpoint=False), np.ones(64)
    elif kind == "triangle":
        angle = np.array([-0.5, 1 / 6, 5 / 6]) * np.pi + np.pi * rng.integers(2)
        radius = np.ones(3)
    elif kind == "diamond":
        angle, radius = np.arange(4) * np.pi / 2, np.ones(4)
    elif kind == "cross":
        arm = rng.uniform(0.3, 0.45)
        x = np.array([arm, arm, 1, 1, arm, arm, -arm, -arm, -1, -1, -arm, -arm])
        y = np.array([-1, -arm, -arm, arm, arm, 1, 1, arm, arm, -arm, -arm, -1])
        angle, radius = np.arctan2(y, x), np.hypot(x, y)
    else:
        angle = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.55), 1.0)
    angle = angle + rng.uniform(-0.25, 0.25)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / (high - low)


def _make_object(
    rng: np.random.Generator, extent: tuple[float, float], hidden: bool
) -> _Object:
    height, width = extent
    label = int(rng.integers(len(CLASSES)))
    corner = rng.random(2)
    patch_w, patch_h = math.ceil(corner[0] + width), math.ceil(corner[1] + height)
    fine = 4 if max(extent) < 64 else 2  # smooth edges matter to small objects
    points = (corner + _outline(rng, label) * [width, height]) * fine - 0.5
    drawn = Image.new("L", (patch_w * fine, patch_h * fine))
    ImageDraw.Draw(drawn).polygon([tuple(p) for p in points], fill=255)
    mask = np.asarray(drawn.reduce(fine), np.float32) / 255
    box = np.concatenate([corner, corner + [width, height]])
    bar = _bar(rng, mask > 0.5) if hidden else np.zeros(mask.shape, bool)
    return _Object(label, box, mask, bar)


def _bar(rng: np.random.Generator, solid: np.ndarray) -> np.ndarray:
    """A bar in a random direction that hides 28 to 45 % of the object's pixels.

    Mostly the parts on both of its sides stay visible, so that the extent can be told.
    """
    y = np.arange(solid.shape[0], dtype=np.float32)[:, None]
    x = np.arange(solid.shape[1], dtype=np.float32)
    angle = rng.uniform(0, math.pi)
    along = x * (math.cos(angle) + 1e-3) + y * math.sin(angle)
    share = rng.uniform(0.28, 0.45)
    start = rng.uniform(0.1, 0.9 - share)
    inside = np.sort(along[solid])
    if not len(inside):  # thinner than a pixel
        return solid
    low, high = inside[
        (np.array([start, start + share]) * (len(inside) - 1)).astype(int)
    ]
    return (along >= low) & (along <= high)


def _place(
    rng: np.random.Generator,
    thing: _Object,
    owner: np.ndarray,
    total: np.ndarray,
    seen: np.ndarray,
    hidden: np.ndarray,
) -> tuple[tuple[int, int], int | None]:
    """Find a place that hides no earlier object too much.

    Returns:
        The patch's corner (x, y), and the object that is hidden too much even so.
    """
    h, w = thing.mask.shape
    step = 1 if min(h, w) < 40 else 3  # large objects need not be counted to the pixel
    solid = ((thing.mask > 0.5) | thing.bar)[::step, ::step]
    count = len(hidden) + 1
    limit = np.where(hidden, _HIDDEN, _UNTOUCHED)
    best = (np.inf, (0, 0), None)
    for _ in range(_TRIES):
        x = int(rng.integers(owner.shape[1] - w + 1))
        y = int(rng.integers(owner.shape[0] - h + 1))
        under = owner[y : y + h : step, x : x + w : step][solid]
        lost = np.bincount(under, minlength=count)[1:] * step * step
        excess = 1 - (seen[: count - 1] - lost) / total[: count - 1] - limit
        worst = int(excess.argmax()) if count > 1 else None
        if worst is None or excess[worst] <= 0:
            return (x, y), None
        if excess[worst] < best[0]:
            best = (excess[worst], (x, y), worst)
    return best[1], best[2]


def _swap(rng: np.random.Generator, hidden: np.ndarray, lost: int, now: int) -> None:
    """Count object `lost` as occluded in place of one that is not drawn yet."""
    hidden[lost] = True
    later = now + np.flatnonzero(hidden[now:])
    if len(later):
        hidden[rng.choice(later)] = False


def _clouds(rng: np.random.Generator, size: int, cells: int, depth: int) -> np.ndarray:
    """Smooth random fields [size, size, depth] of about `cells` blobs a side, 0..1."""
    coarse = rng.integers(0, 256, (cells, cells, depth), np.uint8)
    image = Image.fromarray(coarse if depth == 3 else coarse[..., 0])
    fine = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return fine.reshape(size, size, depth) * np.float32(1 / 255)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Clouds of two scales, a gradient, soft texture patches and thin lines."""
    half = (size + 1) // 2  # nothing here is sharp but the lines
    low = rng.uniform(40, 170)
    canvas = _clouds(rng, half, int(rng.integers(2, 5)), 3)
    canvas *= 60
    canvas += np.float32(low - 30)
    texture = _clouds(rng, half, int(rng.integers(16, 64)), 1)
    canvas += rng.uniform(5, 40) * (texture - 0.5)
    ramp = np.linspace(-0.5, 0.5, half, dtype=np.float32)
    slope = rng.uniform(-50, 50, 2).astype(np.float32)
    canvas += (slope[0] * ramp[:, None] + slope[1] * ramp)[..., None]
    for _ in range(rng.integers(0, 4)):
        _soft_patch(rng, canvas)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 9)):
        ends = tuple(rng.uniform(-0.1 * size, 1.1 * size, 4))
        colour = tuple(int(c) for c in rng.integers(20, 236, 3))
        draw.line(ends, fill=colour, width=int(rng.integers(1, 4)))
    return np.array(image, np.float32)


def _soft_patch(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A round patch of fine texture that fades out: a thing without an outline."""
    size = len(canvas)
    side = int(rng.uniform(0.15, 0.5) * size)
    x, y = rng.integers(0, size - side, 2)
    t = np.linspace(-2, 2, side, dtype=np.float32)
    fade = np.exp(-(t[:, None] ** 2) - t**2)[..., None]
    texture = _clouds(rng, side, max(side // int(rng.integers(2, 5)), 2), 1) - 0.5
    tint = rng.uniform(-40, 40, 3).astype(np.float32)
    canvas[y : y + side, x : x + side] += fade * (tint + rng.uniform(30, 90) * texture)


def _paint(
    rng: np.random.Generator, canvas: np.ndarray, behind: np.ndarray, thing: _Object
) -> None:
    """Paint an object, and the bar that hides it, into a view of the canvas."""
    h, w = thing.mask.shape
    around = canvas[::4, ::4].mean(axis=(0, 1))
    colours = rng.uniform(0, 255, (6, 3))
    distance = np.linalg.norm(colours - around, axis=1)
    # Any colour will do that is not the surroundings'.
    far = np.flatnonzero(distance > 90)
    fill = colours[far[0] if len(far) else distance.argmax()].astype(np.float32)
    angle, shade = rng.uniform(0, 2 * math.pi), rng.uniform(0, 40)
    y = np.arange(h, dtype=np.float32)[:, None] * math.sin(angle)
    x = np.arange(w, dtype=np.float32) * math.cos(angle)
    pattern = (x + y) * (shade / max(h, w))
    if rng.random() < 0.5:
        # Stripes sin(x + y), by the addition theorem: few sines instead of one a pixel.
        turns, strength = 2 * math.pi / rng.uniform(4, 12), rng.uniform(10, 35)
        x, y = x * turns, y * turns
        pattern += np.sin(x) * (strength * np.cos(y))
        pattern += np.cos(x) * (strength * np.sin(y))
    change = pattern[..., None] + fill
    change -= canvas
    change *= thing.mask[..., None]
    canvas += change
    if thing.bar.any():
        texture = behind[thing.bar]
        texture = 0.6 * (texture - texture.mean(axis=0))
        canvas[thing.bar] = rng.uniform(30, 225) + texture
