"""The paths of the CPU kernels that the processor which runs the tests can take."""

from apr_jax.evaluate import machine

# What the CPU kernels name a path, by the flag of the processor that it needs; the richest first.
_NEEDS = {"AMX": "amx_bf16", "AVX512-BF16": "avx512_bf16", "AVX-512": "avx512f", "AVX2": "avx2"}
name = machine.processor


def paths() -> list[str]:
    """The richest first."""
    flags = machine.flags()
    return [path for path, flag in _NEEDS.items() if flag in flags] or ["other"]
