import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.pretrained import load_params_npz, save_params_npz

PARAMS = {
    "backbone": {"conv1": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}},
    "file": np.array(3, np.int32),
    "rpn": {"scale": np.array([1.5], np.float16), "on": np.array([True, False])},
}


def test_tree_and_metadata_come_back(tmp_path):
    metadata = {"config": {"sizes": [[32.0]], "name": "é"}, "ar": 0.25, "none": None}
    save_params_npz(tmp_path / "model.npz", PARAMS, metadata)
    params, read = load_params_npz(tmp_path / "model.npz")
    assert read == metadata
    assert set(params) == set(PARAMS) and set(params["rpn"]) == {"scale", "on"}
    for a, b in (
        (params["file"], PARAMS["file"]),
        (params["rpn"]["scale"], PARAMS["rpn"]["scale"]),
        (params["rpn"]["on"], PARAMS["rpn"]["on"]),
        (params["backbone"]["conv1"]["kernel"], PARAMS["backbone"]["conv1"]["kernel"]),
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_jax_arrays_are_saved_and_no_pickle_is_needed(tmp_path):
    path = tmp_path / "weights"  # the name is taken as it is
    save_params_npz(path, {"w": jnp.ones(3)})
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["w"], np.ones(3))
    assert load_params_npz(path)[1] == {}
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": {"b/c": np.ones(1)}}, "got 'b/c' in a"),
        ({"": np.ones(1)}, "non-empty strings"),
        ({"a": {"b": "text"}}, "a/b must be an array of bool, int or float"),
        ({"a": jnp.ones(2, jnp.bfloat16)}, "a must be an array .* got bfloat16"),
    ],
)
def test_what_npz_cannot_hold_is_named_and_nothing_written(tmp_path, params, message):
    with pytest.raises(ValueError, match=message):
        save_params_npz(tmp_path / "x.npz", params)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a zip archive at all", b"PK\x03\x04"])
def test_another_kind_of_file_is_named(tmp_path, content):
    path = tmp_path / "wrong.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.npz cannot be read as .npz weights"):
        load_params_npz(path)


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.99])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = tmp_path / "cut.npz"
    save_params_npz(path, PARAMS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.npz cannot be read"):
        load_params_npz(path)


def test_a_damaged_array_is_named(tmp_path):
    path = tmp_path / "damaged.npz"
    save_params_npz(path, PARAMS)
    content = bytearray(path.read_bytes())
    content[150] ^= 0xFF  # inside the first array: its checksum is wrong
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.npz cannot be read"):
        load_params_npz(path)


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        load_params_npz(tmp_path / "absent.npz")
