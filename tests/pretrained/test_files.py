"""Weight files as arrays by name; no code that a file holds is run."""

import builtins
import copyreg
import os
import pickle
import random
import subprocess
import sys
import types
from collections import OrderedDict

import h5py
import ml_dtypes
import numpy as np
import pytest

from rpn_jax.pretrained.files import read_state_dict, write_safetensors

ARRAYS = {
    "conv.weight": np.arange(48, dtype=np.float32).reshape(4, 3, 2, 2) - 20,
    "bn.num_batches_tracked": np.array(7, np.int64),
    "half": np.array([0.5, -3.0], np.float16),
    "mask": np.array([[True, False]]),
}


def assert_are_arrays(found, wanted=ARRAYS):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert isinstance(found[name], np.ndarray)
        assert found[name].dtype == (
            np.float32 if array.dtype == np.float16 else array.dtype
        )
        assert found[name].flags.writeable and found[name].dtype.isnative
        np.testing.assert_array_equal(found[name], array)


def save_pickle(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def save_npz(path, arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    return path


def save_safetensors(path, arrays):
    write_safetensors(path, arrays)
    return path


def save_detectron2(path, arrays):
    return save_pickle(
        path, {"model": arrays, "__author__": "me", "matching_heuristics": True}
    )


SAVE = {"npz": save_npz, "safetensors": save_safetensors, "pkl": save_detectron2}


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("suffix", ["right", "pth", "pkl", ""])
def test_the_content_tells_what_a_file_is(tmp_path, kind, suffix):
    name = f"weights.{kind}" if suffix == "right" else f"weights.{suffix}"
    found = read_state_dict(SAVE[kind](tmp_path / name, ARRAYS))
    if kind == "safetensors":  # which orders arrays by itself
        found = {name: found[name] for name in ARRAYS}
    assert_are_arrays(found)


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays_come_back_from_every_protocol(tmp_path, protocol):
    arrays = ARRAYS | {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(4, dtype=">f4"),
        "none": np.zeros((0, 3), np.float32),
        "scalar": np.float64(2.5),
        "view": np.arange(10, dtype=np.int16)[::3],
    }
    path = save_pickle(tmp_path / "w.pkl", {"model": arrays}, protocol)
    found = read_state_dict(path)
    arrays["big"] = arrays["big"].astype(np.float32)
    assert_are_arrays(found, {k: np.asarray(v) for k, v in arrays.items()})


def test_a_pickle_of_python_2_is_read(tmp_path):
    data = np.array([1.5, -2.0], "<f4").tobytes()
    (tmp_path / "w.pkl").write_bytes(
        b"\x80\x02}q\x00(U\x05blobs}U\x01wcnumpy.core.multiarray\n_reconstruct\n"
        b"(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x02\x85cnumpy\ndtype\n"
        b"(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + data + b"tbsu."
    )
    wanted = {"w": np.array([1.5, -2.0], np.float32)}
    assert_are_arrays(read_state_dict(tmp_path / "w.pkl"), wanted)


@pytest.mark.parametrize("key", ["model", "state_dict", "blobs", None])
def test_the_weights_are_taken_out_of_a_checkpoint(tmp_path, key):
    ordered = OrderedDict(ARRAYS)
    ordered._metadata = {"": {"version": 1}}  # pyright: ignore  # as torch has it
    value = {key: ordered, "epoch": 3} if key else ordered
    assert_are_arrays(read_state_dict(save_pickle(tmp_path / "w.pkl", value)))


def test_bfloat16_becomes_float32_and_safetensors_hold_any_layout(tmp_path):
    arrays = {
        "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "t": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "n": np.array(3),
    }
    found = read_state_dict(save_safetensors(tmp_path / "w.safetensors", arrays))
    assert found["b"].dtype == np.float32 and found["b"].tolist() == [1.5, -2.0]
    np.testing.assert_array_equal(found["t"], arrays["t"])
    assert found["n"].shape == () and found["n"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def assert_refused(path, message, error=ValueError):
    """One sentence that names the file."""
    with pytest.raises(error) as caught:
        read_state_dict(path)
    text = str(caught.value)
    assert str(path) in text and message in text
    assert "\n" not in text and len(text) < 400


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["alone", "entry", "in an array", "as the shape"])
@pytest.mark.parametrize("kind", ["system", "eval", "popen", "runstring", "getattr"])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, kind, place, protocol):
    proof, path = tmp_path / "proof", tmp_path / "w.pkl"
    call = {
        "system": lambda: Call(os.system, f"touch {proof}"),
        "eval": lambda: Call(builtins.eval, f"open({str(proof)!r}, 'w')"),
        "popen": lambda: Call(subprocess.Popen, ["touch", str(proof)]),
        "runstring": lambda: Call(
            np.testing.runstring, f"open({str(proof)!r}, 'w').close()", {}
        ),
        "getattr": lambda: Call(builtins.getattr, np.ndarray, "tofile"),
    }[kind]()
    if place == "in an array":
        value = {"model": {"w": np.array([call, None], object)}}
    elif place == "as the shape":
        rebuild, _, state = np.ones(2).__reduce__()
        value = {"model": {"w": Call(rebuild, np.ndarray, call, b"b")}}
    else:
        value = {"model": {"w": call}} if place == "entry" else call
    save_pickle(path, value, protocol)
    assert_refused(path, "nothing of it was run")
    assert not proof.exists()


def test_what_a_pickle_calls_is_only_written_down(tmp_path):
    """No call of NumPy, with whatever arguments, is made while reading."""
    for value in [
        Call(np._core.multiarray._reconstruct, np.ndarray, (10**12,), b"b"),
        Call(np.dtype, {"names": ["a"], "formats": ["O"]}),
        Call(np._core.multiarray.scalar, np.dtype("O"), b"12345678"),
        Call(np.ndarray, (10**12,)),
    ]:
        path = save_pickle(tmp_path / "w.pkl", {"model": {"w": value}})
        assert_refused(path, "a pickle of NumPy arrays")

    class Wrong:
        def __reduce__(self):
            state = (1, (4,), np.dtype("f4"), False, b"short")
            return *np.ones(2).__reduce__()[:2], state

    assert_refused(save_pickle(tmp_path / "w.pkl", {"w": Wrong()}), "damaged")


def test_a_registered_extension_is_refused_even_if_python_has_seen_it(tmp_path):
    proof = tmp_path / "proof"
    copyreg.add_extension("posix", "system", 99)
    try:
        plain = pickle.dumps(os.system, protocol=2)
        assert b"\x82c" in plain and pickle.loads(plain) is os.system
        save_pickle(tmp_path / "w.pkl", Call(os.system, f"touch {proof}"), 2)
        assert_refused(tmp_path / "w.pkl", "nothing of it was run")
        assert not proof.exists()
    finally:
        copyreg.remove_extension("posix", "system", 99)


def test_a_pickle_cannot_ask_for_more_memory_than_it_has_bytes(tmp_path):
    path = tmp_path / "w.pkl"
    for body in (b"}r\xff\xff\xff\xff.", b"}p4294967295\n.", b"\x96" + b"\xff" * 5):
        path.write_bytes(b"\x80\x02" + body)
        assert_refused(path, "a pickle of NumPy arrays")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "no dict of arrays"),
        (np.ones(3), "no dict of arrays"),
        ({}, "it holds no arrays"),
        ({"epoch": 3}, "'epoch' is of type int"),
        ({"model": {"w": [1.0]}}, "'w' is of type list"),
        ({3: np.ones(1)}, "'3' is of type ndarray"),
        ({"w": np.array(["text"])}, "dtype '<U4', not of numbers"),
        ({"w": np.ones(2, np.complex64)}, "dtype '<c8', not of numbers"),
        ({"w": np.zeros(2, "f4,i4")}, "not of numbers"),
        ({"w": np.float32}, "it names 'numpy.float32'"),
        ({"w": random.Random}, "it names 'random.Random'"),
    ],
)
def test_a_pickle_of_anything_else_is_one_sentence(tmp_path, value, message):
    assert_refused(save_pickle(tmp_path / "w.pkl", value), message)


