"""Checkpoints give back what was saved, bit for bit, even if the saved arrays are donated right away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.train.checkpoints import Checkpoints


def tree(seed: int) -> dict:
    key = jax.random.key(seed)
    return {"a": {"0": jax.random.normal(key, (64, 64))}, "step": jnp.int32(seed), "key": key}


def data(state):
    return [
        np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(state)
    ]


def test_round_trip_and_keep(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest is None
        with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
            checkpoints.restore(jax.eval_shape(lambda: tree(0)))
        for step in (1, 2, 3):
            checkpoints.save(step, tree(step), {"position": 10 * step, "config": {"a": [1, None]}})
        checkpoints.save(3, tree(99), {"position": 0})  # is there already
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest == 3
        assert checkpoints.cursor()["position"] == 30
        found = checkpoints.restore(jax.eval_shape(lambda: tree(0)))
    assert (found.step, found.cursor) == (3, {"position": 30, "config": {"a": [1, None]}})
    jax.tree.map(np.testing.assert_array_equal, data(found.state), data(tree(3)))
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == ["2", "3"]


def test_donation_after_save(tmp_path):
    double = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    state = {"w": jnp.arange(1 << 20, dtype=jnp.float32)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(20):
            state = double(state)
        checkpoints.wait_until_finished()
        found = checkpoints.restore(jax.eval_shape(lambda: {"w": jnp.zeros(1 << 20)}))
    np.testing.assert_array_equal(found.state["w"], np.arange(1 << 20, dtype=np.float32))


def test_a_checkpoint_of_another_kind_of_device_is_restored(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, tree(3), {"position": 1})
    (file,) = (tmp_path / "c").rglob("_sharding")
    written = file.read_text()
    here = str(jax.devices()[0])
    assert here in written
    file.write_text(written.replace(here, "cuda:0"))
    with Checkpoints(tmp_path / "c") as checkpoints:
        found = checkpoints.restore(jax.eval_shape(lambda: tree(0)))
    assert found.cursor == {"position": 1}
    jax.tree.map(np.testing.assert_array_equal, data(found.state), data(tree(3)))
    assert found.state["step"].devices() == {jax.devices()[0]}
