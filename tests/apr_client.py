"""APR's published client once more, over one full forward pass a token, and a vocabulary and a model that call a lot."""

import dataclasses
import functools
import re

import jax
import numpy as np

import forking
import reference_model
from apr_jax.decode import Problem, Stop
from apr_jax.model.config import ModelConfig
from phrase_matcher import Table

PIECES = {
    "line": "\n", "first": "Generated Node #0,0: 9:[3, 3] Operation: 1+2=3\n",
    "second": "Generated Node #0,1: 9:[2, 2] Operation: 3-1=2\n", "call": "<Calling Sub Searches>\n",
    "calling": "<Calling Sub Searches>", "zero": "<Start Sub Search 0 at level 1> Moving to Node #0,0\n",
    "one": "<Start Sub Search 1 at level 1> Moving to Node #0,1\n", "two": "<Start Sub Search 2 at level 1> Moving to Node #0,2\n",
    "called": "<End Calling Sub Searches>", "half": "<Sub", "rest": " Searches>", "results": "<Sub Searches>\n",
    "joined": "<End Sub Searches>\n", "goal": "Goal Reached", "a": "a", "b": "b", "ab": "ab", "state": "]",
}  # fmt: skip
LONGER = (
    "<No Solution in Sub Search ", "<Goal Reached in Sub Search ", " at level 1 at Node #", "0,0", "0,1", "Moving to Node #",
    "Current State: ", "], Operations: [", "Exploring Operation: ", ", Resulting Numbers: [", "Generated Node #", "] Operation: ",
    " equal: ", " unequal: No Solution\n", "No solution found.\n",
)  # fmt: skip
SINGLES = sorted(set("".join((*PIECES.values(), *LONGER, "0123456789+-*/=,:;'[]<># "))) - set(PIECES.values()))


class Codec(Table):
    """The longest pieces first; a text begins with one id and ends with another."""

    marks = frozenset()

    def __init__(self):
        super().__init__([piece.encode() for piece in (*PIECES.values(), *LONGER, *SINGLES)], ["<|end|>", "<|begin|>"])
        self.eos, self.bos = self.id("<|end|>"), self.id("<|begin|>")


CODEC = Codec()
CONFIG = ModelConfig(
    vocabulary=CODEC.size, width=CODEC.size + 8, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=32, tied=False,
    dtype="float64", param_dtype="float64",
)  # fmt: skip


@functools.cache
def model():
    table = np.full((CODEC.size, CODEC.size), -9.0)
    names = list(PIECES)

    def row(before, **after):
        for name in before.split():
            for text, value in after.items():
                table[names.index(name), CODEC.eos if text == "end" else names.index(text)] = value

    table[:, [names.index(name) for name in ("a", "line")]] = 0.0
    row("state", line=2.0, first=1.0, call=0.5, goal=1.0, end=-1.0)
    row("line", first=1.0, second=1.0, call=1.5, goal=0.5, results=0.0, half=0.5, zero=0.5, called=-0.5, a=0.0, end=0.0)
    row("first second", first=0.0, second=1.0, call=2.0, goal=0.0, half=0.0, end=-1.0)
    row("call", zero=2.5, one=1.5, two=-1.0, called=-0.5)
    row("calling", line=2.5, zero=0.5)
    row("zero one two", one=1.5, zero=0.5, called=2.5, two=-1.5)
    row("called", end=3.0, line=0.5, a=-1.0)
    row("half", rest=3.0)
    row("goal", goal=1.5, line=1.0, a=0.5, end=1.0, b=0.0)
    row("a b ab", a=0.0, b=1.0, goal=0.5, line=0.5, half=0.0, end=0.5, ab=-1.0)
    row("joined", first=0.5, call=1.0, goal=0.5, a=1.0, end=0.5)
    return forking.biased_model(CONFIG, 2, table, 0.8)


