"""A whole RPN of detectron2 on given features: proposals, losses, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.batch import Batch
from rpn_jax.conventions import DETECTRON2
from rpn_jax.models import RPNHead
from rpn_jax.objective import rpn_loss
from rpn_jax.pretrained.convert import convert, paths_of, torch_dialect
from rpn_jax.proposals import batch_proposals
from rpn_jax.rpn import RPNConfig, flat_outputs
from rpn_jax.targets import batch_targets

KEY = jax.random.key(0)
NAMES = {
    "rpn_conv": "conv",
    "rpn_cls_score": "objectness_logits",
    "rpn_bbox_pred": "anchor_deltas",
}
CONVENTION = dataclasses.replace(
    DETECTRON2,
    targets=dataclasses.replace(
        DETECTRON2.targets, sample_size=3780, positive_fraction=1.0
    ),
    proposals=dataclasses.replace(
        DETECTRON2.proposals,
        train_pre_nms=400,
        train_post_nms=200,
        test_pre_nms=200,
        test_post_nms=100,
    ),
)
CONFIG = RPNConfig(
    strides=(4, 8, 16), sizes=((16.0,), (32.0,), (64.0,)), convention=CONVENTION
)
HEAD = RPNHead(num_anchors=3)


@pytest.fixture(scope="module")
def peer(golden):
    """The golden arrays, weights and their gradients as ours, features NHWC."""
    z = golden("tiny_rpn_d2")
    assert z["sizes"].tolist() == [16, 32, 64] and z["smooth_l1_beta"] == 0
    paths = paths_of(jax.eval_shape(HEAD.init, KEY, jnp.zeros((1, 4, 4, 16))))
    weights, gradients = (
        convert(
            {k.removeprefix(p): v for k, v in z.items() if k.startswith(p)},
            paths,
            torch_dialect(NAMES.get),
        ).params
        for p in ("w::", "g::")
    )
    features = [z[f"feature_p{n}"].transpose(0, 2, 3, 1) for n in (2, 3, 4)]
    return z, weights, gradients, features


def outputs_of(params, features):
    scores, deltas = zip(*(HEAD.apply(params, x) for x in features), strict=True)
    return flat_outputs(CONFIG, list(scores), list(deltas), (96, 160))


@pytest.mark.parametrize("train", [False, True])
def test_proposals(peer, train):
    z, params, _, features = peer

    @jax.jit
    def run(params, features):
        outputs = outputs_of(params, features)
        scales = jnp.ones(2)
        return batch_proposals(
            *outputs, z["image_sizes"], scales, CONVENTION, train=train
        )

    found = run(params, features)
    part = "train" if train else "eval"
    for i in range(2):
        boxes, logits = z[f"{part}_boxes_{i}"], z[f"{part}_logits_{i}"]
        assert found.valid[i].sum() == len(boxes)
        np.testing.assert_allclose(found.boxes[i][: len(boxes)], boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores[i][: len(boxes)], logits, atol=1e-5)


def test_losses_and_gradients(peer):
    z, params, gradients, features = peer
    boxes = np.zeros((2, 2, 4), np.float32)
    boxes[0] = z["gt_0"]  # the second image has no object
    valid = np.array([[True, True], [False, False]])
    batch = Batch(
        images=None,
        image_sizes=z["image_sizes"],
        boxes=boxes,
        valid=valid,
        ignore=np.zeros_like(valid),
        scales=None,
        image_ids=np.arange(2),
        labels=None,
    )
    # The normaliser counts the anchors that were asked for, not those there are.
    asked = dataclasses.replace(
        CONVENTION,
        targets=dataclasses.replace(
            CONVENTION.targets, sample_size=int(z["batch_size_per_image"])
        ),
    )

    @jax.jit
    def run(params, features):
        def total(params, features):
            outputs = outputs_of(params, features)
            anchors = jnp.concatenate(outputs.anchors)
            targets = batch_targets(KEY, anchors, batch, CONVENTION)
            losses = rpn_loss(outputs, targets, asked)
            return losses.objectness + losses.box, losses

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, features)

    (_, losses), (of_params, of_features) = run(params, features)
    np.testing.assert_allclose(losses.objectness, z["train_loss_rpn_cls"], rtol=1e-5)
    np.testing.assert_allclose(losses.box, z["train_loss_rpn_loc"], rtol=1e-5)

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())

    jax.tree.map(close, of_params, gradients)
    for n, ours in zip((2, 3, 4), of_features, strict=True):
        close(ours, z[f"g::feature_p{n}"].transpose(0, 2, 3, 1))
