"""What is exported runs where JAX is and this library is not, and gives the same."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

from experiments import export as script
from experiments.config import UsageError
from rpn_jax.conventions import TORCHVISION
from rpn_jax.export import export_network
from rpn_jax.faster_rcnn import FasterRCNNConfig, make_network
from rpn_jax.rpn import RPNConfig

SIDE = 32
CONVENTION = dataclasses.replace(
    TORCHVISION,
    proposals=dataclasses.replace(
        TORCHVISION.proposals, test_pre_nms=30, test_post_nms=10
    ),
    # Of random weights all scores are low.
    roi=dataclasses.replace(TORCHVISION.roi, score_threshold=0.0, max_detections=12),
)
RPN = RPNConfig(
    backbone="small_resnet_fpn",
    strides=(8, 16),
    sizes=((16.0,), (32.0,)),
    head_channels=8,
    convention=CONVENTION,
)
# Of one level: what compiles is small.
ONE_LEVEL = dataclasses.replace(
    RPN, backbone="small_resnet", strides=(16,), sizes=((16.0, 32.0),)
)
DETECTOR = FasterRCNNConfig(
    rpn=ONE_LEVEL, classes=("cat", "dog"), box_features=8, roi_size=2
)
CONFIGS = {"propose": RPN, "detect": DETECTOR}
LAST = {"propose": "levels", "detect": "labels"}

# Run by a fresh process: inputs and results in files, JAX and NumPy alone.
LOADER = """
import sys
import jax, jax.export, numpy as np
for name in sys.argv[1:]:
    with open(name + ".bin", "rb") as file:
        call = jax.jit(jax.export.deserialize(file.read()).call)
    for b in (1, 2, 3):
        with np.load(f"inputs{b}.npz") as inputs:
            found = call(inputs["images"], inputs["sizes"], inputs["scales"])
        np.savez(f"{name}{b}.npz", **found)
strange = {"rpn_jax", "flax", "optax", "jaxtyping"} & set(sys.modules)
assert not strange, strange
"""


def images_of(count: int):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    sizes = rng.integers(SIDE // 2, SIDE + 1, (count, 2), dtype=np.int32)
    return images, sizes, rng.uniform(0.5, 2, count).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return {
        name: make_network(config).init(jax.random.key(0), image_size=(SIDE, SIDE))
        for name, config in CONFIGS.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params):
    """Artefacts for three platforms, and what a fresh process makes of them."""
    folder = tmp_path_factory.mktemp("exported")
    for name, config in CONFIGS.items():
        data = export_network(config, params[name], image_size=(SIDE, SIDE))
        (folder / f"{name}.bin").write_bytes(data)
    for b in (1, 2, 3):
        images, sizes, scales = images_of(b)
        np.savez(folder / f"inputs{b}.npz", images=images, sizes=sizes, scales=scales)
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run(
        [sys.executable, "-c", LOADER, *CONFIGS],
        cwd=folder,  # where this library's source is not found
        env={**os.environ, **cache},
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_process_that_imports_jax_alone_gets_the_same_bits(name, folder, params):
    call = jax.jit(getattr(make_network(CONFIGS[name]), name))
    for b in (1, 2, 3):
        images, sizes, scales = images_of(b)
        direct = call(params[name], images, sizes, image_scales=scales)._asdict()
        with np.load(folder / f"{name}{b}.npz") as found:
            assert set(found) == {"boxes", "scores", "valid", LAST[name]}
            assert found["valid"].any(axis=1).all()
            for field, values in direct.items():
                np.testing.assert_array_equal(found[field], values, err_msg=field)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_one_artefact_is_for_three_platforms_and_any_batch(name, folder):
    exported = export.deserialize((folder / f"{name}.bin").read_bytes())
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.in_avals[0].str_short() == f"uint8[b,{SIDE},{SIDE},3]"
    # The weights are within: no argument but images, their sizes and scales.
    assert len(exported.in_avals) == 3


def test_another_image_size_is_refused(folder):
    exported = export.deserialize((folder / "propose.bin").read_bytes())
    images, sizes, scales = images_of(1)
    with pytest.raises(ValueError, match="Shape mismatch"):
        exported.call(images[:, :16], sizes, scales)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"platforms": ("gpu",)}, "platforms must be some of cpu, cuda"),
        ({"platforms": ()}, "platforms must be some of cpu, cuda"),
        ({"image_size": (0, 32)}, "image_size must be positive"),
    ],
)
def test_wrong_options_are_named(params, options, message):
    with pytest.raises(ValueError, match=message):
        export_network(
            RPN, params["propose"], **{"image_size": (SIDE, SIDE), **options}
        )


def test_without_flatbuffers_it_says_what_to_install(params, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'rpn_jax\[export\]'"):
        export_network(RPN, params["propose"], image_size=(SIDE, SIDE))


def test_the_script_says_how_to_load_what_it_wrote(tmp_path, capsys):
    file = tmp_path / "new" / "demo.bin"
    script.main(
        ["demo", "--out", str(file), "--size", "64", "96", "--platforms", "cpu"]
    )
    said = capsys.readouterr().out
    exported = export.deserialize(file.read_bytes())
    assert exported.platforms == ("cpu",)
    assert exported.in_avals[0].str_short() == "uint8[b,64,96,3]"
    head, loader = said.split("\n", 1)
    assert str(file) in head and "MB" in head
    scope = {}
    exec(loader, scope)
    assert scope["found"]["boxes"].shape == (1, 1000, 4)


def test_the_script_wants_a_model(tmp_path):
    with pytest.raises(UsageError, match="a model is wanted"):
        script.main(["--out", str(tmp_path / "x")])
    with pytest.raises(UsageError, match="cannot take nowhere for a model"):
        script.main(["nowhere", "--out", str(tmp_path / "x")])
