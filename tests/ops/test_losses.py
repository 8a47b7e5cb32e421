import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.test_util import check_grads

import rpn_jax as rj
from tests import reference, strategies

IOU_LOSSES = {"giou": rj.giou_loss, "diou": rj.diou_loss, "ciou": rj.ciou_loss}
each_iou_loss = pytest.mark.parametrize("name", IOU_LOSSES)


class TestObjectness:
    def test_sigmoid_by_hand(self):
        losses = rj.sigmoid_objectness_loss(
            jnp.array([0.0, 2, 2]), jnp.array([1, 1, 0])
        )
        expected = [np.log(2), np.log1p(np.exp(-2)), np.log1p(np.exp(2))]
        np.testing.assert_allclose(losses, expected, rtol=1e-6)

    def test_softmax_by_hand(self):
        logits = jnp.array([[1.0, 3], [1, 3]])
        losses = rj.softmax_objectness_loss(logits, jnp.array([1, 0]))
        expected = [np.log1p(np.exp(-2)), np.log1p(np.exp(2))]
        np.testing.assert_allclose(losses, expected, rtol=1e-6)

    def test_only_the_difference_of_two_logits_counts(self):
        labels = jnp.array([1, 0])
        two = rj.softmax_objectness_loss(jnp.array([[5.0, 8], [-3, -4]]), labels)
        one = rj.sigmoid_objectness_loss(jnp.array([3.0, -1]), labels)
        np.testing.assert_allclose(two, one, rtol=1e-6)

    def test_extreme_logits_give_finite_losses_and_gradients(self):
        logits, labels = jnp.array([1e4, -1e4, 1e4, -1e4]), jnp.array([1, 1, 0, 0])
        losses = rj.sigmoid_objectness_loss(logits, labels)
        np.testing.assert_allclose(losses, [0, 1e4, 1e4, 0])
        grad = jax.grad(lambda x: rj.sigmoid_objectness_loss(x, labels).sum())(logits)
        np.testing.assert_allclose(grad, [0, -1, 1, 0], atol=1e-6)

    def test_gradient_is_probability_less_label(self):
        logits, labels = jnp.array([0.3, -2.0]), jnp.array([1, 0])
        grad = jax.grad(lambda x: rj.sigmoid_objectness_loss(x, labels).sum())(logits)
        np.testing.assert_allclose(
            grad, jax.nn.sigmoid(logits) - labels.astype(jnp.float32), rtol=1e-5
        )

    def test_half_precision_in_gives_float32_out(self):
        logits, labels = jnp.zeros((3, 2), jnp.bfloat16), jnp.zeros(3, int)
        assert rj.softmax_objectness_loss(logits, labels).dtype == jnp.float32
        assert rj.sigmoid_objectness_loss(logits[:, 0], labels).dtype == jnp.float32

    def test_wrong_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"labels.*\(3,\).*\(2,\)"):
            rj.sigmoid_objectness_loss(jnp.zeros(3), jnp.zeros(2, int))
        with pytest.raises(ValueError, match=r"logits must be \[..., 2\].*\(2, 3\)"):
            rj.softmax_objectness_loss(jnp.zeros((2, 3)), jnp.zeros(2, int))


class TestSmoothL1:
    def test_by_hand(self):
        losses = rj.smooth_l1_loss(jnp.array([0.0, 1, 2, -6]), jnp.zeros(4), beta=2.0)
        assert losses.tolist() == [0, 0.25, 1, 5]

    def test_beta_zero_is_l1(self):
        losses = rj.smooth_l1_loss(jnp.array([0.0, 0.5, -3]), jnp.zeros(3), beta=0)
        assert losses.tolist() == [0, 0.5, 3]

    def test_default_is_a_ninth(self):
        losses = rj.smooth_l1_loss(jnp.array([1.0]), jnp.zeros(1))
        np.testing.assert_allclose(losses, [1 - 0.5 / 9], rtol=1e-6)

    @pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
    def test_gradient_is_finite_and_zero_at_the_target(self, beta):
        grad = jax.grad(lambda x: rj.smooth_l1_loss(x, jnp.zeros(3), beta=beta).sum())
        slope = np.asarray(grad(jnp.array([0.0, 5, -5])))
        assert slope[0] == 0
        np.testing.assert_allclose(slope[1:], [1, -1])

    def test_wrong_arguments_are_named(self):
        with pytest.raises(ValueError, match="beta must not be negative, got -1"):
            rj.smooth_l1_loss(jnp.zeros(2), jnp.zeros(2), beta=-1.0)
        with pytest.raises(ValueError, match=r"targets.*\(2,\).*\(3,\)"):
            rj.smooth_l1_loss(jnp.zeros(2), jnp.zeros(3))


