import dataclasses
from functools import partial

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs.bccd import CAFFE
from rpn_jax.conventions import DETECTRON2
from rpn_jax.faster_rcnn import FasterRCNNConfig, faster_rcnn
from rpn_jax.models import make_backbone
from rpn_jax.pretrained import (
    load,
    model_config,
    overlay,
    save_params_npz,
    save_torchvision,
    torchvision_state_dict,
)
from rpn_jax.pretrained.recognise import recognise
from rpn_jax.pretrained.trunks import from_caffe2, torchvision_resnet
from rpn_jax.pretrained.zoo import torchvision_resnet_fpn
from rpn_jax.rpn import RPNConfig, rpn
from rpn_jax.training.config import config_to_json
from tests.pretrained.peer_weights import (
    IMAGE,
    TRUNKS,
    from_golden,
    image,
    unit_image,
)

slow = pytest.mark.slow
DETECTORS = [
    "fasterrcnn_mobilenet_v3_large_fpn",
    "rpn_R_50_C4",
    pytest.param("fasterrcnn_resnet50_fpn", marks=slow),
    pytest.param("fasterrcnn_resnet50_fpn_v2", marks=slow),
    pytest.param("rpn_R_50_FPN", marks=slow),
    pytest.param("faster_rcnn_R_50_DC5", marks=slow),
    pytest.param("faster_rcnn_X_101_32x8d_FPN", marks=slow),
]
# The maps of a whole classifier that its golden file has.
STAGES = {"resnet18": (0, 1, 2, 3), "resnet50": (1, 3), "resnext101_32x8d": (1,)}


def small():
    """A state dict of torchvision's SqueezeNet, the smallest of all."""
    with np.load("tests/golden/pretrained_squeezenet1_1.npz") as golden:
        return from_golden(golden)


def rpn_of(config):
    return config if isinstance(config, RPNConfig) else config.rpn


@pytest.mark.parametrize("size", [(64, 96), (65, 97)], ids=["even", "odd"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=slow if name in ("resnet50", "resnext101_32x8d") else ()
        )
        for name in TRUNKS
    ],
)
def test_trunks_equal_torchvisions(name, size, golden):
    wanted = golden(f"pretrained_{name}")
    loaded = load(from_golden(wanted))
    config = loaded.config
    backbone = make_backbone(
        config.backbone,
        strides=config.strides,
        options=config.backbone_options,
        dtype=jnp.float32,
    )
    trunk, variables = backbone, {k: v["backbone"] for k, v in loaded.params.items()}
    if hasattr(backbone, "bottom_up"):
        trunk = backbone.bottom_up
        variables = {k: v["bottom_up"] for k, v in variables.items()}
    maps = jax.jit(trunk.apply)(variables, unit_image(*size))
    suffix = f"_{size[0]}x{size[1]}"
    theirs = [wanted[k] for k in wanted if k.endswith(suffix)]
    ours = [maps[i] for i in STAGES.get(name, range(len(theirs)))]
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        scale = np.abs(theirs_).max()
        np.testing.assert_allclose(ours_[..., ::4], theirs_, atol=2e-5 * scale)


