"""Tests run in 64-bit on four virtual CPU devices, and the shapes that signatures promise are checked."""

import gc

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)

# The modules that handle arrays alone, outside of vmap: elsewhere an annotation stands for one problem, or for NumPy as well.
CHECKED = ["decode.sampling", "model.transformer"]
jaxtyping.install_import_hook([f"apr_jax.{name}" for name in CHECKED], "beartype.beartype")

# How long an example takes says more of the machine than of the code: the first one compiles.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="module")
def let_programs_go():
    """A compiled program takes hundreds of memory mappings, of which Linux grants a process 65,530: beyond that it crashes."""
    yield
    jax.clear_caches()
    gc.collect()
