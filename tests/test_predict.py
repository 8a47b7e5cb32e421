import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rpn_jax import box_iou
from rpn_jax.conventions import TORCHVISION, get_convention
from rpn_jax.data import DataError, Resize, ShapesSource
from rpn_jax.predict import DEMO, Model, Predictor, load_model
from rpn_jax.pretrained import save_params_npz
from rpn_jax.proposals import Proposals
from rpn_jax.rpn import RPNConfig, normalize_images, rpn
from rpn_jax.training.config import config_to_json

CONFIG = RPNConfig(
    backbone="small_resnet",
    sizes=((16.0, 32.0),),
    head_channels=8,
    convention=dataclasses.replace(
        TORCHVISION,
        proposals=dataclasses.replace(
            TORCHVISION.proposals, test_pre_nms=40, test_post_nms=10
        ),
    ),
)
RESIZE = Resize(max_size=64)


@pytest.fixture(scope="module")
def model():
    params = rpn(CONFIG).init(jax.random.key(0), image_size=(64, 64))
    return Model(CONFIG, params, RESIZE)


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model, pad_to=64)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


def test_boxes_lie_in_the_image_best_first(predictor, pixels):
    boxes, scores = predictor(pixels)
    assert boxes.shape == (len(scores), 4) and 0 < len(boxes) <= 10
    assert boxes.dtype == scores.dtype == np.float32
    assert (np.diff(scores) <= 0).all()
    assert boxes.min() >= 0 and (boxes.max(axis=0) <= [120, 90, 120, 90]).all()
    # In pixels of the image as given, not of the 64 that the network saw.
    assert boxes.max() > 64


