import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.batch import Batch
from rpn_jax.conventions import DETECTRON2, PY_FASTER_RCNN, TORCHVISION
from rpn_jax.faster_rcnn import (
    FasterRCNNConfig,
    faster_rcnn,
    make_network,
    pool_rois,
)
from rpn_jax.models.conv import conv2d
from rpn_jax.objective import detection_losses
from rpn_jax.pretrained.convert import convert, paths_of, torch_dialect
from rpn_jax.roi_targets import RoITargets
from rpn_jax.rpn import RPNConfig, rpn

KEY = jax.random.key(3)


def rules(convention, **groups):
    """Change fields of the groups of a convention."""
    changed = {
        name: dataclasses.replace(getattr(convention, name), **fields)
        for name, fields in groups.items()
    }
    return dataclasses.replace(convention, **changed)


SMALL = FasterRCNNConfig(
    rpn=RPNConfig(
        backbone="small_resnet_fpn",
        strides=(8, 16),
        sizes=((16.0,), (32.0,)),
        head_channels=8,
        convention=rules(
            TORCHVISION,
            proposals={"train_post_nms": 30, "test_post_nms": 20},
            roi={"sample_size": 16, "max_detections": 10},
        ),
    ),
    classes=("cat", "dog", "cow"),
    box_features=16,
    roi_levels=2,
)


# A level between the two is missing.
SKIPS = dataclasses.replace(SMALL.rpn, strides=(4, 16))


def batch_of(count=2, objects=3, side=32):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, side / 2, (count, objects, 2))
    sides = rng.uniform(6, side / 2, (count, objects, 2))
    boxes = np.concatenate([corners, corners + sides], axis=2).astype(np.float32)
    valid = np.arange(objects)[None] < np.arange(1, count + 1)[:, None]
    return Batch(
        images=rng.integers(0, 255, (count, side, side, 3), np.uint8),
        image_sizes=np.full((count, 2), side, np.int32),
        boxes=np.where(valid[..., None], boxes, 0),
        valid=valid,
        ignore=np.zeros_like(valid),
        scales=np.ones((count, 2), np.float32),
        image_ids=np.arange(count, dtype=np.int32),
        labels=np.where(valid, rng.integers(0, 3, valid.shape), -1).astype(np.int32),
    )


@pytest.fixture(scope="module")
def small():
    model = faster_rcnn(SMALL)
    return model, model.init(KEY, image_size=(32, 32))


@pytest.fixture(scope="module")
def loss(small):
    model, _ = small
    return jax.jit(jax.value_and_grad(model.loss, argnums=1, has_aux=True))


# torchvision, end to end


class FourConvolutions(nn.Module):
    """The trunk of the golden detector: 3 x 3 convolutions of stride 2."""

    strides = (4, 8, 16)

    @nn.compact
    def __call__(self, x):
        x = nn.relu(conv2d(8, stride=2, name="stem")(x))
        maps = []
        for name in ("c2", "c3", "c4"):
            x = nn.relu(conv2d(16, stride=2, name=name)(x))
            maps.append(x)
        return tuple(maps)


TINY = FasterRCNNConfig(
    rpn=RPNConfig(
        strides=(4, 8, 16),
        sizes=((16.0,), (32.0,), (64.0,)),
        convention=rules(
            TORCHVISION,
            targets={"sample_size": 3780, "positive_fraction": 1.0},
            proposals={
                "train_pre_nms": 400,
                "train_post_nms": 200,
                "test_pre_nms": 200,
                "test_post_nms": 100,
            },
            roi={
                "sample_size": 1000,
                "positive_fraction": 1.0,
                "max_detections": 50,
            },
        ),
    ),
    classes=tuple("abcd"),
    box_features=32,
    roi_levels=3,
    box_background=True,
)
TINY_NAMES = {
    "rpn/rpn_conv": "rpn.head.conv.0.0",
    "rpn/rpn_cls_score": "rpn.head.cls_logits",
    "rpn/rpn_bbox_pred": "rpn.head.bbox_pred",
    "box_head/fc6": "roi_heads.box_head.fc6",
    "box_head/fc7": "roi_heads.box_head.fc7",
    "box_predictor/cls_score": "roi_heads.box_predictor.cls_score",
    "box_predictor/bbox_pred": "roi_heads.box_predictor.bbox_pred",
}


