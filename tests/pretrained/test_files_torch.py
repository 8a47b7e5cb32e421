"""Torch's own files; `torch` is an extra that the tests do not install."""

import argparse
import os
import pickle
import random

import numpy as np
import pytest

from rpn_jax.pretrained.files import read_state_dict, write_safetensors

torch = pytest.importorskip("torch", reason="torch is an extra, and is not here")


def tensors():
    return {
        "conv.weight": torch.arange(48.0).reshape(4, 3, 2, 2) - 20,
        "bn.num_batches_tracked": torch.tensor(7),
        "half": torch.tensor([0.5, -3.0]).half(),
        "brain": torch.tensor([1.5, -2.0]).bfloat16(),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "mask": torch.tensor([True, False]),
    }


def assert_are(found, wanted):
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        half = tensor.dtype in (torch.half, torch.bfloat16)
        array = (tensor.float() if half else tensor).detach().numpy()
        assert isinstance(found[name], np.ndarray)
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
    def save(value):
        path = tmp_path / "w.bin"  # the suffix does not tell
        zipped = request.param == "zip"
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        return path

    return save


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_both_formats_are_read_and_the_weights_taken_out(save, key):
    value = {key: tensors(), "epoch": 3} if key else tensors()
    assert_are(read_state_dict(save(value)), tensors())


def test_the_state_dict_of_a_module_is_read(save):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    assert_are(read_state_dict(save(module.state_dict())), module.state_dict())


def test_the_way_back_is_read_by_torch(save, tmp_path):
    from safetensors.torch import load_file

    write_safetensors(tmp_path / "w.safetensors", read_state_dict(save(tensors())))
    back = load_file(tmp_path / "w.safetensors")
    for name, tensor in tensors().items():
        assert torch.equal(back[name].to(tensor.dtype), tensor)


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def refused(path):
    with pytest.raises(ValueError) as caught:
        read_state_dict(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize("place", ["alone", "entry"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(save, tmp_path, place):
    proof = tmp_path / "proof"
    for call in (
        Call(os.system, f"touch {proof}"),
        Call(eval, f"open({str(proof)!r}, 'w').close()"),
        Call(torch.utils.collect_env.run, f"touch {proof}"),
    ):
        path = save(call if place == "alone" else tensors() | {"w": call})
        text = refused(path)
        assert "nothing of it was run" in text and "it names '" in text
        assert not proof.exists()


def test_a_whole_model_and_what_is_no_state_dict_are_one_sentence(save):
    assert "it names 'torch.nn" in refused(save(torch.nn.Linear(2, 3)))
    settings = {"model": tensors(), "args": argparse.Namespace(lr=1)}
    assert "it names 'argparse.Namespace'" in refused(save(settings))
    assert "no dict of arrays" in refused(save([1, 2]))
    assert "no dict of arrays" in refused(save(torch.ones(2)))
    assert "'epoch' is of type int" in refused(save(tensors() | {"epoch": 3}))
    assert "is of complex64" in refused(save({"w": torch.ones(2).cfloat()}))
    sparse = torch.ones(2, 2).to_sparse()
    assert "cannot be read" in refused(save({"w": sparse}))


def test_tensors_in_a_plain_pickle_are_refused(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(tensors()))
    assert "it names 'torch._utils._rebuild_" in refused(path)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_torchscript_is_one_sentence(tmp_path):
    program = torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2))
    program.save(tmp_path / "w.pt")
    refused(tmp_path / "w.pt")


def test_a_truncated_file_is_one_sentence(save):
    path = save(tensors())
    whole = path.read_bytes()
    for kept in (0.1, 0.5, 0.9, 1 - 1.5 / len(whole)):
        path.write_bytes(whole[: int(kept * len(whole))])
        refused(path)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_read_or_refused(save, seed):
    path = save(tensors())
    whole, rng = path.read_bytes(), random.Random(seed)
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(1, 999)])])
        try:
            found = read_state_dict(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert all(array.dtype.kind in "biuf" for array in found.values())
