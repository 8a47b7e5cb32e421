"""The network as four pure functions: losses of the peers, contracts, devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rpn_jax.batch import Batch
from rpn_jax.conventions import (
    DETECTRON2,
    PY_FASTER_RCNN,
    TORCHVISION,
    LossConvention,
    TargetConvention,
)
from rpn_jax.models import SmallResNet
from rpn_jax.objective import RPNOutputs, rpn_loss
from rpn_jax.rpn import (
    RPNConfig,
    normalize_images,
    rpn,
)
from rpn_jax.targets import batch_targets

KEY = jax.random.key(7)
SMALL = RPNConfig(
    backbone="small_resnet_fpn",
    strides=(8, 16),
    sizes=((16.0,), (32.0,)),
    head_channels=16,
)


def with_convention(**groups) -> RPNConfig:
    return dataclasses.replace(
        SMALL, convention=dataclasses.replace(TORCHVISION, **groups)
    )


def batch_of(count=2, boxes=3, seed=0, side=32) -> Batch:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side / 2, (count, boxes, 2))
    extent = rng.uniform(6, side / 2, (count, boxes, 2))
    return Batch(
        images=rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        image_sizes=np.full((count, 2), side, np.int32),
        boxes=np.concatenate([corner, corner + extent], axis=2).astype(np.float32),
        valid=np.ones((count, boxes), bool),
        ignore=np.zeros((count, boxes), bool),
        scales=np.ones((count, 2), np.float32),
        image_ids=np.arange(count, dtype=np.int32),
        labels=np.zeros((count, boxes), np.int32),
    )


def without_objects(batch: Batch) -> Batch:
    return batch._replace(
        valid=np.zeros_like(batch.valid), boxes=np.full_like(batch.boxes, np.nan)
    )


@functools.cache
def made(config: RPNConfig = SMALL):
    model = rpn(config)
    return model, model.init(jax.random.key(0), image_size=(32, 32))


@functools.cache
def compiled_loss(config: RPNConfig = SMALL):
    """Compile (key, params, batch) -> ((loss, metrics), gradients)."""
    model, _ = made(config)
    return jax.jit(jax.value_and_grad(model.loss, argnums=1, has_aux=True))


def is_finite(tree) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


# --- the peers' losses, from the peers' samples


def peer_losses(convention, z, labels, sampled):
    """Losses, and the gradients of their sum for logits and deltas."""
    boxes = [z[f"gt_{i}"] for i in range(3)]
    most = max(len(b) for b in boxes)
    valid = np.stack([np.arange(most) < len(b) for b in boxes])
    batch = Batch(
        images=None,
        image_sizes=np.tile(z["image_size"], (3, 1)),
        boxes=np.stack([np.pad(b, ((0, most - len(b)), (0, 0))) for b in boxes]),
        valid=valid,
        ignore=np.zeros_like(valid),
        scales=None,
        image_ids=np.arange(3),
        labels=None,
    )
    # So large a sample holds all positives: those that the peer drew are among them.
    everything = dataclasses.replace(
        convention.targets, sample_size=len(z["anchors"]), positive_fraction=1.0
    )
    coded = dataclasses.replace(convention, targets=everything)
    targets = batch_targets(KEY, jnp.asarray(z["anchors"]), batch, coded)
    targets = targets._replace(labels=jnp.asarray(labels), sampled=jnp.asarray(sampled))

    def total(logits, deltas):
        outputs = RPNOutputs((jnp.asarray(z["anchors"]),), (logits,), (deltas,))
        losses = rpn_loss(outputs, targets, convention)
        return losses.objectness + losses.box, losses

    run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (logits, deltas), losses = run(z["logits"], z["deltas"])
    return losses, np.asarray(logits), np.asarray(deltas)


def check_delta_gradients(found, index, value):
    expected = np.zeros_like(found)
    expected[index[:, 0], index[:, 1]] = value
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("size", ["all", "256", "32"])
def test_losses_and_gradients_of_torchvision(golden, size):
    z = golden(f"rpn_loss_tv_{size}")
    sampled = z["sampled_pos"] | z["sampled_neg"]
    losses, logits, deltas = peer_losses(TORCHVISION, z, z["labels"], sampled)
    np.testing.assert_allclose(losses.objectness, z["loss_objectness"], rtol=1e-5)
    np.testing.assert_allclose(losses.box, z["loss_rpn_box_reg"], rtol=1e-5)
    np.testing.assert_allclose(logits, z["grad_logits"], rtol=1e-4, atol=1e-9)
    check_delta_gradients(deltas, z["grad_deltas_index"], z["grad_deltas_value"])


@pytest.mark.parametrize("size", ["all", "256", "32"])
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("smooth_l1_beta0.0000", {"beta": 0.0}),
        ("smooth_l1_beta0.1111", {"beta": 1 / 9}),
        ("giou", {"box": "giou"}),
        ("diou", {"box": "diou"}),
        ("ciou", {"box": "ciou"}),
    ],
)
def test_losses_and_gradients_of_detectron2(golden, size, name, loss):
    z = golden("rpn_loss_d2")
    labels = z[f"{size}_labels"]
    convention = dataclasses.replace(
        DETECTRON2,
        loss=LossConvention(normalizer="batch_size", **loss),
        targets=dataclasses.replace(
            DETECTRON2.targets, sample_size=int(z[f"{size}_batch_size_per_image"])
        ),
    )
    losses, _, deltas = peer_losses(convention, z, labels, labels >= 0)
    key = f"{size}_{name}"
    np.testing.assert_allclose(losses.objectness, z[f"{size}_loss_rpn_cls"], rtol=1e-5)
    np.testing.assert_allclose(losses.box, z[f"{key}_loss_rpn_loc"], rtol=1e-5)
    check_delta_gradients(
        deltas, z[f"{key}_grad_deltas_index"], z[f"{key}_grad_deltas_value"]
    )


# --- contracts


def test_parameters_bear_the_names_of_the_field():
    _, params = made()
    assert set(params) == {"params"}
    assert set(params["params"]) == {"backbone", "rpn"}
    assert set(params["params"]["rpn"]) == {
        "rpn_conv",
        "rpn_cls_score",
        "rpn_bbox_pred",
    }


def test_outputs_of_a_level_have_an_anchor_each():
    model, params = made()
    batch = batch_of()
    out = jax.jit(model.apply)(params, batch.images, batch.image_sizes)
    assert [x.shape for x in out.anchors] == [(48, 4), (12, 4)]
    assert [x.shape for x in out.logits] == [(2, 48), (2, 12)]
    assert [x.shape for x in out.deltas] == [(2, 48, 4), (2, 12, 4)]


def test_two_logits_an_anchor_under_softmax():
    config = with_convention(loss=LossConvention(objectness="softmax"))
    model, params = made(config)
    batch = batch_of()
    out = jax.jit(model.apply)(params, batch.images, batch.image_sizes)
    assert [x.shape for x in out.logits] == [(2, 48, 2), (2, 12, 2)]
    (loss, _), grads = compiled_loss(config)(KEY, params, batch)
    assert np.isfinite(loss) and is_finite(grads)


def test_stride_of_torchvision_follows_the_grid():
    # 40 px give 3 cells at stride 16: torchvision then steps by 40 // 3 = 13.
    model, params = made()
    images, sizes = np.zeros((1, 40, 40, 3), np.uint8), np.array([[40, 40]])
    out = jax.jit(model.apply)(params, images, sizes)
    centres = (out.anchors[1][:, :2] + out.anchors[1][:, 2:]) / 2
    assert sorted(set(np.asarray(centres)[:, 0].tolist())) == [0, 13, 26]


def test_a_batch_without_objects_has_no_box_loss_and_finite_gradients():
    for loss in ("smooth_l1", "giou", "ciou"):
        config = with_convention(loss=LossConvention(box=loss))
        batch = without_objects(batch_of())
        (total, metrics), grads = compiled_loss(config)(KEY, made(config)[1], batch)
        assert np.isfinite(total) and is_finite(grads)
        assert float(metrics["loss_box"]) == 0
        assert float(metrics["positives"]) == 0
        assert np.isnan(metrics["objects_missed"])  # of no objects


def test_one_compilation_a_bucket_in_training_and_in_inference():
    model, params = made()
    loss, propose = jax.jit(model.loss), jax.jit(model.propose)
    for seed, side in enumerate((32, 48, 32, 48)):
        batch = batch_of(seed=seed, side=side)
        loss(jax.random.key(seed), params, batch)
        propose(params, batch.images, batch.image_sizes - seed)
    assert loss._cache_size() == propose._cache_size() == 2


def test_an_image_that_only_fills_the_batch_teaches_nothing():
    batch, params = batch_of(), made()[1]
    filled = batch._replace(image_ids=np.array([0, -1], np.int32))
    (loss, _), grads = compiled_loss()(KEY, params, filled)
    other = filled._replace(images=filled.images[:, ::-1].copy())
    other.images[0] = filled.images[0]
    (same, _), same_grads = compiled_loss()(KEY, params, other)
    assert float(loss) == float(same) > 0
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(same_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_what_padding_holds_changes_nothing():
    batch = batch_of()
    valid = np.array([[True, True, False]] * 2)
    boxes = batch.boxes.copy()
    boxes[:, 2] = [np.nan, np.inf, -3, 1e30]
    plain = compiled_loss()(KEY, made()[1], batch._replace(valid=valid))
    odd = compiled_loss()(KEY, made()[1], batch._replace(valid=valid, boxes=boxes))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(odd), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_health_counts_positives_by_level_and_missed_objects():
    batch = batch_of(count=1, boxes=2)
    # One object is an anchor of the second level itself, one fits none.
    boxes = np.array([[[0, 0, 32, 32], [0, 0, 32, 3]]], np.float32)
    config = with_convention(targets=TargetConvention(low_quality="off"))
    (_, metrics), _ = compiled_loss(config)(
        KEY, made(config)[1], batch._replace(boxes=boxes)
    )
    assert float(metrics["positives"]) == 1
    assert float(metrics["positives_level0"]) == 0
    assert float(metrics["positives_level1"]) == 1
    assert float(metrics["objects_missed"]) == 0.5


def test_the_key_alone_decides_the_sample():
    config = with_convention(targets=TargetConvention(sample_size=8))
    params, batch = made(config)[1], batch_of()
    run = compiled_loss(config)
    first, again = run(KEY, params, batch)[0][0], run(KEY, params, batch)[0][0]
    other = run(jax.random.key(8), params, batch)[0][0]
    assert float(first) == float(again) != float(other)


def test_proposals_lie_within_each_images_own_size():
    model, params = made()
    batch = batch_of()._replace(image_sizes=np.array([[32, 32], [20, 24]], np.int32))
    found = jax.jit(model.propose)(params, batch.images, batch.image_sizes)
    assert found.boxes.shape == (2, 1000, 4)
    assert found.valid.any(axis=1).all()
    assert float(found.boxes[1, :, 2].max()) <= 24
    assert float(found.boxes[1, :, 3].max()) <= 20
    more = jax.eval_shape(
        functools.partial(model.propose, train=True),
        params,
        batch.images,
        batch.image_sizes,
    )
    assert more.boxes.shape == (2, 2000, 4)


def test_the_least_size_counts_original_pixels_for_py_faster_rcnn():
    config = dataclasses.replace(SMALL, convention=PY_FASTER_RCNN)
    model, params = made(config)
    batch = batch_of()
    propose = jax.jit(model.propose)
    scales = np.array([1.0, 1.5], np.float32)
    found = propose(params, batch.images, batch.image_sizes, image_scales=scales)
    for image, least in enumerate((16.0, 24.0)):
        boxes = np.asarray(found.boxes[image])[np.asarray(found.valid[image])]
        assert len(boxes)
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= least


def test_bfloat16_computes_close_to_float32_and_gives_float32():
    exact, params = made()
    rough = rpn(dataclasses.replace(SMALL, dtype="bfloat16"))
    batch = batch_of()
    a = jax.jit(exact.apply)(params, batch.images, batch.image_sizes)
    b = jax.jit(rough.apply)(params, batch.images, batch.image_sizes)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(b))
    for x, y in zip(a.logits, b.logits, strict=True):
        np.testing.assert_allclose(x, y, atol=0.05 * float(jnp.abs(x).max()) + 1e-3)


def test_normalisation_swaps_colours_scales_and_leaves_padding_zero():
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[0, 0, 0] = [255, 0, 51]
    sizes = np.array([[1, 2]])
    rgb = normalize_images(images, sizes, TORCHVISION.image)
    expected = (np.array([1, 0, 0.2]) - TORCHVISION.image.mean) / TORCHVISION.image.std
    np.testing.assert_allclose(rgb[0, 0, 0], expected, rtol=1e-6)
    bgr = normalize_images(images, sizes, DETECTRON2.image)
    expected = np.array([51, 0, 255]) - np.array(DETECTRON2.image.mean)
    np.testing.assert_allclose(bgr[0, 0, 0], expected, rtol=1e-6)
    assert (np.asarray(bgr)[0, 1] == 0).all() and (np.asarray(bgr)[0, :, 2] == 0).all()
    assert (np.asarray(bgr)[0, 0, 1] != 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sizes": ((16.0,),)},
            r"2 strides and 1 groups of sizes\nlevel .*\n.*\n1 .*missing",
        ),
        ({"sizes": ((16.0,), (32.0, 64.0))}, "as many anchors a cell"),
        ({"backbone": "resnet51"}, "backbone must be one of squeezenet"),
        ({"backbone": "squeezenet"}, r"maps of strides \(16,\).*wants \(8, 16\)"),
        ({"sizes": ((16.0,), ())}, r"sizes\[1\] must be a tuple .*got \(\)"),
        ({"ratios": (1.0, -1.0)}, r"ratios must be positive and finite"),
        ({"sizes": ((16.0,), (float("nan"),))}, r"sizes\[1\] must be positive"),
        ({"ratios": ()}, r"ratios must be a tuple that is not empty"),
        (
            {"backbone": "squeezenet_fpn", "strides": (32, 64)},
            r"strides 4, 8, 16 and above, got \(32, 64\)",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_laid_out(change, message):
    with pytest.raises(ValueError, match=message):
        rpn(dataclasses.replace(SMALL, **change))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sizes", (16.0, 32.0), r"sizes\[0\] must be a tuple .*got 16.0"),
        ("strides", 16, "strides must be a tuple .*got 16"),
    ],
)
def test_a_tuple_that_was_forgotten_is_named(field, value, message):
    config = dataclasses.replace(SMALL)
    object.__setattr__(config, field, value)  # no type checker runs at the user's
    with pytest.raises(ValueError, match=message):
        rpn(config)


def test_a_backbone_of_ones_own_that_does_not_fit_is_called_by_its_name():
    with pytest.raises(ValueError, match=r"SmallResNet has maps of strides \(16,\)"):
        rpn(SMALL, backbone=SmallResNet())


def test_wrong_images_are_named():
    model, params = made()
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\]"):
        model.apply(params, np.zeros((32, 32, 3)), np.array([[32, 32]]))
    with pytest.raises(ValueError, match=r"image_sizes must be \[1, 2\]"):
        model.apply(params, np.zeros((1, 32, 32, 3)), np.array([32, 32]))
    vgg = rpn(RPNConfig(backbone="vgg16"))
    with pytest.raises(ValueError, match=r"padded to \(8, 64\) are too small.* 0 x 4"):
        small = jax.ShapeDtypeStruct((1, 8, 64, 3), jnp.float32)
        params = jax.eval_shape(lambda key: vgg.init(key, image_size=(32, 64)), KEY)
        jax.eval_shape(vgg.apply, params, small, jax.ShapeDtypeStruct((1, 2), int))


# --- devices


def on_mesh(devices, tree):
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("data"))
    return mesh, jax.device_put(tree, jax.tree.map(lambda _: split, tree))


def test_loss_and_sample_are_the_same_on_one_and_on_eight_devices(devices):
    config = with_convention(targets=TargetConvention(sample_size=8))
    params, batch = made(config)[1], batch_of(count=8)
    (single, metrics), grads = compiled_loss(config)(KEY, params, batch)
    mesh, split = on_mesh(devices, batch)
    with jax.set_mesh(mesh):
        program = compiled_loss(config).lower(KEY, params, split).compile()
        (many, many_metrics), many_grads = program(KEY, params, split)
    assert "all-gather" not in program.as_text()
    np.testing.assert_allclose(single, many, rtol=1e-5)
    assert float(metrics["positives"]) == float(many_metrics["positives"])
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(many_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_a_batch_split_over_devices_is_never_gathered(devices):
    model, params = made()
    batch = batch_of(count=8)
    single = jax.jit(model.propose)(params, batch.images, batch.image_sizes)
    mesh, (images, sizes) = on_mesh(devices, (batch.images, batch.image_sizes))
    with jax.set_mesh(mesh):
        compiled = jax.jit(model.propose).lower(params, images, sizes).compile()
        text = compiled.as_text()
        found = jax.jit(model.propose)(params, images, sizes)
    assert "all-gather" not in text and "all-to-all" not in text
    np.testing.assert_array_equal(np.asarray(single.valid), np.asarray(found.valid))
    np.testing.assert_allclose(
        np.asarray(single.boxes), np.asarray(found.boxes), rtol=1e-4, atol=1e-3
    )