@pytest.mark.parametrize("name", DETECTORS)
def test_proposals_equal_the_peers(name, golden):
    wanted = golden(f"pretrained_{name}")
    loaded = load(from_golden(wanted))
    config = rpn_of(loaded.config)
    if name != "fasterrcnn_resnet50_fpn":  # as published, its epsilon is 0
        assert config == model_config(name)
    net = rpn(config)
    images, sizes = image()[None], jnp.array([IMAGE])

    @jax.jit
    def run(params):
        outputs = net.apply(params, images, sizes)
        return outputs, net.propose(params, images, sizes)

    outputs, found = run(loaded.params)
    logits = jnp.concatenate(outputs.logits, axis=1)[0]
    deltas = jnp.concatenate(outputs.deltas, axis=1)[0]
    np.testing.assert_allclose(logits, wanted["logits"], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(deltas, wanted["deltas"], atol=1e-5, rtol=1e-5)
    valid = found.valid[0]
    assert valid.sum() == len(wanted["boxes"])
    np.testing.assert_allclose(found.scores[0][valid], wanted["scores"], atol=2e-5)
    # Neighbours of nearly equal score may change places.
    gaps = np.abs(found.boxes[0][valid][:, None] - wanted["boxes"][None]).max(-1)
    assert gaps.min(axis=0).max() < 1e-3 and gaps.min(axis=1).max() < 1e-3


def test_old_names_and_their_epsilon_are_known(golden):
    wanted = golden("pretrained_fasterrcnn_resnet50_fpn")
    old = {
        name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        .replace("blocks.0.0.", "blocks.0.")
        .replace("blocks.1.0.", "blocks.1."): value
        for name, value in from_golden(wanted).items()
        if not name.endswith("num_batches_tracked")
    }
    assert "backbone.fpn.inner_blocks.0.weight" in old
    loaded = load(old)
    assert loaded.config.rpn == model_config("fasterrcnn_resnet50_fpn")
    assert loaded.config.rpn.backbone_options.norm_epsilon == 0.0
    assert "epsilon 0, as published" in str(loaded.report)
    new = load(from_golden(wanted))
    assert new.config.rpn.backbone_options.norm_epsilon == 1e-5
    jax.tree.map(np.testing.assert_array_equal, loaded.params, new.params)


def caffe2_names(state):
    """Rename torchvision's ResNet to Caffe2, statistics folded into scale and bias."""
    parts = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    named = {"fc1000_w": np.zeros((9, 9)), "conv1_b": np.zeros(64)}
    for block, module in [("", "conv1")] + [
        (f"layer{s}.{b}.", part)
        for s, count in ((1, 3), (2, 4), (3, 6), (4, 3))
        for b in range(count)
        for part in (*parts, "downsample.0")
    ]:
        if f"{block}{module}.weight" not in state:
            continue
        norm = block + ("downsample.1" if "down" in module else f"bn{module[-1]}")
        ours, ours_norm = "conv1", "res_conv1_bn"
        if block:
            stage, number = block[5:].strip(".").split(".")
            branch = parts.get(module, "branch1")
            ours = f"res{int(stage) + 1}_{number}_{branch}"
            ours_norm = f"{ours}_bn"
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
        named[f"{ours}_w"] = state[f"{block}{module}.weight"]
        named[f"{ours_norm}_s"] = scale
        named[f"{ours_norm}_b"] = (
            state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        )
    return named


def test_caffe2s_names_are_detectron2s_trunk(golden):
    wanted = golden("pretrained_resnet50")
    found = load(caffe2_names(from_golden(wanted)))
    assert found.report.model == "detectron2's R-50"
    assert found.config.backbone_options.stride_in_1x1
    assert set(found.report.left_over) == {"fc1000_w", "stem.conv1.bias"}
    # In another network, of another convention, with the stride of this one.
    config = RPNConfig(backbone="resnet50_c4")
    loaded = load(caffe2_names(from_golden(wanted)), config=config)
    assert loaded.config is config
    variables = rpn(config).init(jax.random.key(0), image_size=(64, 64))
    merged = overlay(variables, loaded.params)
    assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, variables)
    kernel = merged["params"]["backbone"]["res2_0"]["conv2"]["kernel"]
    np.testing.assert_array_equal(
        kernel, from_golden(wanted)["layer1.0.conv2.weight"].transpose(2, 3, 1, 0)
    )
    assert all("rpn/" in name for name in loaded.report.missing)


def test_detectron2s_names_of_torchvisions_trunk(golden):
    state = from_golden(golden("pretrained_resnet50"))
    renamed = {}
    for name, value in state.items():
        name = name if name.startswith(("layer", "fc")) else f"stem.{name}"
        name = name.replace("downsample.0", "shortcut")
        name = name.replace("downsample.1", "shortcut.norm").replace("fc.", "stem.fc.")
        for n in range(1, 5):
            name = name.replace(f"layer{n}.", f"res{n + 1}.")
            name = name.replace(f"bn{n}.", f"conv{n}.norm.")
        renamed[name] = value
    loaded = load(renamed)
    theirs = load(state)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, theirs.params)
    assert not loaded.config.backbone_options.stride_in_1x1
    image, wanted = loaded.config.convention.image, theirs.config.convention.image
    assert image.color == wanted.color == "rgb"
    for ours, unit in ((image.mean, wanted.mean), (image.std, wanted.std)):
        np.testing.assert_allclose(ours, 255 * np.array(unit), rtol=1e-4)


def test_imagenet_squeezenet_of_keras_loads(shared_data):
    path = shared_data.parent / "weights" / "squeezenet_v1.1_notop.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    loaded = load(path)
    assert loaded.config.backbone == "squeezenet"
    assert loaded.config.convention.image == CAFFE.image
    assert sum(p.size for p in jax.tree.leaves(loaded.params)) == 722_496


