import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.compilations import Compilations


def make_step():
    @jax.jit(donate_argnums=0)
    def train_step(state, batch):
        return state + 1, batch["images"].sum() + batch["boxes"].sum()

    return train_step


def batch(width, dtype=np.float32):
    return {"images": np.ones((2, width), np.float32), "boxes": np.ones(3, dtype)}


def run(*batches):
    noted = Compilations()
    step, state = noted.explain(make_step()), jnp.zeros(())
    for one in batches:
        state, _ = step(state, one)
    return noted


def test_each_shape_is_one_compilation_with_its_reason():
    noted = run(batch(4), batch(4), batch(6), batch(4), batch(6))
    assert [p.name for p in noted.programs].count("train_step") == 2
    first, *reasons = noted.report().splitlines()
    assert first.startswith("compiled    training step 2 x, ")
    assert [r.strip() for r in reasons] == [
        "training step again: batch.images: float32 2 x 4 -> float32 2 x 6"
    ]


def test_a_reason_is_against_the_most_similar_arguments():
    noted = run(batch(4), batch(6, np.float16), batch(6))
    assert noted.report().splitlines()[-1].strip() == (
        "training step again: batch.images: float32 2 x 4 -> float32 2 x 6"
    )


def test_another_type_is_named():
    noted = run(batch(4), batch(4, np.float16))
    assert "batch.boxes: float32 3 -> float16 3" in noted.report()


def test_what_was_compiled_before_does_not_count():
    step = make_step()
    step(jnp.zeros(()), batch(4))
    state, noted = jnp.zeros(()), Compilations()
    noted.explain(step)(state, batch(4))
    assert noted.programs == []
    assert noted.report() == "compiled    nothing"


@pytest.fixture
def quick_ones_are_kept():
    """Keep programs that compile quickly too, which the scripts do not."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, 0.0)
    yield
    jax.config.update(name, before)


@pytest.mark.usefixtures("quick_ones_are_kept")
def test_what_is_read_from_the_cache_says_so():
    def function():
        return jax.jit(lambda x: jnp.tanh(x) * 3.25)

    x = jnp.ones(7)
    function()(x)  # writes it, if it was not there
    noted = Compilations()
    function()(x)
    (program,) = noted.programs
    assert program.cached
    assert "(1 of them read from the cache)" in noted.report()
