import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from experiments.collectives import Collective, collectives
from rpn_jax.training.mesh import data_mesh, replicated

MESH = data_mesh(4)
SPLIT, WHOLE = NamedSharding(MESH, jax.P("data")), replicated(MESH)
X = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=SPLIT)
W = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=WHOLE)


def read(function, *args, **options):
    return collectives(jax.jit(function, **options).lower(*args).compile().as_text())


def over_data(function):
    spec = jax.P("data")
    return jax.shard_map(function, mesh=MESH, in_specs=spec, out_specs=spec)


def test_one_device_says_nothing():
    assert read(lambda x: x.sum(), jax.ShapeDtypeStruct((8,), jnp.float32)) == []


def test_a_gradient_is_reduced_once():
    grad = jax.grad(lambda w, x: ((x @ w) ** 2).sum())
    found = read(grad, W, X, out_shardings=WHOLE)
    assert found == [Collective("all-reduce", 1, 16 * 32 * 4)]


def test_two_sums_of_two_types():
    def sums(x):
        return jax.lax.psum((x, x.astype(jnp.bfloat16)), "data")

    mapped = jax.shard_map(sums, mesh=MESH, in_specs=jax.P("data"), out_specs=jax.P())
    (found,) = read(mapped, X)
    # On CPU bfloat16 is summed as float32.
    assert found.kind == "all-reduce"
    assert found.bytes in (2 * 16 * (4 + 4), 2 * 16 * (4 + 2))


def test_an_all_gather_counts_what_comes_out():
    found = read(lambda x: x * 2, X, out_shardings=WHOLE)
    assert found == [Collective("all-gather", 1, 8 * 16 * 4)]


def test_a_permutation_moves_a_shard():
    ring = [(i, (i + 1) % 4) for i in range(4)]
    found = read(over_data(lambda x: jax.lax.ppermute(x, "data", ring)), X)
    assert found == [Collective("collective-permute", 1, 2 * 16 * 4)]


def test_an_all_to_all_moves_a_shard():
    def swap(x):
        return jax.lax.all_to_all(x, "data", 1, 0, tiled=True)

    assert read(over_data(swap), X) == [Collective("all-to-all", 1, 2 * 16 * 4)]


def test_a_loop_counts_as_often_as_it_runs():
    def body(w, x):
        w += jax.lax.with_sharding_constraint(x.T @ (x @ w), WHOLE)
        return w

    def loop(w, x):
        return jax.lax.fori_loop(0, 5, lambda _, w: body(w, x), w)

    found = read(loop, W, X, out_shardings=WHOLE)
    assert found == [Collective("all-reduce", 5, 5 * 16 * 32 * 4)]


def test_a_loop_of_unknown_length_says_so():
    def loop(w, x):
        def body(w):
            return w + jax.lax.with_sharding_constraint(x.T @ (x @ w), WHOLE)

        return jax.lax.while_loop(lambda w: w.sum() < 1e9, body, w)

    found = read(loop, W, X, out_shardings=WHOLE)
    assert found == [Collective("all-reduce", 1, 16 * 32 * 4, looped=True)]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            "%s = f32[2,16]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%add",
            Collective("reduce-scatter", 1, 8 * 16 * 4),
        ),
        (
            "%s = (f32[8,16]{1,0}, f32[32,16]{1,0}) "
            "all-gather-start(%p), dimensions={0}",
            Collective("all-gather", 1, 32 * 16 * 4),
        ),
        (
            "%s = f32[8,16]{1,0} all-reduce-start(%p), to_apply=%add",
            Collective("all-reduce", 1, 8 * 16 * 4),
        ),
        (
            "%s = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) "
            "collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}",
            Collective("collective-permute", 1, 8 * 16 * 4),
        ),
    ],
)
def test_the_forms_of_other_devices(line, wanted):
    """Written down by hand after XLA's grammar: no CPU program has them."""
    text = (
        "HloModule m\n\n%add (a: f32[], b: f32[]) -> f32[] {\n"
        "  %a = f32[] parameter(0)\n  %b = f32[] parameter(1)\n"
        "  ROOT %c = f32[] add(%a, %b)\n}\n\n"
        "ENTRY %main (p: f32[8,16]) -> f32[8,16] {\n"
        f"  %p = f32[8,16]{{1,0}} parameter(0)\n  {line}\n"
        "  ROOT %d = f32[8,16]{1,0} all-reduce-done(%s)\n}\n"
    )
    assert collectives(text) == [wanted]