def save_h5(file, flat):
    """Write arrays `layer/kernel` and `layer/bias` as Keras 1 did."""
    with h5py.File(file, "w") as h5:
        layers = sorted({name.rsplit("/", 1)[0] for name in flat})
        h5.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer in layers:
            names = {"kernel": f"{layer}_W:0", "bias": f"{layer}_b:0"}
            group = h5.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in names.values()]
            for part, name in names.items():
                group[name] = flat[f"{layer}/{part}"]


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_a_keras_file_gives_the_parameters_of_its_state_dict(tmp_path, kind):
    trunk = load(small()).params["params"]["backbone"]
    leaves = jax.tree.leaves_with_path(trunk)
    flat = {"/".join(key.key for key in path): leaf for path, leaf in leaves}
    file = tmp_path / f"keras.{kind}"
    if kind == "npz":
        np.savez(file, **flat)
    else:
        save_h5(file, flat)
    loaded = load(file)
    assert loaded.report.model == "Keras' SqueezeNet 1.1"
    jax.tree.map(
        np.testing.assert_array_equal, loaded.params["params"]["backbone"], trunk
    )
    sizes = ((32.0,), (64.0,))
    pyramid = RPNConfig(backbone="squeezenet_fpn", strides=(8, 16), sizes=sizes)
    bottom_up = load(file, config=pyramid).params["params"]["backbone"]["bottom_up"]
    jax.tree.map(np.testing.assert_array_equal, bottom_up, trunk)


def test_own_files_load_whole_or_in_part(tmp_path):
    config = RPNConfig(backbone="small_resnet", sizes=((16.0, 32.0),), head_channels=8)
    params = rpn(config).init(jax.random.key(0), image_size=(64, 64))
    path = tmp_path / "weights.npz"
    save_params_npz(path, params, {"model": config_to_json(config)})
    loaded = load(path)
    assert loaded.config == config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    other = dataclasses.replace(config, sizes=((16.0,),))
    with pytest.raises(ValueError, match="rpn_bbox_pred/kernel wants"):
        load(path, config=other)
    for parts in (["backbone"], "backbone"):
        part = load(path, config=other, parts=parts)
        assert list(part.params["params"]) == ["backbone"]


def test_an_own_detector_gives_an_rpn_its_own(tmp_path):
    first = RPNConfig(backbone="small_resnet", sizes=((16.0,),), head_channels=8)
    config = FasterRCNNConfig(rpn=first, box_features=8, roi_size=2)
    params = faster_rcnn(config).init(jax.random.key(0), image_size=(64, 64))
    path = tmp_path / "weights.npz"
    save_params_npz(path, params, {"model": config_to_json(config)})
    loaded = load(path, config=first)
    assert set(loaded.params["params"]) == {"backbone", "rpn"}
    assert all("/box_" in name for name in loaded.report.left_over)
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded.params["params"],
        {part: params["params"][part] for part in ("backbone", "rpn")},
    )


def test_a_trunk_fills_the_second_stage_of_a_c4_model(golden):
    state = from_golden(golden("pretrained_resnet50"))
    first = model_config("faster_rcnn_R_50_C4")
    config = FasterRCNNConfig(rpn=first, box_head="res5", roi_size=14)
    loaded = load(state, config=config)
    assert set(loaded.params["params"]) == {"backbone", "box_head"}
    np.testing.assert_array_equal(
        loaded.params["params"]["box_head"]["res5_0"]["conv1"]["kernel"],
        state["layer4.0.conv1.weight"].transpose(2, 3, 1, 0),
    )
    assert not any("res5" in name for name in loaded.report.missing)
    del state["layer4.0.conv1.weight"]
    with pytest.raises(ValueError, match="lacks box_head/res5_0/conv1/kernel"):
        load(state, config=config)


def test_what_a_trunk_learned_with_and_does_not_get_is_said(golden):
    state = from_golden(golden("pretrained_resnet50"))
    notes = load(state, config=model_config("rpn_R_50_FPN")).report.notes
    assert len(notes) == 5
    assert "it learned with stride_in_1x1 False, here that is True" in notes
    assert "it learned with color 'rgb', here that is 'bgr'" in notes
    assert not load(state, config=torchvision_resnet_fpn(50)).report.notes
    notes = load(small(), config=RPNConfig(backbone="squeezenet")).report.notes
    assert notes == ("it learned with padding 'ceil', here that is 'same'",)


def test_classifier_and_counts_are_left_out_without_asking(golden):
    state = from_golden(golden("pretrained_resnet18"))
    assert {"fc.weight", "bn1.num_batches_tracked"} <= set(state)
    report = load(state).report
    assert {"fc.weight", "bn1.num_batches_tracked"} <= set(report.left_over)
    assert any("lateral" in name for name in report.missing)


def test_what_is_wrong_is_named():
    good = small()
    wrong = good | {"features.0.weight": good["features.0.weight"][:, :1]}
    with pytest.raises(ValueError, match=r"features.0.weight has shape \(64, 1,"):
        load(wrong)
    less = {k: v for k, v in good.items() if k != "features.12.expand3x3.bias"}
    with pytest.raises(ValueError, match="lacks backbone/fire9/expand3x3/bias"):
        load(less)
    more = good | {"features.99.weight": np.zeros(3)}
    with pytest.raises(ValueError, match="has what nothing uses.*features.99.weight"):
        load(more)
    assert "features.99.weight" in load(more, allow=["features.99"]).report.left_over
    with pytest.raises(ValueError, match="of no model that is known.* encoder.weight"):
        load({"encoder.weight": np.zeros(3)})
    with pytest.raises(ValueError, match="does not fit vgg16"):
        load(good, config=RPNConfig(backbone="vgg16"))


