"""Tests run in 64-bit on four virtual CPU devices, and check the shapes that signatures promise."""

import jax
import jaxtyping

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "allow")

del jaxtyping
