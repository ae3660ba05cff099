"""Reading compiled programs: collectives of a program whose collectives are known, and text in the forms compilers write."""

import jax
import jax.numpy as jnp
import pytest

from apr_jax import sharding
from apr_jax.tools import hlo

needs_four = pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices (jax_num_cpu_devices)")


@needs_four
def test_collectives_of_a_program_that_sums_over_each_axis():
    mesh = sharding.make_mesh(2, 2)

    def run(x):
        with jax.named_scope("inner"):
            within = jax.lax.psum(x, "model")
        return jax.lax.while_loop(lambda v: v[0, 0] < 9, lambda v: v + jax.lax.psum(v, "data"), within)

    mapped = jax.shard_map(run, mesh=mesh, in_specs=jax.P("data", "model"), out_specs=jax.P("data"), check_vma=False)
    text = jax.jit(mapped).lower(jnp.ones((4, 6), jnp.float32)).compile().as_text()
    found = hlo.collectives(text)
    assert {c.kind for c in found} == {"all-reduce"} and {c.shape for c in found} == {"f32[2,3]"}
    over_model, over_data = sorted(found, key=lambda c: hlo.crosses(c, 2))
    assert set(over_model.groups) == {(0, 1), (2, 3)} and "/inner/" in over_model.path
    assert set(over_data.groups) == {(0, 2), (1, 3)} and "while" in over_data.path
    assert [hlo.crosses(c, 2) for c in (over_model, over_data)] == [False, True]
    inside = hlo.inside_loops(text)
    assert [name for name, _ in hlo.operations(inside, "f32[2,3]") if name == "all-reduce"] == ["all-reduce"]


@pytest.mark.parametrize(
    ("line", "kind", "shape", "groups"),
    [
        (
            "%a = bf16[512,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0)",
            "all-gather", "bf16[512,128]", ((0, 4), (1, 5), (2, 6), (3, 7)),
        ),
        (
            "ROOT %b.1 = (f32[8]{0}, f32[16,4]{1,0}) all-reduce-start(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%s",
            "all-reduce", "f32[16,4]", ((0, 1), (2, 3)),
        ),
        (
            "%e = f32[4]{0:T(128)S(1)} all-reduce(%s), replica_groups=mesh['data'=2,'model'=2] {'model'}, to_apply=%r",
            "all-reduce", "f32[4]", ((0, 1), (2, 3)),
        ),
        (
            "%e = f32[4]{0:T(128)S(1)} all-reduce(%s), replica_groups=mesh['data'=2,'model'=2] {'data'}, to_apply=%r",
            "all-reduce", "f32[4]", ((0, 2), (1, 3)),
        ),
        (
            "%f = f32[4]{0} all-reduce(%s), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, to_apply=%r",
            "all-reduce", "f32[4]", ((0, 4), (1, 5), (2, 6), (3, 7)),
        ),
        ("c = u32[] all-to-all(p), replica_groups=[2,4]<=[8]", "all-to-all", "u32[]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        (
            "d = s32[4]{0} collective-permute(p), source_target_pairs={{0,1},{1,0}}",
            "collective-permute", "s32[4]", ((0, 1), (1, 0)),
        ),
    ],
)  # fmt: skip
def test_forms_of_groups(line, kind, shape, groups):
    [found] = hlo.collectives(f"  {line}\n  %done = f32[8]{{0}} all-reduce-done(%b.1)\n  %e = f32[2]{{0}} add(%a, %b)")
    assert (found.kind, found.shape, found.groups, found.path) == (kind, shape, groups, "")


def test_an_unknown_form_is_an_error_and_not_a_silence():
    with pytest.raises(ValueError, match="unknown form"):
        hlo.collectives("  a = f32[8]{0} all-reduce(p), replica_groups=@mesh")
