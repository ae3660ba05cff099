"""Tree search: Monte Carlo and depth first, against an interpreter of the rule and the textbook's loop; and its judges."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

import oracle
import reference_model
import replaying
from apr_jax.decode import Engine, Problem, Stop, Transcript
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.evaluate import metrics
from apr_jax.methods import TreeSearch as Method
from apr_jax.methods import judges as configured
from apr_jax.pretrained.tokenizer import load
from apr_jax.protocols import TreeSearch, judges
from apr_jax.tasks.countdown import SHIPPED
from searching import CODEC, STEP_ENDS, WORDS, Beam, distinct, forward, go_on, judged, model, problems, step
from test_engine import SIZES
from test_native import need_kernel

SEED = 8
CHOICES = dict(end=WORDS.end, step_ends=STEP_ENDS, width=2, steps=5)
LABELS = Recogniser.of(CODEC, [Phrase("sure", "e"), Phrase("likely", "b"), Phrase("impossible", "cd")])
TREES = {
    "rollouts": TreeSearch(
        **CHOICES, judge=judges.Rollout((1, 3)), simulations=7, parallel=2, distinct=True, answer="valued"
    ),
    "likelihood": TreeSearch(**CHOICES, explore=0.5, simulations=9),
    "depth": TreeSearch(
        **CHOICES,
        judge=judges.Labelled(LABELS, (20.0, 1.0, 0.001), ask=(1, 12), threads=2, tokens=8),
        policy="depth",
        simulations=5,
        prune=0.5,
        enough=1,
        answer="valued",
    ),
}


@functools.cache
def decoded(name: str, sizes: str) -> tuple[Transcript, ...]:
    small = dataclasses.replace(SIZES["one row"], slots=96, attention_block=96)
    engine = Engine(model("float64"), TREES[name], small if sizes == "small pool" else SIZES[sizes])
    found = sorted(engine.decode(problems(), seed=SEED), key=lambda transcript: transcript.problem)
    assert engine.traces == 1
    return tuple(found)


# ---- the rule once more


@dataclasses.dataclass(eq=False)
class Node:
    """A node; that of the prompt has no beam."""

    beam: Beam | None = None
    above: "Node | None" = None
    below: list["Node"] = dataclasses.field(default_factory=list)
    visits: int = 1
    unseen: int = 0
    worth: int = 0
    depth: int = 0
    expanded: bool = False

    def line(self) -> list["Node"]:
        """It and all above it."""
        return [self, *(self.above.line() if self.above else ())]

    def all(self) -> list["Node"]:
        return [one for node in self.below for one in (node, *node.all())]

    def score(self, explore: float) -> np.float32:
        mean = np.float32(self.worth) / np.float32(self.visits - self.unseen)
        seldom = np.sqrt(np.log(np.float32(self.above.visits)) / np.float32(self.visits))
        return np.round(mean + np.float32(explore * 1024) * seldom)


def down(tree: Node, protocol, taken: list[Node]) -> Node | None:
    """The leaf of one simulation."""
    if protocol.policy == "depth":
        left = [node for node in tree.all() if not (node.expanded or node.beam.finished or node in taken)]
        return min(left, key=lambda node: (-node.depth, -node.beam.value, node.beam.thread.path), default=None)
    at = tree
    while at.expanded and at.below:
        at = max(at.below, key=lambda node: node.score(protocol.explore))  # of equal ones the first
    return at if at is not tree else None


def select(tree: Node, protocol, made: int) -> tuple[list[Node], int]:
    """The leaves of the next round, and how many simulations there were by then."""
    taken: list[Node] = []
    if protocol.enough and sum(node.beam.finished for node in tree.all()) >= protocol.enough:
        return taken, made
    while made < protocol.simulations and len(taken) < protocol.parallel:
        leaf = down(tree, protocol, taken)
        if leaf is None or leaf in taken:
            break
        made += 1
        for node in leaf.line():
            node.visits += 1
            if leaf.beam.finished:
                node.worth += leaf.beam.value
            else:
                node.unseen += 1
        if not leaf.beam.finished:
            taken.append(leaf)
    return taken, made


def bury(node: Node) -> bool:
    """Whether a node leads somewhere; those below it that do not are dropped."""
    node.below = [one for one in node.below if bury(one)]
    return not node.expanded or bool(node.below)


def planting(
    world: oracle.World, root: oracle.Thread, prompt: list[int], protocol, answers: list[Beam]
) -> oracle.Program:
    """The coordinator; `answers` is filled with the whole ones, the chosen one first."""
    yield from root.feed_tokens(prompt[:-1])
    tree, made, whole = Node(unseen=1), 1, []
    taken = [tree]
    while taken:
        new = []
        for leaf in sorted(taken, key=lambda node: node.beam.thread.path if node.beam else ()) * protocol.width:
            beam = Beam(root.open(), 0, leaf.beam)
            go_on(beam.thread, root, leaf.beam.thread if leaf.beam else root)
            new.append(Node(beam, leaf, depth=leaf.depth + 1))
            world.start(beam.thread, step(world, beam, prompt[-1:], new[-1].depth == protocol.steps, protocol))
        yield from root.await_children([node.beam.thread for node in new])
        standing = distinct([node.beam for node in new], protocol)
        new = [node for node in new if node.beam in standing]
        yield from judged(world, root, [node.beam for node in new], protocol)
        for leaf in taken:
            mine = [node for node in new if node.above is leaf]
            leaf.expanded, leaf.below = True, [node for node in mine if node.beam.value >= protocol.prune * 1024]
            for node in leaf.line():
                node.worth += sum(one.beam.value for one in mine) // len(mine)
                node.unseen -= 1
        for node in new:
            node.worth = node.beam.value
            whole += [node.beam.rolled] if node.beam.rolled else []
        bury(tree)
        taken, made = select(tree, protocol, made)
    whole += [node.beam for node in tree.all() if node.beam.finished]
    yield from answer(world, root, tree, protocol, whole, answers)
    root.stop = Stop.END


def answer(world, root, tree: Node, protocol, whole: list[Beam], answers: list[Beam]) -> oracle.Program:
    """Choose the answer, and let it come to its end."""
    leaves = [node for node in tree.all() if not node.expanded]
    if not leaves:
        return
    best = tree
    while protocol.answer == "visited" and best.below:
        best = max(best.below, key=lambda node: node.visits)
    if protocol.answer == "valued":
        among = [node for node in leaves if node.beam.finished] or leaves
        best = min(among, key=lambda node: (-node.beam.value, node.beam.thread.path))
    chosen = best.beam if best.beam.finished else best.beam.rolled
    others = [beam for beam in whole if beam is not chosen]
    if chosen is None:
        chosen = Beam(root.open(), 0, best.beam)
        go_on(chosen.thread, root, best.beam.thread)
        world.start(chosen.thread, step(world, chosen, (), True, protocol))
        yield from root.await_children([chosen.thread])
    answers += [chosen, *sorted(others, key=lambda beam: (-beam.value, beam.thread.path))]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("rollouts", "scarce rows"), ("likelihood", "plenty"), ("depth", "small pool"), ("depth", "scarce rows")],
)
def test_f64_equals_the_oracle(name, sizes):
    protocol, seen = TREES[name], collections.Counter()
    for found in decoded(name, sizes):
        if found.stop == Stop.POOL_FULL and sizes == "small pool":
            continue
        seen["slots again"] += (found.log.index >= 0).sum() > 96
        answers: list[Beam] = []
        program = functools.partial(planting, answers=answers)
        oracle.compare(
            found, oracle.run(forward("float64"), problems()[found.problem], protocol, SEED, program=program)
        )
        voices = Method().voices(found)
        assert [found.threads[voice].path for voice in voices] == [beam.thread.path for beam in answers]
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        seen["simulations"] += int(found.own["simulations"][0])
        seen["deep"] += found.own["steps"][found.own["expanded"]].max() > 1
        seen["revisited"] += bool((found.own["visits"][1:] > 2).any())
        seen["went on"] += bool(found.own["over"][0])
        seen["none"] += not voices
        seen["pruned"] += bool((~found.own["candidate"] & ~found.own["judges"])[1:].any())
    print(name, seen)
    assert seen["deep"] > 10 and seen["simulations"] > 60, seen
    assert (seen["none"] > 1) == (protocol.policy == "depth") and (name != "likelihood" or seen["went on"] > 2), seen
    assert seen["revisited"] > 10 or protocol.policy == "depth", seen
    assert seen["slots again"] > 2, "slots of threads that nobody goes on from serve again"


def test_the_kernels_follow_from_their_own_tokens():
    need_kernel()
    engine = Engine(model("float32"), TREES["rollouts"], SIZES["scarce rows"], kernel=True)
    for found in engine.decode(problems(16), seed=SEED):

        def again(choose, found=found):
            program, problem = functools.partial(planting, answers=[]), problems(16)[found.problem]
            return oracle.run(forward("float32"), problem, TREES["rollouts"], SEED, program=program, choose=choose)

        replaying.replay(found, again, replaying.F32)


# ---- the textbook: one simulation after the other, each node a text, each request a full forward


def textbook(problem: Problem, protocol: TreeSearch) -> list[int]:
    """UCT by recursion over texts; the draws of a request are those of the child with its number. Returns the answer."""
    params, config = jax.tree.map(np.asarray, model("float64").params), model("float64").config
    root = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), problem.id), problem.sample)
    prompt, requests = [int(token) for token in problem.prompt], 0
    tree: dict[tuple, list[tuple]] = {}
    visits, worth, ended = collections.Counter(), collections.Counter(), {}

    def request(text: list[int], final: bool) -> tuple[list[int], list[int], bool]:
        nonlocal requests
        uniforms = np.asarray(reference_model.uniforms(jax.random.fold_in(root, 1 + requests)))
        requests, text, units = requests + 1, list(text), []
        while True:
            tokens = np.array(prompt + text)
            logits = reference_model.all_logits(params, config, tokens, np.arange(len(tokens)))[-1]
            token, logprob, _ = reference_model.draw(logits, uniforms[len(units)], problem)
            text.append(token)
            units.append(int(np.round(logprob * 1024)))
            stepped = token in protocol.step_ends and not final
            cut = problem.child_max_tokens and not final and len(units) == problem.child_max_tokens and not stepped
            done = token == protocol.end or len(text) == problem.max_tokens or bool(cut)
            if done or stepped:
                return text, units, done

    def simulate(node: tuple, units: tuple) -> int:
        """One simulation from a node down; nodes are named by how they were come to."""
        if node in ended:
            value = worth_of[node]
        elif node not in tree:
            tree[node] = [(*node, number) for number in range(protocol.width)]
            for child in tree[node]:
                text, new, done = request(texts[node], len(child) == protocol.steps)
                texts[child], all_units[child] = text, (*units, *new)
                worth_of[child] = sum(all_units[child]) // len(all_units[child])
                visits[child], worth[child] = 1, worth_of[child]
                if done:
                    ended[child] = True
            value = sum(worth_of[child] for child in tree[node]) // protocol.width
        else:
            times = np.array([visits[child] for child in tree[node]], np.float32)
            mean = np.array([worth[child] for child in tree[node]], np.float32) / times
            scores = np.round(
                mean + np.float32(protocol.explore * 1024) * np.sqrt(np.log(np.float32(visits[node])) / times)
            )
            child = tree[node][int(np.argmax(scores))]
            value = simulate(child, all_units[child])
        visits[node] += 1
        worth[node] += value
        return value

    texts, all_units, worth_of = {(): []}, {(): ()}, {}
    for _ in range(protocol.simulations):
        simulate((), ())
    best = ()
    while best in tree:
        best = max(tree[best], key=lambda node: visits[node])
    return texts[best] if best in ended else request(texts[best], True)[0]


def test_the_textbook_over_full_forwards_gives_the_same_answer():
    method, several = Method(), 0
    for found in decoded("likelihood", "plenty")[:10]:
        said = method.said(found, method.voices(found)[0], None).tolist()
        assert said == textbook(problems()[found.problem], TREES["likelihood"])
        several += found.own["steps"].max() > 2
    assert several > 2, "the cases are worth it"


# ---- names


def test_every_choice_can_be_configured():
    words = load(str(SHIPPED / "compact.model"))
    choices = dict(
        width=3, steps=7, simulations=9, parallel=2, explore=0.25, prune=-2.0, enough=1, answer="valued", policy="depth"
    )
    made = Method(step_ends=("<node>",), judge=configured.Rollout(("<goal>",)), **choices).protocol(words)
    assert {name: getattr(made, name) for name in choices} == choices
    assert made.judge == judges.Rollout((words.id("<goal>"),)) and made.needs.threads == 1 + 3 * 2
    asked = configured.Labelled(ask="<goal>", labels=(("1", 1.0), ("2", 0.5)), threads=2, tokens=5, quotes=False).made(
        words
    )
    assert (asked.numbers, asked.threads, asked.tokens, asked.quotes) == ((1.0, 0.5), 2, 5, False)
    assert [phrase.text for phrase in asked.labels.phrases] == ["1", "2"] and asked.ask == (words.id("<goal>"),)
    assert configured.Likelihood().made(words) == judges.Likelihood()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TreeSearch(**CHOICES, simulations=0), "tree_search.simulations is 0; at least 1 is needed"),
        (lambda: TreeSearch(**CHOICES, policy="width"), "tree_search.policy is 'width'; allowed are ucb, depth"),
        (lambda: TreeSearch(**CHOICES, answer="last"), "tree_search.answer is 'last'; allowed are visited, valued"),
        (lambda: TreeSearch(**CHOICES, explore=float("nan")), "tree_search.explore is nan"),
        (lambda: TreeSearch(**CHOICES, enough=-1), "tree_search.enough is -1"),
        (lambda: judges.Labelled(LABELS, (1.0,), ask=(1,)), "numbers has 1; each of the 3 labels needs one"),
        (lambda: judges.Labelled(LABELS, (1.0, 1.0, 1.0)), "labelled.ask is empty"),
        (lambda: configured.Labelled(labels=()), "labelled.labels is empty"),
        (lambda: Method(parallel=1.5), "tree_search.parallel is 1.5; it must be a whole number of 1"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