def test_path_picture_and_array_give_the_same(predictor, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    wanted = predictor(pixels)
    path = tmp_path / "a.png"
    for image in (path, str(path), Image.fromarray(pixels), jnp.asarray(pixels)):
        for x, y in zip(predictor(image), wanted, strict=True):
            np.testing.assert_array_equal(x, y)


def test_grey_and_transparent_images_are_taken(predictor, pixels):
    grey = pixels[..., 0]
    assert len(predictor(grey).boxes)
    np.testing.assert_array_equal(
        predictor(np.dstack([pixels, grey])).boxes, predictor(pixels).boxes
    )


def test_images_get_the_size_that_evaluation_gives_them(model, pixels):
    several = Resize(min_size=(96, 48), max_size=64)
    one = Resize(min_size=48, max_size=64)
    for x, y in zip(
        *(
            Predictor(model._replace(resize=r), pad_to=64)(pixels)
            for r in (several, one)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


def network_input(predictor, image, boxes=()):
    """What the network is given, and what becomes of the boxes that it finds."""
    given = {}
    found = np.reshape(np.array(boxes, np.float32), (1, -1, 4))
    count = found.shape[:2]

    def propose(params, images, sizes, *, image_scales):
        given.update(images=images, sizes=sizes, scales=image_scales)
        return Proposals(found, np.ones(count), np.zeros(count), np.ones(count, bool))

    predictor._find = propose
    return given, predictor(image).boxes


@pytest.mark.parametrize("image", ["upright", "wide"])
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize(
    ("peer", "tolerance"),  # Pillow, which rounds, may round otherwise in time
    [("torchvision", 1e-5), ("detectron2", 1.0), ("py_faster_rcnn", 1e-3)],
)
def test_the_network_gets_from_a_file_what_the_peers_gets(
    golden, tmp_path, peer, tolerance, way, image
):
    arrays, convention = golden("preprocessing"), get_convention(peer)
    shorter, longer = arrays[f"sizes_{way}"].tolist()
    sizes = dataclasses.replace(convention.image, min_size=shorter, max_size=longer)
    convention = dataclasses.replace(convention, image=sizes)
    predictor = Predictor(Model.of(RPNConfig(convention=convention), {}))
    Image.fromarray(arrays[image]).save(tmp_path / "a.png")
    given, _ = network_input(predictor, tmp_path / "a.png")
    wanted = arrays[f"{peer}_{way}_{image}"]
    np.testing.assert_array_equal(
        given["sizes"], [arrays[f"{peer}_{way}_{image}_size"]]
    )
    found = normalize_images(given["images"], given["sizes"], convention.image)
    assert found.shape == (1, *wanted.shape)
    np.testing.assert_allclose(found[0], wanted, atol=tolerance)


@pytest.mark.parametrize("peer", ["torchvision", "detectron2", "py_faster_rcnn"])
@pytest.mark.parametrize("size", [(375, 500), (501, 333), (97, 41), (640, 640)])
def test_a_box_around_all_is_the_image_and_none_leaves_it(peer, size):
    predictor = Predictor(Model.of(RPNConfig(convention=get_convention(peer)), {}))
    image = np.zeros((*size, 3), np.uint8)
    (height, width) = network_input(predictor, image)[0]["sizes"][0]
    boxes = [[0, 0, width, height], [-3, -3, 2 * width, 2 * height]]
    _, found = network_input(predictor, image, boxes)
    np.testing.assert_allclose(found[0], [0, 0, size[1], size[0]], rtol=1e-3)
    assert found[1].tolist() == [0, 0, size[1], size[0]]
    if peer != "py_faster_rcnn":  # it divides by its one scale, not by the two sizes
        np.testing.assert_allclose(found[0], [0, 0, size[1], size[0]], rtol=1e-6)


def test_models_of_a_peer_are_padded_as_there_and_ours_to_few_sizes(model, pixels):
    def padded(model, **options):
        return network_input(Predictor(model, **options), pixels)[0]["images"].shape

    assert padded(model) == (1, 128, 128, 3)
    assert padded(model._replace(pad_to=32)) == (1, 64, 64, 3)
    assert padded(model, pad_to=16) == (1, 48, 64, 3)
    assert Model.of(CONFIG, {}).pad_to == 32
    assert padded(Model.of(CONFIG, {})) == (1, 800, 1088, 3)


def test_one_compilation_a_bucket(model):
    predictor = Predictor(model, pad_to=32)
    for size in [(64, 64), (60, 64), (40, 64), (128, 100), (64, 30), (64, 20)]:
        predictor(np.zeros((*size, 3), np.uint8))
    # 64 x 64 and 64 x 32 (height x width): all that these are resized to.
    assert predictor._find._cache_size() == 2


def test_a_weight_file_holds_all_that_is_needed(model, predictor, pixels, tmp_path):
    metadata = {"model": config_to_json(CONFIG), "data": {"resize": {"max_size": 64}}}
    save_params_npz(tmp_path / "w.npz", model.params, metadata)
    loaded = load_model(tmp_path / "w.npz")
    assert (loaded.config, loaded.resize) == (CONFIG, RESIZE)
    for x, y in zip(
        Predictor(tmp_path / "w.npz", pad_to=64)(pixels), predictor(pixels), strict=True
    ):
        np.testing.assert_array_equal(x, y)


def test_a_weight_file_without_a_run_is_resized_as_its_convention_wants(
    model, tmp_path
):
    metadata = {"model": config_to_json(CONFIG)}
    save_params_npz(tmp_path / "w.npz", model.params, metadata)
    loaded = load_model(tmp_path / "w.npz")
    assert loaded.resize == Resize.of(CONFIG.convention.image)
    assert loaded.pad_to == CONFIG.convention.image.pad_to
    for data in ({}, {"resize": None}, {"resize": {"width": 3}}, []):
        save_params_npz(tmp_path / "w.npz", model.params, metadata | {"data": data})
        with pytest.raises(ValueError, match="w.npz does not say how images are resiz"):
            load_model(tmp_path / "w.npz")


def test_a_weight_file_that_does_not_say_its_network_is_refused(model, tmp_path):
    save_params_npz(tmp_path / "w.npz", model.params)
    with pytest.raises(ValueError, match="not the config of their network"):
        load_model(tmp_path / "w.npz")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model": {}, "data": {"resize": {}}, "optimizer": {"ema": 0}}'
    )
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        load_model(tmp_path)
    for text in ("{}", "[]", "{", '{"model": {"no_field": 1}, "data": {}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json is no configuration of a ru"):
            load_model(tmp_path)


def test_an_image_that_cannot_be_read_is_named(predictor, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(DataError, match="bad.png: the image cannot be read"):
        predictor(tmp_path / "bad.png")


def test_the_packaged_weights_are_small_and_find_what_they_were_trained_on():
    assert DEMO.stat().st_size < 1.5e6
    predict, found, objects = Predictor(), 0, 0
    for record in (ShapesSource(8, seed=1)[i] for i in range(8)):
        boxes = predict(record.image).boxes[:300]
        overlap = np.asarray(box_iou(record.boxes, boxes))
        found += int((overlap.max(axis=1) >= 0.5).sum())
        objects += len(record.boxes)
    assert found / objects > 0.85
