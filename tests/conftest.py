"""Tests run in 64-bit on four virtual CPU devices, and the shapes that signatures promise are checked."""

import gc
import importlib.metadata
import os

# Nearly all of the tests' time is compiling: programs that run for a moment need not be fast. Programs that tests start follow.
FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # others know no such flag, and end the process
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

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
