import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models import SqueezeNet
from rpn_jax.pretrained import (
    from_torchvision_squeezenet,
    load_squeezenet_npz,
    save_params_npz,
)
from tests.pretrained.squeezenet_weights import state_dict


@pytest.fixture(scope="module")
def params():
    return from_torchvision_squeezenet(state_dict())


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_names_and_shapes_are_the_modules(params):
    variables = jax.eval_shape(
        SqueezeNet().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, variables["params"])


def test_npz_gives_the_parameters_back(params, tmp_path):
    path = tmp_path / "keras.npz"
    flat = {
        "/".join(key.key for key in keys): value
        for keys, value in jax.tree_util.tree_leaves_with_path(params)
    }
    np.savez(path, **flat)
    same(load_squeezenet_npz(path), params)


def test_imagenet_weights_load(shared_data):
    path = shared_data.parent / "weights" / "squeezenet_v1.1_notop.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    trunk = load_squeezenet_npz(path)
    assert sum(p.size for p in jax.tree.leaves(trunk)) == 722_496
    assert {p.dtype for p in jax.tree.leaves(trunk)} == {np.dtype("float32")}


def test_classifier_of_torchvision_is_left_out(params):
    whole = state_dict() | {
        "classifier.1.weight": np.zeros((1000, 512, 1, 1), np.float32),
        "classifier.1.bias": np.zeros(1000, np.float32),
    }
    same(from_torchvision_squeezenet(whole), params)


def test_all_faults_stand_in_one_error():
    wrong = state_dict()
    del wrong["features.3.squeeze.bias"]
    del wrong["features.12.expand3x3.weight"]
    wrong["features.0.weight"] = wrong["features.0.weight"][:, :1]
    wrong["fc.weight"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        from_torchvision_squeezenet(wrong)
    text = str(error.value)
    assert "missing: features.3.squeeze.bias" in text
    assert "missing: features.12.expand3x3.weight" in text
    assert "unknown: fc.weight" in text
    assert "features.0.weight is (64, 1, 3, 3), wanted (64, 3, 3, 3)" in text


def test_an_npz_of_something_else_is_named(tmp_path):
    path = tmp_path / "other.npz"
    save_params_npz(path, {"conv1": {"kernel": np.zeros((7, 7, 3, 64))}})
    with pytest.raises(ValueError, match="other.npz does not hold a SqueezeNet") as e:
        load_squeezenet_npz(path)
    assert "conv1/kernel is (7, 7, 3, 64), wanted (3, 3, 3, 64)" in str(e.value)
    assert "missing: fire9/expand3x3/bias" in str(e.value)


def test_a_truncated_file_is_named(tmp_path, params):
    path = tmp_path / "cut.npz"
    save_params_npz(path, params)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cut\.npz cannot be read .* truncated"):
        load_squeezenet_npz(path)