@each_iou_loss
class TestIoULosses:
    def test_equal_boxes_cost_nothing(self, name):
        box = jnp.array([1.0, 2, 30, 40])
        np.testing.assert_allclose(IOU_LOSSES[name](box, box), 0, atol=1e-6)

    @pytest.mark.parametrize("peer", ["tv", "d2"])
    def test_equals_the_peer(self, golden, name, peer):
        arrays = golden("iou_losses")
        loss = IOU_LOSSES[name](arrays["pred"], arrays["target"])
        np.testing.assert_allclose(
            loss, arrays[f"{peer}_{name}_loss"], rtol=1e-5, atol=1e-6
        )

    def test_gradient_equals_the_peer(self, golden, name):
        arrays = golden("iou_losses")

        def total(boxes):
            return IOU_LOSSES[name](boxes, jnp.asarray(arrays["target"])).sum()

        grad = jax.grad(total)(jnp.asarray(arrays["pred"]))
        assert np.isfinite(grad).all()
        # Equal boxes: there the slope of a minimum is each framework's own choice.
        theirs = arrays[f"tv_{name}_grad"]
        np.testing.assert_allclose(grad[10:], theirs[10:], rtol=1e-5, atol=1e-6)

    def test_gradient_at_the_target_is_zero(self, name):
        box = jnp.array([[1.0, 2, 30, 40]])
        grad = jax.grad(lambda a: IOU_LOSSES[name](a, box).sum())(box)
        np.testing.assert_allclose(grad, 0, atol=1e-6)

    @given(a=strategies.real_boxes(6), b=strategies.real_boxes(6))
    def test_equals_the_reference(self, name, a, b):
        loss = jax.jit(IOU_LOSSES[name])(a, b)
        expected = 1 - getattr(reference, name)(a, b)
        np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-4)

    @given(a=strategies.grid_boxes(6), b=strategies.grid_boxes(6))
    def test_empty_boxes_give_finite_losses_and_gradients(self, name, a, b):
        loss, grad = GRADIENTS[name](a, b)
        assert np.isfinite(loss).all()
        assert np.isfinite(grad).all()


GRADIENTS = {
    name: jax.jit(jax.value_and_grad(lambda a, b, f=f: f(a, b).sum()))
    for name, f in IOU_LOSSES.items()
}


def targets_of(arrays, image: int) -> rj.Matches:
    # As torchvision and detectron2 do it, without a guard for objects apart.
    return rj.match_anchors(
        arrays["anchors"], arrays[f"gt_{image}"], low_quality_above=-1.0
    )


def matched_boxes(arrays) -> np.ndarray:
    """Ground truth of each anchor, [3, A, 4]; the anchor itself without any."""
    matched = []
    for image in range(3):
        index = np.asarray(targets_of(arrays, image).gt_index)
        boxes = arrays[f"gt_{image}"]
        boxes = boxes[index] if len(boxes) else arrays["anchors"]
        matched.append(boxes)
    return np.stack(matched)


def sparse(index, value, shape) -> np.ndarray:
    dense = np.zeros(shape, np.float32)
    dense[tuple(index.T)] = value
    return dense


def close(ours, theirs):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(
        ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max()
    )


