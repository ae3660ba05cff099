"""Every method on one real language model, SmolLM2-135M-Instruct: 20 questions of reasoning-gym's gsm_symbolic.

    python -m experiments.fetch_smollm2
    pip install -r requirements-gym.txt
    python -m experiments.compare --config configs/compare_smollm2.py

The model was trained for none of the formats. What can be seen is that prompts, words and answers are read as they should be,
and what each method costs; `samples.md` beside the results has transcripts of each. A budget is the number of threads at once. The
value of a state is the model's own: beams are ranked by the mean log-probability of their tokens, thoughts by what the model says
of them, nodes of the tree search by a rollout. `reward_search` alone knows more: its reward checks the sums of a beam.
"""

import dataclasses
import re
from collections.abc import Sequence

from apr_jax.decode import Sizes
from apr_jax.evaluate.comparison import CompareConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Likeliest, Majority, Only, Selector, Weighted
from apr_jax.methods import (
    AprText,
    BeamSearch,
    DeepConf,
    EarlyVote,
    Gambit,
    LaunchPrune,
    Method,
    ParallelProbe,
    RewardSearch,
    Sampling,
    TreeOfThoughts,
    TreeSearch,
)
from apr_jax.methods.apr_text import CALL, CALL_END, RESULTS, RESULTS_END, Search
from apr_jax.methods.judges import Labelled, Rollout
from apr_jax.methods.reward_search import Reward
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tasks.prompt import PLAIN, Prompt, Shot
from apr_jax.tokenizer import TextCodec
from configs import beside, group_think, hogwild, outlined, parathinker, rounds, skeleton, smollm2_methods
from configs.smollm2_methods import EXAMPLES, MODEL, QUEUES, SAMPLES, SEQUENTIAL

BUDGET = 4
MARK = "####"
MARKED = Prompt(system=f"Think step by step, then write {MARK} and the final answer, a number, and nothing after it.")
_SUM = re.compile(r"(\d+) *([-+*]) *(\d+) *= *(\d+)")
_PART = "Node #{number}: {task}\n"


@dataclasses.dataclass(frozen=True)
class Sums(Reward):
    """The share of the sums in a text that are right; 0.5 for a text without sums."""

    def scores(self, beams: Sequence[Sequence[int]], codec: TextCodec) -> list[float]:
        return [self._score(codec.decode(list(beam))) for beam in beams]

    def _score(self, text: str) -> float:
        results = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
        right = [results[sign](int(a), int(b)) == int(c) for a, sign, b, c in _SUM.findall(text)]
        return sum(right) / len(right) if right else 0.5


@dataclasses.dataclass(frozen=True)
class Parts(Search):
    """Parts of a question in APR's text: a node is a part, what its thread says last is the result."""

    def prompts(self, text: str, nodes: Sequence[str]) -> list[str] | None:
        parts = dict(re.findall(r"^Node #(\S+): (.+)$", text, re.MULTILINE))
        return None if set(nodes) - set(parts) else [f"Question: {parts[node]}\n\nAnswer:" for node in nodes]

    def result(self, text: str) -> str | None:
        return text.rpartition("Answer:")[2].strip().rpartition("\n")[2] or None


def calls() -> Prompt:
    """Shows a call and its results in APR's text."""

    def shot(question: str, parts: tuple[tuple[str, str, str], ...], conclusion: str) -> Shot:
        numbered = list(enumerate(parts))
        described = "".join(_PART.format(number=n, task=task) for n, (task, _, _) in numbered)
        called = "".join(f"<Start Sub Search {n} at level 1> Moving to Node #{n}\n" for n, _ in numbered)
        found = "".join(
            f"<Goal Reached in Sub Search {n} at level 1 at Node #{n}>\n{steps}\n" for n, (_, steps, _) in numbered
        )
        return Shot(question, f"{described}{CALL}\n{called}{CALL_END}\n{RESULTS}\n{found}{RESULTS_END}\n{conclusion}")

    return Prompt(shots=tuple(shot(*example) for example in EXAMPLES), chat_template=PLAIN)


