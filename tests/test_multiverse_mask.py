"""Multiverse's mask and positions, built from the text alone as its training does, give the log-probabilities that were decoded."""

import dataclasses

import jax
import numpy as np
import pytest

import reference_model
import test_outlined
from apr_jax.decode import Stop

NAME = "multiverse"
CODEC = test_outlined.RULES[NAME].codec
BLOCK, FORK, PATH, CLOSE, JOINED = (
    CODEC.id(word) for word in ("<Goal>", "</Goal>", "<Path>", "</Path>", "<Conclusion>")
)


@dataclasses.dataclass
class Block:
    """A block that is open: where its outlines end, its longest path so far, and its paths as places in the text, from and to."""

    fork: int | None = None
    longest: int = 0
    paths: list = dataclasses.field(default_factory=list)
    begun: int | None = None


def mask_and_positions(tokens):
    """Bool [T, T] and Int [T] of a text in which blocks are well formed, else ValueError.

    As published, with a stack of blocks. A block begins with its list of outlines here: these models do not write `<Parallel>`.
    """
    sees, positions = np.tri(len(tokens), dtype=bool), np.zeros(len(tokens), int)
    stack, following = [], 0
    for place, token in enumerate(tokens):
        block = stack[-1] if stack else None
        if token == BLOCK:
            if block and block.fork is not None and block.begun is None:
                raise ValueError("a block between paths")
            if block and block.fork is None:
                stack.pop()  # the list begins anew
            stack.append(Block())
        elif token in (FORK, PATH, CLOSE, JOINED):
            if block is None or (block.fork is None) != (token == FORK):
                raise ValueError("a tag outside its block")
            if (block.begun is None) == (token == CLOSE):
                raise ValueError("a path that is not closed, or not open")
        if token == PATH:
            stack[-1].begun, following = place, stack[-1].fork + 1
        if token == JOINED:
            following = block.fork + block.longest + 1
            for first, end in block.paths:
                for other, until in block.paths:
                    if other != first:
                        sees[first:end, other:until] = False
            stack.pop()
        positions[place] = following
        following += 1
        if token == FORK:
            block.fork = positions[place]
        if token == CLOSE:
            block.longest = max(block.longest, positions[place] - block.fork)
            block.paths.append((block.begun, place + 1))
            block.begun = None
    if any(block.fork is not None for block in stack):
        raise ValueError("a block is not closed")
    return sees, positions


def flattened(found):
    """Entries of all threads as one text: paths stand after the word that forked them, in their order, nested ones likewise."""
    log, codec_fork = found.log, FORK
    children = {}
    for number, thread in enumerate(found.threads):
        children.setdefault(thread.parent, []).append(number)

    def of(thread):
        waiting, entries = list(children.get(thread, ())), []
        mine = [i for i in np.flatnonzero(log.thread == thread) if log.index[i] >= 0 or log.sampled[i]]
        for entry in mine:
            entries.append(entry)
            if log.token[entry] == codec_fork and log.sampled[entry]:
                first = [child for child in waiting if begins(child) > log.clock[entry]]
                block = [child for child in first if begins(child) == min(map(begins, first))]
                for child in block:
                    waiting.remove(child)
                    entries += of(child)
        return entries

    def begins(child):
        return log.clock[np.flatnonzero(log.thread == child)[0]]

    return of(0)


def sampled_after(log, entries):
    """Entries that were sampled, with their predictors' places in the flattened text."""
    place = {entry: i for i, entry in enumerate(entries)}
    return [(i, place[log.predictor[i]]) for i in entries if log.sampled[i]]


def test_the_published_mask_gives_what_was_decoded():
    problems = [problem for problem, _ in test_outlined.cases(NAME, 60)]
    found = test_outlined.decoded(NAME, test_outlined.SIZES, problems, "float32")
    model = test_outlined.model(NAME, "float32")
    params = jax.tree.map(np.asarray, model.params)
    checked = several = nested = 0
    for each in found:
        if len(each.threads) < 2 or each.stop in (Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL):
            continue
        entries = [i for i in flattened(each) if each.log.index[i] >= 0]
        start = len(problems[each.problem].prompt)  # tags in what the user wrote are text
        tokens = each.log.token[entries]
        try:
            sees, positions = mask_and_positions([-1] * start + tokens[start:].tolist())
        except ValueError:
            continue
        assert positions.tolist() == each.log.position[entries].tolist()
        logits = reference_model.all_logits(params, model.config, tokens, positions, sees)
        for entry, place in sampled_after(each.log, [*entries]):
            logprob = reference_model.log_softmax(logits[place].astype(np.float64))[each.log.token[entry]]
            assert logprob == pytest.approx(each.log.logprob[entry], abs=1e-4)
        checked += 1
        several += any(thread.path == (1,) for thread in each.threads)
        nested += any(len(thread.path) > 1 for thread in each.threads)
    print(dict(checked=checked, several=several, nested=nested))
    assert checked > 8 and several > 3 and nested > 3
