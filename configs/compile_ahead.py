"""Plans of training for `python -m experiments.compile_ahead --config configs/compile_ahead.py:NAME`."""

from apr_jax.model.config import PRESETS
from apr_jax.tools.ahead import CompileConfig, RowsConfig


def qwen3_8b_on_v5e_256() -> CompileConfig:
    """All parameters of Qwen3-8B, a row of 16,384 entries for each chip."""
    return CompileConfig("full", "v5e:16x16", data=256, rows=RowsConfig(256))


def qwen3_8b_on_h100_8() -> CompileConfig:
    """All parameters of Qwen3-8B, a row of 16,384 entries for each GPU."""
    return CompileConfig("full", "h100:8", data=8)


def qwen3_8b_lora_on_v5e_8() -> CompileConfig:
    """Adapters of Qwen3-8B, a row of 16,384 entries for each chip."""
    return CompileConfig("lora", "v5e:2x4", data=8)


def apr_228m_on_v3_128() -> CompileConfig:
    """All parameters of APR's model, rows of 4,096 entries, two for each core."""
    rows = RowsConfig(256, length=4096)
    return CompileConfig("full", "v3:8x8", model=PRESETS["apr_228m"], data=128, rows=rows)


def config() -> CompileConfig:
    """The smallest of them."""
    return qwen3_8b_lora_on_v5e_8()