@pytest.fixture(scope="module")
def tiny(golden):
    """The detector, its weights, the weights' gradients, and the golden arrays."""
    z = golden("tiny_fasterrcnn_tv")
    model = faster_rcnn(TINY, backbone=FourConvolutions())
    paths = paths_of(jax.eval_shape(lambda k: model.init(k, image_size=(96, 160)), KEY))
    dialect = torch_dialect(lambda m: TINY_NAMES.get(m, m.replace("/", ".")))
    weights, gradients = (
        convert(
            {k.removeprefix(p): v for k, v in z.items() if k.startswith(p)},
            paths,
            dialect,
        )
        for p in ("w::", "g::")
    )
    assert not weights.missing and not weights.left_over and not weights.wrong
    # The images lie there normalised.
    images = z["transformed"].transpose(0, 2, 3, 1).astype(np.float64)
    images = (images * z["image_std"] + z["image_mean"]) * 255
    sizes = z["transformed_sizes"].astype(np.int32)
    inputs = images.astype(np.float32), sizes
    return model, weights.params, gradients.params, inputs, z


def test_both_stages_of_torchvision_are_reproduced(tiny):
    model, params, _, inputs, z = tiny
    outputs = jax.jit(model.apply)(params, *inputs)
    for level in range(3):
        logits = z[f"rpn_objectness_{level}"].transpose(0, 2, 3, 1).reshape(2, -1)
        np.testing.assert_allclose(outputs.rpn.logits[level], logits, atol=1e-5)
    for i in range(2):
        assert outputs.proposals.valid[i].all()
        boxes = outputs.proposals.boxes[i]
        np.testing.assert_allclose(boxes, z[f"proposals_{i}"], atol=1e-3)
    wanted = z["class_logits"].reshape(2, 100, 5)
    np.testing.assert_allclose(outputs.logits, wanted, atol=1e-4)
    wanted = z["box_regression"].reshape(2, 100, 5, 4)
    np.testing.assert_allclose(outputs.deltas, wanted, atol=1e-4)


def test_detections_of_torchvision_are_reproduced(tiny):
    model, params, _, inputs, z = tiny
    found = jax.jit(model.detect)(params, *inputs)
    originals = [z["image_0"].shape[1:], z["image_1"].shape[1:]]
    for i, (height, width) in enumerate(originals):
        assert found.valid[i].sum() == len(z[f"det_boxes_{i}"])
        scale = np.array([height, width]) / inputs[1][i]
        boxes = found.boxes[i] * np.array([*scale[::-1], *scale[::-1]])
        np.testing.assert_allclose(boxes, z[f"det_boxes_{i}"], atol=1e-2)
        np.testing.assert_array_equal(found.labels[i] + 1, z[f"det_labels_{i}"])
        np.testing.assert_allclose(found.scores[i], z[f"det_scores_{i}"], atol=1e-5)


def test_losses_and_all_gradients_of_torchvision_are_reproduced(tiny):
    model, params, gradients, (images, sizes), z = tiny
    boxes, labels = np.zeros((2, 2, 4), np.float32), np.full((2, 2), -1, np.int32)
    scale = np.array([[1, 1], [96 / 100, 144 / 150]], np.float32)
    for i in range(2):
        of_image = z[f"target_boxes_{i}"] * scale[i][[1, 0, 1, 0]]
        boxes[i, : len(of_image)] = of_image
        labels[i, : len(of_image)] = z[f"target_labels_{i}"] - 1
    valid = labels >= 0
    batch = Batch(
        images, sizes, boxes, valid, ~valid & False, scale, np.arange(2), labels
    )
    grad = jax.jit(jax.value_and_grad(model.loss, argnums=1, has_aux=True))
    (_, metrics), found = grad(KEY, params, batch)
    for ours, theirs in {
        "loss_class": "classifier",
        "loss_box": "box_reg",
        "loss_rpn_objectness": "objectness",
        "loss_rpn_box": "rpn_box_reg",
    }.items():
        wanted = z[f"train_loss_{theirs}"]
        np.testing.assert_allclose(metrics[ours], wanted, rtol=1e-5, atol=1e-8)

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())

    jax.tree.map(close, found, gradients)


