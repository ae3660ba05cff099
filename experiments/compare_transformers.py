"""Compare a pretrained model here with `transformers`: token ids, logits, greedy decoding by the engine; all in float32.

pip install -r requirements-peers.txt
python -m experiments.compare_transformers --path work/smollm2.gguf

The model is also saved as a folder, which `transformers` must read as the same model with the same tokenizer. The engine's
greedy tokens must be the best ones under the logits that `transformers` computes after the same tokens, but where the two
best lie within a margin. Exit codes: 0 the same, 1 something differs, 2 something is missing.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax import settings
from apr_jax.model import transformer
from apr_jax.model.attention import packed_attend
from apr_jax.model.transformer import Model
from apr_jax.pretrained import load_pretrained, save_pretrained
from apr_jax.pretrained.tokenizer import load
from apr_jax.tokenizer import TextCodec, chat
from apr_jax.tools import greedy

QUESTIONS = (
    "What is the capital of France?", "Write a poem about the sea.", "What is 17 times 23?", "Name three colours.",
    "Explain why the sky is blue.", "How do I boil an egg?", "Who wrote Hamlet?", "Translate 'good morning' to Spanish.",
    "A train travels 60 km in 45 minutes. How fast is it?", "List the planets.", "What is photosynthesis?",
    "Write a Python function that reverses a string.", "Give me a recipe for pancakes.", "What is 5 + 7 * 2?",
    "Tell me a joke.", "What is the largest ocean?", "Who was Ada Lovelace?", "How many legs does a spider have?",
    "Summarise the story of Cinderella.", "Why do cats purr?",
)  # fmt: skip
TOLERANCE = 2e-4  # of logits: two orders of summation in float32


@dataclasses.dataclass(frozen=True)
class Compare:
    """Settings of the comparison.

    Attributes:
        path: a Hugging Face folder or a GGUF file.
        questions: how many of the twenty are asked.
        new: greedy tokens of each.
        margin: how far below the best logit a token of the engine's may lie.
        folder: where the model is saved for `transformers`.
    """

    path: Path = Path("work/smollm2.gguf")
    questions: int = len(QUESTIONS)
    new: int = 64
    margin: float = 1e-4
    folder: Path = Path("work/compared")

    def __post_init__(self):
        if self.folder.resolve() == self.path.resolve():
            raise ValueError(
                f"folder is {self.folder}, the model that is compared; it would be replaced, give another one"
            )


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Greedy tokens in all, those below the best one, those of them within the margin, and the differences."""

    tokens: int
    other: int
    near: int
    worst: float


def compare_greedy(theirs: Any, rows: Sequence[Sequence[int]], new: int, margin: float) -> Greedy:
    """The engine's rows under the logits of `transformers` after the same tokens."""
    other = near = 0
    worst = 0.0
    for row in rows:
        logits = peer_logits(theirs, [row])[0][-new - 1 : -1]
        gaps = logits.max(axis=-1) - np.take_along_axis(logits, np.array(row[-new:])[:, None], axis=-1)[:, 0]
        other += int((gaps > 0).sum())
        near += int(((gaps > 0) & (gaps <= margin)).sum())
        worst = max(worst, float(gaps.max()))
    return Greedy(new * len(rows), other, near, worst)


def peer_logits(theirs: Any, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Logits [B, S, V] of rows of one length."""
    import torch

    with torch.no_grad():
        return theirs(torch.tensor(np.array(rows))).logits.numpy()


@jax.jit
def own_logits(model: Model, tokens: jax.Array) -> jax.Array:
    """Logits [B, S, V] of plain rows."""
    rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    attend = packed_attend(jnp.zeros_like(tokens), positions, jnp.ones((rows, 1, 1), bool))
    x, _ = transformer.hidden(model.graph, model.params, tokens, positions, attend, (None,) * model.config.layers)
    return transformer.logits(model.graph, model.params, x)


def prompts_of(codec: TextCodec, count: int) -> list[list[int]]:
    return [chat.prompt(codec, [chat.Message("user", question)]) for question in QUESTIONS[:count]]


def run(config: Compare) -> bool:
    """Compare and print; returns whether all is the same.

    Raises:
        ImportError, FileNotFoundError, ValueError: torch or transformers are not installed; the model cannot be read.
    """
    import torch
    import transformers

    model, codec = load_pretrained(config.path, dtype="float32"), load(config.path)
    save_pretrained(config.folder, model, config.path)
    path = config.path.absolute()
    source = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name) if path.is_file() else {}
    source = source or dict(pretrained_model_name_or_path=path)
    original = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    saved = transformers.AutoModelForCausalLM.from_pretrained(config.folder, dtype=torch.float32).eval()
    prompts, same_ids = prompts_of(codec, config.questions), True
    for name, place in {"as given": source, "as saved": dict(pretrained_model_name_or_path=config.folder)}.items():
        theirs = transformers.AutoTokenizer.from_pretrained(**place)
        turns = [[{"role": "user", "content": question}] for question in QUESTIONS[: config.questions]]
        ids = [theirs.apply_chat_template(t, add_generation_prompt=True, return_dict=True)["input_ids"] for t in turns]
        same = sum(list(a) == list(b) for a, b in zip(ids, prompts, strict=True))
        print(
            f"tokenizer {name}: {same} of {len(prompts)} prompts have the same ids, chat template included", flush=True
        )
        same_ids &= same == len(prompts)
    rows = greedy.decode(model, prompts, config.new)
    print(f"the engine, greedy: {codec.decode(rows[0])!r}", flush=True)
    largest = 0.0
    for name, theirs in (("as given", original), ("as saved", saved)):
        differences = [
            np.abs(np.asarray(own_logits(model, jnp.asarray([row]))) - peer_logits(theirs, [row])).max()
            for row in rows[:4]
        ]
        largest = max(largest, *map(float, differences))
        print(
            f"logits, model {name}: at most {max(differences):.2e} apart ({sum(map(len, rows[:4]))} tokens)", flush=True
        )
    found = compare_greedy(original, rows, config.new, config.margin)
    print(
        f"greedy, {len(rows)} prompts x {config.new} tokens: {found.tokens - found.other} are the best of transformers, "
        f"{found.near} lie within {config.margin:g} of the best, {found.other - found.near} further below "
        f"(at most {found.worst:.2e})"
    )
    return same_ids and largest <= TOLERANCE and found.other == found.near


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, Compare())
    try:
        return 0 if run(config) else 1
    except ImportError as error:
        settings.fail(f"{error}; pip install -r requirements-peers.txt")
    except (FileNotFoundError, ValueError) as error:
        settings.fail(str(error))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
