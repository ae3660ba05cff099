"""Greedy decoding by the engine is that of transformers, for random small models of Llama and Qwen3."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.pretrained import load_pretrained
from apr_jax.tools.greedy import decode
from experiments import compare_transformers
from test_pretrained import PEERS, causal_logits, peer

NEW, MARGIN = 24, 1e-4
FAMILIES = {name: PEERS[name] for name in ("llama", "llama_llama3", "qwen3", "qwen3_tied_yarn")}


@pytest.mark.parametrize(("family", "extra"), FAMILIES.values(), ids=FAMILIES)
def test_greedy_tokens_are_those_of_generate(family, extra, tmp_path):
    theirs = peer(family, extra)
    import torch

    theirs.save_pretrained(tmp_path)
    model, rng = load_pretrained(tmp_path), np.random.default_rng(1)
    prompts = [rng.integers(3, 64, length).tolist() for length in (1, 5, 16, 33)]
    rows = decode(model, prompts, NEW)
    assert [row[: len(prompt)] for row, prompt in zip(rows, prompts, strict=True)] == prompts
    assert [len(row) - len(prompt) for row, prompt in zip(rows, prompts, strict=True)] == [NEW] * 4
    greedy = compare_transformers.compare_greedy(theirs, rows, NEW, MARGIN)
    assert greedy.tokens == 4 * NEW and greedy.other == greedy.near, greedy
    theirs.generation_config.eos_token_id = None
    for row, prompt in zip(rows, prompts, strict=True):
        with torch.no_grad():
            wanted = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False, max_new_tokens=NEW, pad_token_id=0,
            )[0].tolist()  # fmt: skip
        place = next((i for i, (a, b) in enumerate(zip(row, wanted, strict=True)) if a != b), None)
        if place is not None:
            logits = compare_transformers.peer_logits(theirs, [row])[0, place - 1]
            assert logits[wanted[place]] - logits[row[place]] <= MARGIN, f"token {place}"


def test_a_token_that_is_not_the_best_is_noticed():
    theirs = peer("Llama", {})
    row = [5, 7]
    for _ in range(NEW):
        row.append(int(compare_transformers.peer_logits(theirs, [row])[0, -1].argmax()))
    assert compare_transformers.compare_greedy(theirs, [row], NEW, MARGIN).other == 0
    row[-1] = (row[-1] + 1) % 64
    greedy = compare_transformers.compare_greedy(theirs, [row], NEW, MARGIN)
    assert (greedy.other, greedy.near) == (1, 0) and greedy.worst > MARGIN


def test_own_logits_are_those_of_the_tests(tmp_path):
    theirs = peer("Qwen3", {"head_dim": 16})
    theirs.save_pretrained(tmp_path)
    model, tokens = load_pretrained(tmp_path), jnp.asarray([[1, 2, 3, 4]])
    np.testing.assert_array_equal(compare_transformers.own_logits(model, tokens), causal_logits(model, tokens))


@pytest.mark.parametrize(("options", "message"), [(["--path", "nowhere.gguf"], "nowhere.gguf")])
def test_what_is_missing_is_named(options, message, capsys):
    pytest.importorskip("transformers", reason="transformers is not installed: see requirements-peers.txt")
    with pytest.raises(SystemExit) as stopped:
        compare_transformers.main(options)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_model_that_is_compared_is_not_replaced():
    with pytest.raises(
        ValueError, match="folder is some/../some/model, the model that is compared; it would be replaced"
    ):
        compare_transformers.Compare(Path("some/model"), folder=Path("some/../some/model"))