def test_a_whole_network_of_another_kind_is_refused(golden):
    state = from_golden(golden("pretrained_rpn_R_50_C4"))
    with pytest.raises(ValueError, match="does not fit resnet50_fpn: it lacks"):
        load(state, config=model_config("fasterrcnn_resnet50_fpn"))


def test_models_are_told_apart(golden):
    for name in ("rpn_R_50_FPN", "faster_rcnn_R_50_DC5", "faster_rcnn_X_101_32x8d_FPN"):
        found = recognise(from_golden(golden(f"pretrained_{name}")))
        assert found is not None and rpn_of(found.config) == model_config(name)
        assert found.model == f"detectron2's {name}"


def test_the_second_stage_is_told_from_its_arrays(golden):
    def config(name):
        found = recognise(from_golden(golden(f"pretrained_{name}")))
        assert found is not None
        return found.config

    first = config("fasterrcnn_resnet50_fpn")
    assert first.classes[0] == "person" and len(first.classes) == 90
    assert (first.box_head, first.roi_levels, first.box_background) == ("two_fc", 4, 1)
    assert config("fasterrcnn_resnet50_fpn_v2").box_head == "conv_fc"
    assert config("fasterrcnn_mobilenet_v3_large_fpn").roi_levels == 1
    last = config("faster_rcnn_R_50_DC5")
    assert len(last.classes) == 80 and not last.box_background


def test_the_rpn_of_a_detector_alone(golden):
    state = from_golden(golden("pretrained_fasterrcnn_mobilenet_v3_large_fpn"))
    config = model_config("fasterrcnn_mobilenet_v3_large_320_fpn")
    loaded = load(state, config=config)
    assert loaded.config is config
    assert set(loaded.params["params"]) == {"backbone", "rpn"}
    assert any(name.startswith("roi_heads") for name in loaded.report.left_over)


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
    ],
)
def test_to_torchvision_and_back_changes_no_bit(name, golden, tmp_path):
    state = from_golden(golden(f"pretrained_{name}"))
    config, params, _, counts = load(state)
    back = torchvision_state_dict(config, params, counts=counts)
    assert set(back) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)
        assert back[key].dtype == (np.int64 if value.dtype == int else np.float32)


def test_a_file_for_torchvision(golden, tmp_path):
    state = from_golden(golden("pretrained_fasterrcnn_mobilenet_v3_large_fpn"))
    config, params, _, counts = load(state)
    save_torchvision(tmp_path / "m.safetensors", config, params, counts=counts)
    again = load(tmp_path / "m.safetensors")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


def test_a_detector_without_a_box_of_the_background_gets_one_of_zeros():
    first = model_config("fasterrcnn_mobilenet_v3_large_fpn")
    config = FasterRCNNConfig(rpn=first, classes=("a", "b", "c"), box_features=4)
    init = partial(faster_rcnn(config).init, image_size=(64, 64))
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    arrays = torchvision_state_dict(config, params)
    weight = arrays["roi_heads.box_predictor.bbox_pred.weight"]
    assert weight.shape == (16, 4) and arrays[
        "roi_heads.box_predictor.bbox_pred.bias"
    ].tolist() == 4 * [0.0] + 12 * [1.0]
    assert not weight[:4].any() and weight[4:].all()
    found = recognise(arrays)
    assert found is not None and len(found.config.classes) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FasterRCNNConfig(rpn=RPNConfig(backbone="vgg16")), "not on vgg16"),
        (
            FasterRCNNConfig(rpn=model_config("faster_rcnn_R_50_FPN"), roi_levels=4),
            "stride_in_1x1 is True here and always False there",
        ),
        (
            FasterRCNNConfig(
                rpn=dataclasses.replace(
                    torchvision_resnet_fpn(50), convention=DETECTRON2
                ),
                roi_levels=4,
            ),
            "anchors.order is 'size_major' here and always 'ratio_major' there",
        ),
        (FasterRCNNConfig(rpn=torchvision_resnet_fpn(50)), "roi_levels is 1 here"),
    ],
)
def test_torchvision_has_no_such_detector(config, message):
    with pytest.raises(ValueError, match=message):
        torchvision_state_dict(config, {})


def test_unknown_names():
    with pytest.raises(ValueError, match="model must be one of .*rpn_R_50_FPN"):
        model_config("rpn_R_51_FPN")
    assert from_caffe2("pred_w") == "pred_w"
    with pytest.raises(ValueError, match="no module of a ResNet"):
        torchvision_resnet("fire2/squeeze1x1")