# by hand and by contract


def test_losses_by_hand():
    logits = jnp.zeros((1, 3, 3))  # two classes and the background
    deltas = jnp.zeros((1, 3, 2, 4)).at[0, 0, 1].set(0.5)
    targets = RoITargets(
        boxes=jnp.zeros((1, 3, 4)),
        labels=jnp.array([[1, -1, -1]]),
        deltas=jnp.zeros((1, 3, 4)),
        valid=jnp.array([[True, True, False]]),
    )
    roi = dataclasses.replace(DETECTRON2.roi, beta=0.0)
    class_loss, box_loss = detection_losses(logits, deltas, targets, roi)
    np.testing.assert_allclose(class_loss, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(box_loss, 4 * 0.5 / 2, rtol=1e-6)  # two RoIs, L1


@pytest.mark.parametrize("first", [True, False])
def test_the_background_stands_where_the_convention_says(first):
    roi = (TORCHVISION if first else DETECTRON2).roi
    logits = jnp.array([[[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]]])
    labels = jnp.array([[-1, 0, 1] if first else [0, 1, -1]])
    targets = RoITargets(
        jnp.zeros((1, 3, 4)), labels, jnp.zeros((1, 3, 4)), jnp.ones((1, 3), bool)
    )
    class_loss, _ = detection_losses(logits, jnp.zeros((1, 3, 2, 4)), targets, roi)
    np.testing.assert_allclose(class_loss, np.log(1 + 2 * np.exp(-4.0)), rtol=1e-5)


def test_parts_and_parameters_bear_the_names_of_the_field(small):
    _, params = small
    assert set(params["params"]) == {"backbone", "rpn", "box_head", "box_predictor"}
    assert set(params["params"]["box_predictor"]) == {"cls_score", "bbox_pred"}
    kernel = params["params"]["box_head"]["fc6"]["kernel"]
    assert kernel.shape == (7, 7, 64, 16)


def test_an_rpn_takes_the_detectors_parameters(small):
    model, params = small
    batch = batch_of()
    ours = model.propose(params, batch.images, batch.image_sizes)
    alone = rpn(SMALL.rpn).propose(params, batch.images, batch.image_sizes)
    for a, b in zip(ours, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_detections_are_padded_and_within_the_image(small):
    model, params = small
    batch = batch_of()
    found = jax.jit(model.detect)(params, batch.images, np.array([[32, 20], [24, 32]]))
    assert found.boxes.shape == (2, 10, 4)
    for i, (height, width) in enumerate([(32, 20), (24, 32)]):
        valid = np.asarray(found.valid[i])
        boxes = np.asarray(found.boxes[i])
        assert (boxes[valid] >= 0).all()
        assert (boxes[valid][:, 2:] <= [width, height]).all()
        assert (boxes[~valid] == 0).all() and (found.scores[i][~valid] == 0).all()
        assert (found.labels[i][~valid] == -1).all()


def test_gradients_are_finite_and_reach_every_part(small, loss):
    _, params = small
    (value, metrics), grads = loss(KEY, params, batch_of())
    assert np.isfinite(value)
    parts = ("loss_class", "loss_box", "loss_rpn_objectness", "loss_rpn_box")
    np.testing.assert_allclose(value, sum(metrics[k] for k in parts), rtol=1e-5)
    for part, tree in grads["params"].items():
        leaves = jax.tree.leaves(tree)
        assert all(np.isfinite(g).all() for g in leaves), part
        assert any((np.asarray(g) != 0).any() for g in leaves), part


def test_a_batch_without_objects_has_no_box_loss_and_finite_gradients(small, loss):
    _, params = small
    batch = batch_of()
    nothing = np.zeros_like(batch.valid)
    junk = np.full_like(batch.boxes, np.nan)
    (value, metrics), grads = loss(
        KEY, params, batch._replace(valid=nothing, boxes=junk)
    )
    assert np.isfinite(value)
    assert metrics["loss_box"] == 0 and metrics["loss_rpn_box"] == 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_what_padding_holds_changes_nothing(small, loss):
    _, params = small
    batch = batch_of()
    junk = np.where(batch.valid[..., None], batch.boxes, np.inf)
    (wanted, _), _ = loss(KEY, params, batch)
    (value, _), _ = loss(KEY, params, batch._replace(boxes=junk))
    assert value == wanted


def test_an_image_that_only_fills_the_batch_teaches_the_second_stage_nothing(
    small, loss
):
    _, params = small
    batch = batch_of()
    filler = batch._replace(image_ids=np.array([0, -1], np.int32))
    other = filler._replace(images=filler.images.copy())
    other.images[1] = 255 - other.images[1]
    (value, _), _ = loss(KEY, params, filler)
    (wanted, _), _ = loss(KEY, params, other)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)


def test_frozen_parts_get_no_gradient(small):
    _, params = small
    config = dataclasses.replace(SMALL.rpn, freeze=("backbone", "rpn"))
    model = faster_rcnn(dataclasses.replace(SMALL, rpn=config))
    grads = jax.jit(jax.grad(lambda p: model.loss(KEY, p, batch_of())[0]))(params)
    for part, tree in grads["params"].items():
        moved = any((np.asarray(g) != 0).any() for g in jax.tree.leaves(tree))
        assert moved == part.startswith("box"), part


def test_a_second_stage_of_res5_ends_a_c4_trunk():
    config = FasterRCNNConfig(
        rpn=RPNConfig(backbone="resnet50_c4", convention=DETECTRON2),
        box_head="res5",
        roi_size=14,
    )
    model = faster_rcnn(config)
    params = jax.eval_shape(lambda key: model.init(key, image_size=(64, 64)), KEY)
    assert set(params["params"]["box_head"]) == {"res5_0", "res5_1", "res5_2"}
    kernel = params["params"]["box_predictor"]["cls_score"]["kernel"]
    assert kernel.shape == (2048, 2)


def test_py_faster_rcnn_pools_by_the_maximum():
    convention = rules(PY_FASTER_RCNN, proposals={"test_post_nms": 5})
    config = FasterRCNNConfig(
        rpn=RPNConfig(backbone="small_resnet", convention=convention), box_features=8
    )
    model = faster_rcnn(config)
    params = model.init(KEY, image_size=(64, 64))
    found = model.detect(params, jnp.zeros((1, 64, 64, 3)), jnp.array([[64, 64]]))
    assert found.boxes.shape == (1, 100, 4)


def test_py_faster_rcnn_pools_up_to_the_last_pixel():
    """Its RoI [0, 0, 23, 23], here [0, 0, 24, 24], ends in cell round(23 / 16) = 1."""
    cells = jnp.arange(16.0).reshape(4, 4, 1)
    box, valid = jnp.array([[0.0, 0, 24, 24]]), jnp.ones(1, bool)
    options = {"strides": (16,), "size": 2, "convention": PY_FASTER_RCNN.roi}
    pooled = pool_rois((cells,), box, valid, **options)
    assert pooled[0, ..., 0].tolist() == [[0, 1], [4, 5]]


def test_a_network_is_made_from_either_configuration():
    assert make_network(SMALL).config is SMALL
    assert make_network(SMALL.rpn).config is SMALL.rpn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi_levels": 3}, "roi_levels must be 1 to 2"),
        ({"box_head": "res5"}, "wants a backbone that ends with res4"),
        ({"classes": ()}, r"classes must be a tuple of names, got \(\)"),
        ({"rpn": SKIPS}, r"strides must be powers of two, .* got \(4, 16\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        faster_rcnn(dataclasses.replace(SMALL, **change))


def test_one_class_without_its_comma_is_not_taken_for_its_letters():
    config = dataclasses.replace(SMALL)
    object.__setattr__(config, "classes", ("person"))  # as without a type checker
    with pytest.raises(ValueError, match="classes must be a tuple of names, got 'pers"):
        faster_rcnn(config)
