"""Forks of limited width: a `<spawn>` too many becomes a `<wait>`."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax import protocols
from apr_jax.evaluate import methods as evaluated
from apr_jax.methods import SpawnJoin
from apr_jax.methods.spawn_join import Budgets
from apr_jax.pretrained.tokenizer import load
from apr_jax.record import Source, Stop
from apr_jax.tasks.countdown.task import Countdown
from configs import demo

IDS = dict(spawn=1, wait=2, result=3, join=4, end=5, go=6)


def test_a_spawn_too_many_becomes_a_wait():
    protocol = protocols.SpawnJoin(**IDS, width=2)
    own, found = protocol.own_state(), []
    for token in (7, 1, 7, 1, 7, 1, 7, 1, 1, 2, 1):
        own, kept, event = protocol.observe((), own, types.SimpleNamespace(token=np.int32(token)))
        found.append(int(kept))
        assert int(event) == {5: 1, 1: 2, 2: 3, 4: 4}.get(int(kept), 0)
    assert found == [7, 1, 7, 1, 7, 2, 7, 1, 1, 2, 1]


def test_without_children_spawn_is_banned(unchecked):
    protocol = protocols.SpawnJoin(**IDS, width=0)
    logits = np.asarray(protocol.adjust((), protocol.own_state(), (), jnp.zeros(8)))
    assert np.flatnonzero(np.isneginf(logits)).tolist() == [IDS["spawn"]] and protocol.needs.adjusts
    assert not protocols.SpawnJoin(**IDS).needs.adjusts


def test_the_shipped_model_forks_no_wider():
    """It forks ten children on every problem of four numbers, whatever the problem."""
    config = dataclasses.replace(demo.SPAWN_JOIN, method=SpawnJoin(width=2))
    sizes = dataclasses.replace(config.sizes, problems=2, lanes=3, rows=6)
    engine, codec = evaluated.make_engine(dataclasses.replace(config, sizes=sizes), load(demo.config().tokenizer))
    task = Countdown(settings=("four",), problems_per_setting=2)
    found = list(engine.decode(evaluated.requests(task, task.questions(0), config, codec), 0))
    spawn, wait = codec.id("<spawn>"), codec.id("<wait>")
    for one in found:
        assert len(one.threads) == 3 and [thread.stop for thread in one.threads[1:]] == [Stop.END, Stop.END]
        assert one.generated(0).tolist().count(spawn) == 2
        waits = (one.log.thread == 0) & (one.log.token == wait)
        assert one.log.source[waits].tolist() == [Source.REWRITTEN] and one.log.drawn[waits].tolist() == [spawn]


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: SpawnJoin(width=-2), "spawn_join.width is -2"),
        (lambda: SpawnJoin(width=1, allowance=Budgets(threads=3)), "limit allowance.threads"),
    ],
)
def test_what_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