class TestTorchvision:
    @pytest.fixture(params=["all", "256", "32"])
    def arrays(self, golden, request):
        return golden(f"rpn_loss_tv_{request.param}")

    def test_labels(self, arrays):
        for image in range(3):
            labels = targets_of(arrays, image).labels
            np.testing.assert_array_equal(labels, arrays["labels"][image])

    def test_losses_and_gradients(self, arrays):
        anchors = np.broadcast_to(arrays["anchors"], arrays["deltas"].shape)
        targets = rj.encode_boxes(matched_boxes(arrays), anchors)
        labels = jnp.asarray(arrays["labels"].astype(np.int32))
        sampled = jnp.asarray(arrays["sampled_pos"] | arrays["sampled_neg"])

        def losses(logits, deltas):
            box = rj.smooth_l1_loss(deltas, targets, beta=float(arrays["beta"]))
            return rj.rpn_losses(
                rj.sigmoid_objectness_loss(logits, labels),
                box.sum(-1),
                labels,
                sampled,
                normalizer="sampled",
            )

        logits, deltas = jnp.asarray(arrays["logits"]), jnp.asarray(arrays["deltas"])
        ours, vjp = jax.vjp(losses, logits, deltas)
        close(ours.objectness, arrays["loss_objectness"])
        close(ours.box, arrays["loss_rpn_box_reg"])
        one, zero = jnp.float32(1), jnp.float32(0)
        close(vjp(rj.RPNLosses(one, zero))[0], arrays["grad_logits"])
        expected = sparse(
            arrays["grad_deltas_index"], arrays["grad_deltas_value"], deltas.shape
        )
        close(vjp(rj.RPNLosses(zero, one))[1], expected)


class TestDetectron2:
    @pytest.fixture
    def arrays(self, golden):
        return golden("rpn_loss_d2")

    def reduce(self, arrays, sample, objectness, box) -> rj.RPNLosses:
        labels = jnp.asarray(arrays[f"{sample}_labels"].astype(np.int32))
        return rj.rpn_losses(
            objectness,
            box,
            labels,
            labels >= 0,
            normalizer="batch_size",
            batch_size=int(arrays[f"{sample}_batch_size_per_image"]),
        )

    @pytest.mark.parametrize("sample", ["all", "256", "32"])
    def test_objectness(self, arrays, sample):
        labels = jnp.asarray(arrays[f"{sample}_labels"].astype(np.int32))

        def loss(logits):
            each = rj.sigmoid_objectness_loss(logits, labels)
            return self.reduce(arrays, sample, each, jnp.zeros_like(each)).objectness

        value, grad = jax.value_and_grad(loss)(jnp.asarray(arrays["logits"]))
        close(value, arrays[f"{sample}_loss_rpn_cls"])
        if f"{sample}_grad_logits" in arrays:
            close(grad, arrays[f"{sample}_grad_logits"])

    @pytest.mark.parametrize("sample", ["all", "256", "32"])
    @pytest.mark.parametrize(
        "kind",
        ["smooth_l1_beta0.0000", "smooth_l1_beta0.1111", "giou", "diou", "ciou"],
    )
    def test_box(self, arrays, sample, kind):
        anchors = np.broadcast_to(arrays["anchors"], arrays["deltas"].shape)
        boxes = matched_boxes(arrays)

        def loss(deltas):
            if kind.startswith("smooth_l1"):
                beta = 1 / 9 if kind.endswith("0.1111") else 0.0
                targets = rj.encode_boxes(boxes, anchors)
                box = rj.smooth_l1_loss(deltas, targets, beta=beta).sum(-1)
            else:
                box = IOU_LOSSES[kind](rj.decode_boxes(deltas, anchors), boxes)
            return self.reduce(arrays, sample, jnp.zeros_like(box), box).box

        value, grad = jax.value_and_grad(loss)(jnp.asarray(arrays["deltas"]))
        close(value, arrays[f"{sample}_{kind}_loss_rpn_loc"])
        expected = sparse(
            arrays[f"{sample}_{kind}_grad_deltas_index"],
            arrays[f"{sample}_{kind}_grad_deltas_value"],
            arrays["deltas"].shape,
        )
        close(grad, expected)