def test_npz_of_no_numbers_is_one_sentence(tmp_path):
    path = save_npz(tmp_path / "w.npz", {"a": np.array("text")})
    assert_refused(path, "'a' is of <U4, wanted are numbers")
    path = save_npz(tmp_path / "w.npz", {"a": np.array([{}], object)})
    assert_refused(path, "cannot be read as .npz weights")


@pytest.mark.parametrize("suffix", ["pth", "pkl", "npz", "safetensors", "jpg"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(50),
        b"<!DOCTYPE html>\n<html><body>404</body></html>",
        b"weights\n",
        b"PK\x03\x04",
        b"\x80",
        b"\x80\x04.",
        b"\x10\0\0\0\0\0\0\0{",
        b"x",
    ],
)
def test_another_kind_of_file_is_one_sentence(tmp_path, suffix, content):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    assert_refused(path, "w.")


def test_what_is_not_there_is_one_sentence(tmp_path):
    assert_refused(tmp_path / "no.pth", "there is no", FileNotFoundError)
    assert_refused(tmp_path, "is a folder")


@pytest.mark.parametrize("kind", SAVE)
def test_a_truncated_file_is_one_sentence(tmp_path, kind):
    path = SAVE[kind](tmp_path / "w", ARRAYS)
    whole = path.read_bytes()
    for kept in (0.1, 0.5, 0.9, 1 - 1.5 / len(whole)):
        path.write_bytes(whole[: int(kept * len(whole))])
        assert_refused(path, "truncated or damaged")


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_read_or_refused(tmp_path, kind, seed):
    path = SAVE[kind](tmp_path / "w", ARRAYS)
    whole, rng = path.read_bytes(), random.Random(seed)
    read = 0
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(1, 99)])])
        try:
            found = read_state_dict(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            read += 1
            assert all(isinstance(name, str) for name in found)
            assert all(array.dtype.kind in "biuf" for array in found.values())
    assert 0 < read < 100


KERNEL, BIAS = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4), np.ones(4, "f4")
LAYER = "fire2/squeeze1x1"


