"""Tests run in 64-bit on four virtual CPU devices, and the shapes that signatures promise are checked."""

import hypothesis
import jax
import jaxtyping

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
