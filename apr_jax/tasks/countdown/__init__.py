"""Countdown: reach a target from given numbers, each used once (Gandhi et al. 2024; APR, arXiv 2504.15466, section 4)."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "shipped"
"""Folder of the tokenizer and the two checkpoints that come with the package; `configs/sft_*.py` tell how they were made."""