SEARCH = dataclasses.replace(
    SAMPLES,
    sizes=Sizes(problems=10, lanes=BUDGET, rows=40, threads=96, slots=6144, log=8192, **QUEUES),
)
STEPS = dict(end="", step_ends=("\n", "\n\n"), width=2, steps=12)


def searches() -> dict[str, Method]:
    """Searches over lines of text."""
    beams = dict(beams=BUDGET // 2, **STEPS)
    nodes = TreeSearch(judge=Rollout(), simulations=8, parallel=2, **STEPS)
    return {
        "beam_search": BeamSearch(**beams),
        "dvts": BeamSearch(subtrees=2, **beams),
        "reward_search": RewardSearch(reward=Sums(), **beams),
        "tree_of_thoughts": TreeOfThoughts(judge=Labelled(threads=1, tokens=8), **beams),
        "tree_search": nodes,
        "depth_first": dataclasses.replace(nodes, policy="depth", parallel=1, prune=-1.5),
    }


def allocations() -> dict[str, tuple[Method, Selector]]:
    """Methods that give up some samples on the way; all weigh by log-probabilities, because no scorer is shipped."""
    gambit = Gambit(
        BUDGET, end="", thought_ends=("\n",), every=8, warmup=48, threshold=0.5, replace=1, branches=8, score="logprob"
    )
    return {
        "deepconf": (DeepConf(BUDGET, end="", warmup=2, percentile=10, window=32), Weighted()),
        "launch_prune": (LaunchPrune(BUDGET, end="", keep=2, after=64, score="logprob"), Majority()),
        "gambit": (gambit, Weighted()),
    }


def config() -> CompareConfig:
    made: dict[str, RolloutConfig] = {"sequential": SEQUENTIAL}
    select: dict[str, Selector] = {}
    marked = dataclasses.replace(SEARCH, ask=MARKED)
    for name, selector in (("self_consistency", Majority()), ("weighted_vote", Weighted()), ("best_of_n", Likeliest())):
        made[name], select[name] = SAMPLES, selector
    made["early_vote"] = dataclasses.replace(marked, method=EarlyVote(BUDGET, end="", answer=MARK))
    made["parallel_probe"] = dataclasses.replace(
        marked, method=ParallelProbe(BUDGET, end="", answer=MARK, close=f"\n{MARK}", every=64, warmup=1, stable=2)
    )
    made |= {name: dataclasses.replace(SEARCH, method=method) for name, method in searches().items()}
    select |= {"early_vote": Majority(), "parallel_probe": Majority(), "dvts": Majority()}
    for name, (method, selector) in allocations().items():
        made[name], select[name] = dataclasses.replace(SEARCH, method=method), selector
    for prefix, each in (("", rounds), ("", skeleton), ("", hogwild), ("group_think_", group_think), ("", beside),
                         ("parathinker_", parathinker), ("", smollm2_methods)):  # fmt: skip
        methods = {prefix + name: method for name, method in each.config().methods.items()}
        made |= {name: method.rollout for name, method in methods.items() if name not in select}
        select |= {name: method.select for name, method in methods.items()}
    made |= outlined.rollouts()
    made["apr_text"] = dataclasses.replace(
        smollm2_methods.FORK,
        method=AprText(search=Parts(), context=1024),
        ask=calls(),
        sampling=Sampling(temperature=0.7, top_p=0.95, max_tokens=96),
        sizes=Sizes(problems=10, lanes=4, rows=24, threads=24, slots=4096, log=6144, host=4096, **QUEUES),
    )
    return CompareConfig(
        methods={name: MethodConfig(rollout, select=select.get(name, Only())) for name, rollout in made.items()},
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        makespan=tuple(range(1, 17)),
        shown=1,
        output="results/compare_smollm2",
        resume=True,
    )