class Line:
    """The draws of one line of requests, and the tokens of its last request and what came of that.

    What stays of a request's tokens when another takes its place is kept apart by the engine, which takes an ordinal for it.
    """

    def __init__(self, key):
        self.key, self.uniforms, self.tokens, self.opened = key, np.asarray(reference_model.uniforms(key)), [], 0
        self.seen, self.before, self.anew = [], 0, 0

    def child(self):
        self.opened += 1
        return Line(jax.random.fold_in(self.key, self.opened))

    def send(self, new):
        if self.seen:
            same = next(i for i in range(len(self.seen) + 1) if self.seen[: i + 1] != new[: i + 1] or i == len(new) - 1)
            self.opened += same > self.before
            self.anew += same <= self.before
            self.before = same if same > self.before else 0
        self.seen = list(new)


@dataclasses.dataclass
class Client:
    """The published loop; `stop` tells how it came to its end."""

    problem: Problem
    seed: int
    context: int
    most: int

    def __post_init__(self):
        key = jax.random.fold_in(jax.random.key(self.seed), self.problem.id)
        self.root = Line(jax.random.fold_in(key, self.problem.sample))
        self.children, self.params, self.stop = [], jax.tree.map(np.asarray, model().params), None
        self.guarded = 0

    def generate(self, line, text, most):
        """One request: the whole text, and why it ended."""
        line.send([CODEC.bos, *CODEC.encode_text(text)])
        most, said = min(most, max(self.context - len(line.seen), 1)), []
        while True:
            logits = reference_model.all_logits(self.params, CONFIG, np.array(line.seen), np.arange(len(line.seen)))[-1]
            token = reference_model.draw(logits, line.uniforms[len(line.tokens)], self.problem)[0]
            line.tokens.append(token)
            line.seen.append(token)
            if token == CODEC.eos:
                return text + words(said), "end"
            said.append(token)
            if "<Sub Searches>" in words(said):
                return text + words(said).partition("<Sub Searches>")[0], "guard"
            if len(said) == most:
                return text + words(said), "length"

    def complete(self, line, text, most):
        while True:
            text, why = self.generate(line, text, most)
            if why != "guard":
                return text.removesuffix("\n"), why
            text += "<Calling Sub Searches>"
            self.guarded += 1

    def run(self, text):
        most, children_most = self.problem.max_tokens, self.problem.child_max_tokens or self.problem.max_tokens
        trace, why = self.complete(self.root, text, most)
        while "<End Calling Sub Searches>" in trace.split("\n")[-1]:
            chunks = trace.split("<Calling Sub Searches>\n")
            lines = chunks[-1].split("\n<End Calling Sub Searches>")[0].split("\n")
            nodes = [line.split("Moving to Node #")[1].strip() for line in lines if "<Start Sub Search" in line]
            known = described(trace)
            if len(chunks) == 1 or not nodes or len(nodes) > self.most or any(node not in known for node in nodes):
                return Stop.MALFORMED
            children = [self.root.child() for _ in nodes]
            self.children += children
            told = []
            for child, node in zip(children, nodes, strict=True):
                target, numbers, operations = known[node]
                prompt = f"Moving to Node #{node}\nCurrent State: {target}:{numbers}, Operations: {operations}"
                told.append(self.complete(child, prompt, children_most)[0])
            text = "<Calling Sub Searches>\n".join(chunks[:-1]) + "<Sub Searches>\n"
            for number, (node, wrote) in enumerate(zip(nodes, told, strict=True)):
                places = [match.start() for match in re.finditer("Goal Reached", wrote)]
                outcome = "Goal Reached" if len(places) > 1 else "No Solution"
                text += f"<{outcome} in Sub Search {number} at level 1 at Node #{node}>\n"
                text += wrote[places[-2] :].strip()[13:] + "\n" if len(places) > 1 else ""
            trace, why = self.complete(self.root, text + "<End Sub Searches>\n", most)
        return Stop.END if why == "end" else Stop.LENGTH


def words(tokens):
    return b"".join(CODEC.token_bytes(token) for token in tokens).decode()


def described(text):
    """Target, numbers and operations of the nodes: of the root, and of those that it generated."""
    found = {"0": (9, [1, 2, 3], [])}
    for name, target, numbers, operation in re.findall(
        r"Generated Node #([\d,]+): (\d+):\[(.*?)\] Operation: (.*)", text
    ):
        mother = found.get(name.rpartition(",")[0])
        if mother:
            found.setdefault(name, (int(target), list(map(int, numbers.split(", "))), [*mother[2], operation]))
    return found
