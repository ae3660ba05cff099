"""Multiverse's mask and positions, built from the text alone as its training does, give the log-probabilities that were decoded.

NPR's are the same for its own tags.
"""

import collections
import dataclasses

import jax
import numpy as np
import pytest

import reference_model
import test_outlined
import test_outlined_malformed as malformed
from apr_jax.decode import Stop

NAME = "multiverse"


@dataclasses.dataclass(frozen=True)
class Tags:
    """Ids of the tags, and the tokens of a path's header before its tag, which the rollouts of NPR have."""

    block: int
    fork: int
    path: int
    close: int
    joined: int
    lead: int = 0


def tags(name):
    rule = test_outlined.RULES[name]
    words = rule.words
    named = (words.outlines, words.fork, words.thread, words.close, words.conclusion)
    return Tags(*map(rule.codec.id, named), lead=int(bool(rule.line)))


@dataclasses.dataclass
class Block:
    """A block that is open: where its outlines end, its longest path so far, and its paths as places in the text, from and to."""

    fork: int | None = None
    longest: int = 0
    paths: list = dataclasses.field(default_factory=list)
    begun: int | None = None


def mask_and_positions(tokens, tags):
    """Bool [T, T] and Int [T] of a text in which blocks are well formed, else ValueError.

    As published, with a stack of blocks. A block begins with its list of outlines here: these models do not write `<Parallel>`.
    """
    sees, positions = np.tri(len(tokens), dtype=bool), np.zeros(len(tokens), int)
    stack, following, begins = [], 0, [place - tags.lead for place, token in enumerate(tokens) if token == tags.path]
    for place, token in enumerate(tokens):
        block = stack[-1] if stack else None
        if token == tags.block:
            if block and block.fork is not None and block.begun is None:
                raise ValueError("a block between paths")
            if block and block.fork is None:
                stack.pop()  # the list begins anew
            stack.append(Block())
        elif token in (tags.fork, tags.path, tags.close, tags.joined):
            if block is None or (block.fork is None) != (token == tags.fork):
                raise ValueError("a tag outside its block")
            begun = block.begun is not None and block.begun != place - tags.lead
            if begun != (token == tags.close):
                raise ValueError("a path that is not closed, or not open")
        if place in begins and stack and stack[-1].fork is not None:
            if stack[-1].begun is not None:
                raise ValueError("a path in a path")
            stack[-1].begun, following = place, stack[-1].fork + 1
        if token == tags.joined:
            following = block.fork + block.longest + 1
            for first, end in block.paths:
                for other, until in block.paths:
                    if other != first:
                        sees[first:end, other:until] = False
            stack.pop()
        positions[place] = following
        following += 1
        if token == tags.fork:
            block.fork = positions[place]
        if token == tags.close:
            block.longest = max(block.longest, positions[place] - block.fork)
            block.paths.append((block.begun, place + 1))
            block.begun = None
    if any(block.fork is not None for block in stack):
        raise ValueError("a block is not closed")
    return sees, positions


def flattened(found, fork):
    """Entries of all threads as one text: paths stand after the word that forked them, in their order, nested ones likewise."""
    log = found.log
    children = {}
    for number, thread in enumerate(found.threads):
        children.setdefault(thread.parent, []).append(number)

    def of(thread):
        waiting, entries = list(children.get(thread, ())), []
        mine = [i for i in np.flatnonzero(log.thread == thread) if log.index[i] >= 0 or log.sampled[i]]
        for entry in mine:
            entries.append(entry)
            if log.token[entry] == fork and log.sampled[entry]:
                first = [child for child in waiting if begins(child) > log.clock[entry]]
                block = [child for child in first if begins(child) == min(map(begins, first))]
                for child in block:
                    waiting.remove(child)
                    entries += of(child)
        return entries

    def begins(child):
        return log.clock[np.flatnonzero(log.thread == child)[0]]

    return of(0)


def check(found, model, prompt, tolerance, tags):
    """Assert that a transcript is what the mask says; whether its text has a mask at all."""
    log = found.log
    entries = [i for i in flattened(found, tags.fork) if log.index[i] >= 0]
    tokens = log.token[entries]
    try:
        sees, positions = mask_and_positions([-1] * prompt + tokens[prompt:].tolist(), tags)  # a user's tags are text
    except ValueError:
        return False
    assert positions.tolist() == log.position[entries].tolist()
    params = jax.tree.map(np.asarray, model.params)
    logits = reference_model.all_logits(params, model.config, tokens, positions, sees)
    place = {entry: i for i, entry in enumerate(entries)}
    for entry in np.flatnonzero(log.sampled):
        row = reference_model.log_softmax(logits[place[log.predictor[entry]]].astype(np.float64))
        assert row[log.drawn[entry]] == pytest.approx(log.logprob[entry], abs=tolerance)
    return True


def test_the_published_mask_gives_what_was_decoded():
    problems = [problem for problem, _ in test_outlined.cases(NAME, 60)]
    model = test_outlined.model(NAME, "float32")
    checked = several = 0
    for each in test_outlined.decoded(NAME, test_outlined.SIZES, problems, "float32"):
        whole = each.stop not in (Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL)
        if whole and len(each.threads) > 1 and check(each, model, len(problems[each.problem].prompt), 1e-4, tags(NAME)):
            checked += 1
            several += any(thread.path == (1,) for thread in each.threads)
    assert checked > 8 and several > 3


def test_the_published_mask_of_paths_within_paths():
    """Scripted ones; the others of these cases that have a mask as well."""
    cases, found = malformed.MULTIVERSE_CASES, malformed.decoded("multiverse")
    model = test_outlined.model("threadweaver")  # any of these weights
    whole = [(name, found[i, 0]) for i, name in enumerate(cases) if found[i, 0].stop != Stop.THREADS_FULL]
    checked = {name for name, each in whole if check(each, model, 2, 1e-9, tags(NAME))}
    assert {"good", "nested", "a path that never ends", "an end inside a path"} <= checked
    assert not {"too deep", "no list in a path", "the budget, with the fork"} & checked


def test_the_mask_of_steps_gives_what_the_oracle_says():
    """NPR's transcripts are those of the oracle, see test_outlined. Texts with refused forks have no mask."""
    model, checked = test_outlined.model("npr"), collections.Counter()
    for problem, right in test_outlined.cases("npr", 60):
        if len(right.threads) > 1 and check(right, model, len(problem.prompt), 1e-9, tags("npr")):
            checked["forked"] += 1
            checked["several"] += any(thread.path == (1,) for thread in right.threads)
            checked["nested"] += any(len(thread.path) > 1 for thread in right.threads)
    assert checked["forked"] > 8 and checked["several"] > 3, checked
