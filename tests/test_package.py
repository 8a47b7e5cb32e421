"""The package as others get it: what importing costs, what the wheel holds."""

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import rpn_jax

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("flax", "optax", "orbax", "grain", "tensorflow_datasets", "PIL", "matplotlib")


def python(code: str, *, executable: str = sys.executable, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [executable, "-c", code], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", rpn_jax.__version__)


def test_import_brings_jax_and_numpy_only():
    loaded = python(
        "import sys, rpn_jax\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded == ""


@pytest.mark.slow
def test_import_takes_under_a_second_beyond_jax():
    code = (
        "import jax, jax.numpy, jaxtyping, numpy, time\n"
        "start = time.perf_counter()\n"
        "import rpn_jax\n"
        "print(time.perf_counter() - start)"
    )
    assert min(float(python(code)) for _ in range(3)) < 1.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build from a copy, so that nothing is left in the tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rpn_jax", "experiments"):
        shutil.copytree(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source)],
        check=True,
        capture_output=True,
    )
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_rpn_jax_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"rpn_jax", f"rpn_jax-{rpn_jax.__version__}.dist-info"}
    assert "rpn_jax/py.typed" in names
    packed = {name for name in names if name.startswith("rpn_jax/")}
    tracked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rpn_jax").rglob("*")
        if path.suffix in (".py", ".npz")
    }
    assert tracked <= packed


@pytest.mark.slow
def test_wheel_works_in_a_clean_environment(wheel, tmp_path):
    def run(*command):
        subprocess.run(command, check=True, capture_output=True)

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    clean = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", clean, "install")
    run(*pip, "--no-deps", "--no-index", wheel)
    # The dependencies are read from this environment: a .pth file adds its folder
    # behind the clean one's own, and does not follow the .pth files found in there.
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(python(purelib, executable=str(clean)))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    place, ious = python(
        "import numpy as np, rpn_jax\n"
        "print(rpn_jax.__file__)\n"
        "boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1]], np.float32)\n"
        "print(rpn_jax.box_iou(boxes, boxes).tolist())",
        executable=str(clean),
        cwd=tmp_path,
    ).split("\n")
    assert Path(place).is_relative_to(site)
    assert ious == "[[1.0, 0.5], [0.5, 1.0]]"
