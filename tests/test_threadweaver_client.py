"""ThreadWeaver's client written plainly, one full forward for each token: the same tokens and joined text for the same draws.

It works as the released one on a list of token ids: requests with stop ids, a pattern over decoded text, prompts encoded again.
"""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

import oracle
import requesting
import test_outlined
from apr_jax.decode import Engine, Stop
from apr_jax.methods import ThreadWeaver
from outlining import THREADWEAVER
from test_outlined import SEED, SIZES

NAME = "threadweaver"
CODEC = test_outlined.RULES[NAME].codec
PATTERN = re.compile(r"<Outline>\s*([0-9]+(?:\.[0-9]+)*)\s*:")
METHODS = {
    "as released": ThreadWeaver(end=THREADWEAVER.end, most=3, nested=3),
    "conclusions": ThreadWeaver(end=THREADWEAVER.end, most=3, nested=3, conclusion=True),
    "short responses": ThreadWeaver(end=THREADWEAVER.end, most=3, nested=3, response=26),
}


@dataclasses.dataclass
class Client:
    """The state machine; `context` is what it would return."""

    codec = CODEC
    method: ThreadWeaver
    problem: object
    server: requesting.Server

    def request(self, line, prompt, stop, most):
        """Sample until a stop id, which is included, or until `most` tokens."""
        said = []
        while len(said) < most:
            said.append(self.server.next(line, [*prompt, *said]))
            if said[-1] in stop:
                return said, said[-1]
        return said, None

    def run(self):
        self.root = self.server.root()
        self.context = [int(token) for token in self.problem.prompt]
        end, fork = self.codec.id(THREADWEAVER.end), self.codec.id("</Outlines>")
        for _ in range(self.method.blocks):
            said, stop = self.request(
                self.root, self.context, {end, fork}, self.left(self.problem.max_tokens, self.root)
            )
            self.context += said
            text = self.text(said)
            if stop != fork:
                self.unfed = 1
                broken = "<Outlines>" in text and stop == end
                return Stop.MALFORMED if broken else Stop.END if stop == end else Stop.LENGTH
            numbers = self.listed(text[text.rfind("<Outlines>") :]) if "<Outlines>" in text else []
            beyond = any(not self.known(number) for number in numbers) or len(numbers) > self.method.most
            if not numbers or beyond:
                self.unfed = 1
                return Stop.MALFORMED
            if self.method.response and self.used() >= self.method.response:
                self.unfed = 1
                return Stop.LENGTH
            ending = self.parallel(numbers, {end, self.codec.id("</Thread>")})
            if ending is not None:
                self.unfed = 0
                return ending
        raise AssertionError("more blocks than these problems have")

    def listed(self, text):
        """The numbers of the outlines."""
        return list(dict.fromkeys(PATTERN.findall(text)))

    def read(self, told):
        """What joins the context, of the numbers, tokens and stop ids of all threads."""
        return told

    def parallel(self, numbers, stops):
        """All requests of a block, and the text that joins; returns why the response ends, if it does."""
        children = [self.root.child() for _ in numbers]
        before, prompt = self.used(), list(self.context)
        told = []
        for child, number in zip(children, numbers, strict=True):
            most = self.problem.child_max_tokens or self.problem.max_tokens
            most = min(most, self.method.response - before) if self.method.response else most
            said, stop = self.request(child, [*prompt, *self.codec.encode(f"\n<Thread>\n{number}:")], stops, most)
            told.append((number, said, stop))
        broken = False
        told = self.read(told)
        for place, (number, said, stop) in enumerate(told):
            self.context += self.codec.encode(f"<Thread>\n{number}:" if place else f"\n<Thread>\n{number}:")
            closed = stop == self.codec.id("</Thread>")
            self.context += said[:-1] if stop is not None and not closed else said
            self.context += [] if closed else self.codec.encode("\n</Thread>")
            broken |= not closed
        joined = self.codec.encode("\n<Conclusion>\n" if self.method.conclusion else "\n")
        long = any(stop is None for _, _, stop in told) or len(self.root.tokens) >= self.problem.max_tokens
        long |= bool(self.method.response) and self.used() + len(joined) >= self.method.response
        if broken or long:
            self.context += self.codec.encode("\n</Parallel>")
            return Stop.LENGTH if long else Stop.MALFORMED
        self.context += joined
        return None

    def used(self):
        return len(self.context) - len(self.problem.prompt)

    def left(self, most, line):
        rest = most - len(line.tokens)
        return min(rest, self.method.response - self.used()) if self.method.response else rest

    def known(self, number):
        parts = [int(part) for part in number.split(".")]
        canonical = ".".join(map(str, parts)) == number
        within = parts[0] <= self.method.most if len(parts) == 1 else max(parts) <= self.method.nested
        return canonical and len(parts) <= 2 and min(parts) > 0 and within

    def text(self, ids):
        return b"".join(self.codec.token_bytes(i) for i in ids).decode(errors="replace")


@functools.cache
def problems():
    rng, rule = np.random.default_rng(11), test_outlined.RULES[NAME]
    return [test_outlined.case(rng, number, rule) for number in range(16)]


def seen_by_the_last(found):
    """Tokens that the root's last fed token saw, by position; asserts that positions have no gaps and no doubles."""
    log = found.log
    mine = np.flatnonzero((log.thread == 0) & (log.index >= 0))
    last = mine[np.argmax(log.index[mine])]
    seen = np.flatnonzero(oracle.visible(log, found.sees)[last])
    seen = seen[np.argsort(log.position[seen])]
    assert log.position[seen].tolist() == list(range(len(seen)))
    return log.token[seen].tolist()


@pytest.mark.parametrize("name", METHODS)
def test_the_client_says_the_same(name):
    method, model = METHODS[name], test_outlined.model(NAME)
    params = jax.tree.map(np.asarray, model.params)
    engine = Engine(model, method.protocol(CODEC), SIZES, kernel=False)
    found = sorted(engine.decode(problems(), seed=SEED), key=lambda each: each.problem)
    joins = several = ended = bounded = 0
    for problem, each in zip(problems(), found, strict=True):
        client = Client(method, problem, requesting.Server(params, model.config, problem, SEED))
        stop = client.run()
        assert each.stop == stop
        assert each.generated(0).tolist() == client.root.tokens
        assert len(each.threads) == 1 + len(client.root.children)
        for number, child in enumerate(client.root.children, start=1):
            assert each.generated(number).tolist() == child.tokens
        assert seen_by_the_last(each) == client.context[: len(client.context) - client.unfed]
        joins += bool(client.root.children)
        several += len(client.root.children) > 1
        ended += client.unfed == 0
        bounded += 0 < method.response <= client.used()
    print(name, dict(joins=joins, several=several, ended=ended, bounded=bounded))
    assert joins > 8 and several > 4 and ended > 3 and (bounded > 6 or not method.response)
