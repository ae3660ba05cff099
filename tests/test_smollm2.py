"""SmolLM2-135M-Instruct itself: 20 greedy continuations, token by token those of transformers on the same weights; adapters.

It runs where the file is: python -m experiments.fetch_smollm2 writes work/smollm2.gguf; SMOLLM2 may name another one.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.model.transformer import Model
from apr_jax.pretrained import load_pretrained, save_pretrained, with_control_words
from apr_jax.pretrained.tokenizer import load
from apr_jax.train import lora
from configs import lora_smollm2
from experiments.compare_transformers import QUESTIONS, TOLERANCE, own_logits, peer_logits
from test_pretrained import causal_logits

FILE = os.environ.get("SMOLLM2", "work/smollm2.gguf")
NEW = 64


@pytest.mark.skipif(not Path(FILE).is_file(), reason=f"there is no {FILE}: python -m experiments.fetch_smollm2")
def test_greedy_continuations_are_those_of_transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed: see requirements-peers.txt")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: see requirements-peers.txt"
    )
    file = Path(FILE).absolute()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, padding_side="left")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    theirs.generation_config.eos_token_id = None  # all 64 tokens, whatever ends an answer
    chats = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in QUESTIONS]
    batch = tokenizer(chats, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = theirs.generate(**batch, do_sample=False, max_new_tokens=NEW, pad_token_id=2)
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = [row[-(length + NEW) :].tolist() for row, length in zip(out, lengths, strict=True)]
    print(tokenizer.decode(rows[0]))

    # If every greedy token follows from those before it, the whole continuation does: one forward a row is enough.
    model = load_pretrained(file, dtype="float32")
    longest, different, near = max(map(len, rows)), [], 0
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        padded = jnp.asarray([row + [0] * (longest - len(row))])
        logits = np.asarray(causal_logits(model, padded))[0, length - 1 : length + NEW - 1]
        for i, token in enumerate(row[length:]):
            gap = logits[i].max() - logits[i, token]
            near += 0 < gap <= 1e-4
            if gap > 1e-4:
                different.append(f"prompt {number}, token {i}: {token}, {gap} below the best")
    print(f"{len(rows)} prompts x {NEW} tokens: {len(different)} differ, {near} lie within 1e-4 of the best")
    assert not different


@pytest.mark.skipif(not Path(FILE).is_file(), reason=f"there is no {FILE}: python -m experiments.fetch_smollm2")
def test_adapters_can_be_merged_and_given_to_transformers(tmp_path):
    """Merged into the weights they change the logits as beside them; what is exported is the merged model."""
    config = lora_smollm2.config()
    words = lora_smollm2.WORDS
    model, codec = with_control_words(load_pretrained(FILE, dtype="float32"), load(FILE), words, gain=1.1)
    assert model.config == config.model and [codec.id(word) for word in words] == list(config.lora.tokens)
    draws = iter(jax.random.split(jax.random.key(0), 1000))
    adapters = jax.tree.map(
        lambda leaf: jax.random.normal(next(draws), leaf.shape, leaf.dtype) * 0.02,
        lora.init(config.lora, model.config, jax.random.key(1)),
    )
    tokens = jnp.asarray([codec.encode("<|im_start|>user\nWhat is 6 times 7?<|im_end|>\n<task>6<wait>") * 3])
    merged = Model(model.graph, lora.merge(config.lora, model.params, adapters))
    ours = np.asarray(own_logits(merged, tokens))
    beside = np.asarray(own_logits(Model(model.graph, lora.apply(config.lora, model.params, adapters)), tokens))
    assert np.abs(ours - np.asarray(own_logits(model, tokens))).max() > 1  # they change something
    print(f"merged and beside: {np.abs(ours - beside).max():.1e} apart, logits up to {np.abs(ours).max():.0f}")
    np.testing.assert_allclose(ours, beside, atol=1e-5 * np.abs(ours).max(), rtol=0)

    save_pretrained(tmp_path / "merged", merged, FILE, tokenizer=codec)
    again = load_pretrained(tmp_path / "merged")
    jax.tree.map(np.testing.assert_array_equal, again.params, merged.params)
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: see requirements-peers.txt"
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32").eval()
    assert np.abs(peer_logits(theirs, tokens) - ours).max() <= TOLERANCE
