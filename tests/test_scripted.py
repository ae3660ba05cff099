"""The scripted fork and join against plain forwards over the contexts that its threads should have seen."""

import jax
import numpy as np
import pytest

import reference_model
from apr_jax.decode import Engine, Sizes, Source, Stop
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from benchmarks.scripted import Scripted

PROMPTS = ((9, 4, 7, 1), (3, 3), (8, 2, 6))
SCRIPTS = ((3, (2, 5, 1), 4), (1, (1,), 1), (2, (4, 2), 3))  # alone, threads, after


def decoded(layers: int, stitch: bool, **sizes):
    """A model of random weights, and the transcripts of all problems by number."""
    config = ModelConfig(vocabulary=32, width=32, layers=layers, heads=4, kv_heads=2, head_dim=8, ffn=48)
    model = transformer.init(config, jax.random.key(layers))
    # Weights of deviation 0.02 would make every token follow from the last one alone.
    params = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, model.params)
    model = transformer.Model(model.graph, params)
    protocol = Scripted(most=3, stitch=stitch)
    problems = [
        protocol.problem(i, prompt, *script) for i, (prompt, script) in enumerate(zip(PROMPTS, SCRIPTS, strict=True))
    ]
    defaults = {"problems": 2, "lanes": 2, "rows": 3, "threads": protocol.needs.threads, "slots": 128, "page_size": 4}
    defaults |= {"log": 256, "log_page_size": 4, "queue": 3, "prompt": 16, "outbox": 3, "attention_block": 32}
    engine = Engine(model, protocol, Sizes(**(defaults | sizes)))
    found = {transcript.problem: transcript for transcript in engine.decode(problems)}
    assert engine.traces == 1
    return (jax.tree.map(np.asarray, model.params), config), [found[i] for i in range(len(problems))]


def check_greedy(model, context, transcript, thread) -> None:
    """Each token that the thread generated is the likeliest one after (token, position) pairs that grow by it, and as likely."""
    context, log = list(context), transcript.log
    mine = log.sampled & (log.thread == thread)
    for token, logprob in zip(log.token[mine], log.logprob[mine], strict=True):
        logits = reference_model.all_logits(*model, *np.array(context).T)[-1].astype(np.float64)
        assert logits[token] > np.max(logits) - 1e-4
        assert logprob == pytest.approx(logits[token] - np.logaddexp.reduce(logits), abs=1e-4)
        context.append((int(token), max(position for _, position in context) + 1))


def grown(context, tokens, start=None):
    """A context and further tokens, at the positions that follow or from `start` on."""
    start = max(position for _, position in context) + 1 if start is None else start
    return [*context, *((int(token), start + i) for i, token in enumerate(tokens))]


@pytest.mark.parametrize("sizes", [{}, {"feed_threshold": 0, "feed_chunk": 3}, {"lanes": 1, "rows": 2, "page_size": 1}])
@pytest.mark.parametrize("stitch", [False, True])
def test_threads_see_what_the_script_says(stitch, sizes):
    # With one layer keys and values do not depend on what was seen: a stitched context has a plain forward.
    model, transcripts = decoded(layers=1 if stitch else 2, stitch=stitch, **sizes)
    for transcript, prompt, (alone, lengths, after) in zip(transcripts, PROMPTS, SCRIPTS, strict=True):
        assert transcript.stop == Stop.LENGTH
        parts = [transcript.generated(i) for i in range(len(transcript.threads))]
        assert [len(part) for part in parts] == [after, alone, *lengths]
        context = [(token, place) for place, token in enumerate(prompt)]
        check_greedy(model, context, transcript, 1)
        context = grown(context, parts[1])
        for header in range(len(lengths)):
            check_greedy(model, grown(context, [header]), transcript, 2 + header)
        fork = len(context)
        for header, part in enumerate(parts[2:]):
            unfed = part[:-1] if stitch else part
            context = grown(context, [header, *unfed], fork if stitch else None)
        if stitch:
            context = grown(context, [part[-1] for part in parts[2:]])
        check_greedy(model, context, transcript, 0)
        # A thread sees no other of its fork.
        assert (transcript.sees[2:, 2:] == np.eye(len(lengths), dtype=bool)).all() and transcript.sees[2:, :2].all()
        assert transcript.sees[0].sum() == (len(parts) if stitch else 3)
        # Nothing is fed but the prompt, the headers, what was not fed yet, and what is encoded again.
        joined = len(lengths) if stitch else 1 + sum(1 + length for length in lengths[1:])
        assert np.sum(transcript.log.source == Source.FED) == len(prompt) + len(lengths) + 1 + joined
        assert transcript.log.depth.max() == alone + max(lengths) + after


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((1,), 1, (1,), 1), "prompt of 1 tokens"),
        (((1, 2), 1, (1,) * 4, 1), "4 threads"),
        (((1, 2), 0, (1,), 1), "at least 1"),
    ],
)
def test_refuses_a_wrong_script(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scripted(most=3).problem(0, *arguments)