class TestReduction:
    def test_by_hand(self):
        objectness = jnp.array([[1.0, 2, 4, 8], [16, 32, 64, 128]])
        box = objectness * 10
        labels = jnp.array([[1, 0, 0, -1], [1, 1, 0, 0]])
        sampled = jnp.array([[True, True, False, False], [False, True, True, False]])
        ours = rj.rpn_losses(objectness, box, labels, sampled)
        assert [float(x) for x in ours] == [(1 + 2 + 32 + 64) / 4, (10 + 320) / 4]
        ours = rj.rpn_losses(
            objectness, box, labels, sampled, normalizer="batch_size", batch_size=8
        )
        assert [float(x) for x in ours] == [(1 + 2 + 32 + 64) / 16, (10 + 320) / 16]

    @pytest.mark.parametrize("normalizer", ["sampled", "batch_size"])
    def test_nothing_sampled_gives_zero_whatever_the_losses_hold(self, normalizer):
        losses = jnp.array([[jnp.nan, jnp.inf, 1.0]])
        labels, sampled = jnp.array([[1, 0, 0]]), jnp.zeros((1, 3), bool)

        def total(losses):
            parts = rj.rpn_losses(
                losses, losses, labels, sampled, normalizer=normalizer
            )
            return parts.objectness + parts.box

        value, grad = jax.value_and_grad(total)(losses)
        assert value == 0
        assert grad.tolist() == [[0, 0, 0]]

    def test_no_positive_gives_a_box_loss_of_exactly_zero(self):
        losses = jnp.array([[jnp.nan, 3.0]])
        parts = rj.rpn_losses(
            jnp.ones((1, 2)), losses, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool)
        )
        assert parts.box == 0
        assert parts.objectness == 1

    @pytest.mark.parametrize("normalizer", ["sampled", "batch_size"])
    def test_whole_batch_counts_on_every_device(self, devices, normalizer):
        """A shard's own number of samples would weigh its anchors wrongly."""
        rng = np.random.default_rng(0)
        objectness = rng.random((8, 20)).astype(np.float32)
        box = rng.random((8, 20)).astype(np.float32)
        labels = rng.integers(-1, 2, (8, 20)).astype(np.int32)
        sampled = rng.random((8, 20)) < np.linspace(0, 1, 8)[:, None]
        args = (objectness, box, labels, sampled)

        def reduce(*args, axis_name=None):
            return rj.rpn_losses(
                *args, normalizer=normalizer, batch_size=16, axis_name=axis_name
            )

        alone = reduce(*args)
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        split = jax.device_put(args, jax.NamedSharding(mesh, jax.P("data")))
        by_jit = jax.jit(reduce)(*split)
        by_hand = jax.jit(
            jax.shard_map(
                lambda *args: reduce(*args, axis_name="data"),
                mesh=mesh,
                in_specs=jax.P("data"),
                out_specs=jax.P(),
            )
        )(*split)
        np.testing.assert_allclose(by_jit, alone, rtol=1e-6)
        np.testing.assert_allclose(by_hand, alone, rtol=1e-6)

    def test_wrong_arguments_are_named(self):
        ones, labels = jnp.ones((1, 3)), jnp.ones((1, 3), int)
        with pytest.raises(ValueError, match="normalizer must be one of.*'mean'"):
            rj.rpn_losses(ones, ones, labels, labels == 1, normalizer="mean")
        with pytest.raises(ValueError, match=r"sampled.*\(1, 3\).*\(3,\)"):
            rj.rpn_losses(ones, ones, labels, jnp.ones(3, bool))


def test_gradients_are_those_of_the_formulas():
    a, b = jnp.array([[1.0, 2, 9, 8]]), jnp.array([[2.0, 1, 11, 7]])
    # CIoU holds its trade-off constant, so that its gradient is no full derivative.
    for name in ("giou", "diou"):
        check_grads(IOU_LOSSES[name], (a, b), order=1, modes=["rev"], rtol=0.05)
