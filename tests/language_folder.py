"""A folder for evaluations in language: a random model with a real tokenizer, questions, and a configuration file."""

import json
from collections.abc import Iterable
from pathlib import Path

import jax

import vocabularies
from apr_jax.model import io, transformer
from apr_jax.model.config import ModelConfig


def write(folder: Path, config: str, questions: Iterable[dict]) -> None:
    """Write `model`, `words`, `questions.jsonl` and `config.py`, a template in which {folder} is the folder."""
    words = vocabularies.byte_level()
    words.save(folder / "words")
    shape = ModelConfig(vocabulary=words.size, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16)
    io.save(folder / "model", transformer.init(shape, jax.random.key(0)), shape)
    write_questions(folder, questions)
    (folder / "config.py").write_text(config.format(folder=str(folder)))


def write_questions(folder: Path, questions: Iterable[dict]) -> None:
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