def save_keras(path, weights, *, layers=(LAYER, "relu"), inside=None):
    """Write the arrays of the first layer as Keras does; the others have none."""
    with h5py.File(path, "w") as file:
        group = file.create_group(inside) if inside else file
        group.attrs["layer_names"] = [name.encode() for name in layers]
        for layer in layers:
            names = list(weights) if layer == LAYER else []
            group.create_group(layer).attrs["weight_names"] = [
                n.encode() for n in names
            ]
            for name in names:
                group[layer][name] = weights[name]
    return path


@pytest.mark.parametrize("inside", [None, "model_weights"])
@pytest.mark.parametrize("names", [("_W:0", "_b:0"), ("/kernel:0", "/bias:0")])
def test_arrays_of_keras_1_and_2_get_the_same_names(tmp_path, names, inside):
    weights = dict(zip((LAYER + name for name in names), (KERNEL, BIAS), strict=True))
    found = read_state_dict(save_keras(tmp_path / "w.h5", weights, inside=inside))
    assert_are_arrays(found, {f"{LAYER}/kernel": KERNEL, f"{LAYER}/bias": BIAS})


def test_an_h5_of_another_kind_is_one_sentence(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a"] = KERNEL
    assert_refused(tmp_path / "w.h5", "does not name its layers")
    path = save_keras(tmp_path / "w.h5", {f"{LAYER}/kernel:0": KERNEL})
    whole = path.read_bytes()
    for kept in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(kept * len(whole))])
        assert_refused(path, "truncated or damaged")


@pytest.mark.parametrize("kind", ["external", "link", "virtual"])
def test_an_h5_cannot_point_to_another_file(tmp_path, kind):
    name = f"{LAYER}/kernel:0"
    other = save_keras(tmp_path / "other.h5", {name: KERNEL})
    path = save_keras(tmp_path / "w.h5", {name: KERNEL})
    with h5py.File(path, "r+") as file:
        group = file[LAYER]
        del group[name]
        if kind == "link":
            group[name] = h5py.ExternalLink(str(other), f"{LAYER}/{name}")
        elif kind == "external":
            data = [(str(other), 0, 48)]
            group.create_dataset(name, (12,), "f4", external=data)
        else:
            layout = h5py.VirtualLayout(KERNEL.shape, "f4")
            source = h5py.VirtualSource(other, f"{LAYER}/{name}", KERNEL.shape)
            layout[...] = source
            group.create_virtual_dataset(name, layout)
    assert_refused(path, "lies in another file")


@pytest.mark.parametrize(
    ("library", "content"),
    [
        ("h5py", b"\x89HDF\r\n\x1a\n"),
        ("torch", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
        ("safetensors", b"\x10\0\0\0\0\0\0\0{}"),
    ],
)
def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch, library, content):
    for module in (library, f"{library}.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "w").write_bytes(content)
    wanted = rf"w takes the library {library}: pip install 'rpn_jax\[{library}\]'"
    with pytest.raises(ImportError, match=wanted):
        read_state_dict(tmp_path / "w")


def test_a_torch_that_can_be_made_to_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "torch", types.SimpleNamespace(__version__="2.5.1")
    )
    (tmp_path / "w").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(ImportError, match="needs torch 2.6, and this is 2.5.1"):
        read_state_dict(tmp_path / "w")
