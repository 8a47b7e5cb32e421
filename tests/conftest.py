"""What every test shares: eight fake devices, a compilation cache, arrays, data."""

import os
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before the first computation: afterwards the number of devices is fixed.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))

# The same examples in each run, so that a failure never comes and goes.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Free what a module compiled: 2700 tests would hold gigabytes of it."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images with boxes, or a skip that says how to name one."""
    path = Path(os.environ.get("RPN_JAX_DATA") or ROOT / ".." / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"needs real images: set RPN_JAX_DATA ({path} does not exist)")
    return path.resolve()


@pytest.fixture(scope="session")
def golden():
    """Load the arrays of a peer: ``golden("nms_edge")["boxes"]``."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(ROOT / "tests" / "golden" / f"{name}.npz") as file:
            return dict(file)

    return load


@pytest.fixture
def getkey():
    """Give a fresh key at each call, the same ones in each run."""
    count = iter(range(1 << 30))
    return lambda: jax.random.fold_in(jax.random.key(0), next(count))


@pytest.fixture(scope="session")
def devices() -> list:
    """Give the eight fake devices, for meshes."""
    found = jax.devices()
    assert len(found) == 8, f"the tests want 8 CPU devices, found {found}"
    return found
