"""Every method on Countdown at a ladder of budgets, each with the shipped model that it fits.

    python -m experiments.compare
    python -m experiments.compare --problems-per-setting 100 --output results/compare_200

A budget is the number of threads that a method may keep at once: samples, candidates of a step, threads of a round. Sequential
search and APR, which choose for themselves, have none. The value of a state is the model's own estimate: beams are ranked by the
mean log-probability of their tokens, thoughts by how sure the model is of the first number of a solution, nodes of the tree search
by whether a rollout names a solution; nothing knows the answer. The model was trained for the sequential method alone: it has
never seen the answers that rounds and probes put before it.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.comparison import CompareConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Likeliest, Majority, Only, Selector, Weighted
from apr_jax.methods import BeamSearch, DeepConf, EarlyVote, Gambit, LaunchPrune, Method, ParallelProbe, Rounds, Samples
from apr_jax.methods.rounds import Template
from apr_jax.protocols.rounds import Round
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tasks.countdown.task import Countdown
from configs import countdown_search, demo

BUDGETS = (1, 2, 4, 8)
STEPS = countdown_search.STEPS


def samples(method: Method, budget: int) -> RolloutConfig:
    """A rollout of so many samples."""
    sizes = dataclasses.replace(
        demo.SAMPLES.sizes, problems=max(4, 64 // budget), lanes=budget, rows=64, threads=budget + 2,
        slots=1024 * budget, log=1024 * budget,
    )  # fmt: skip
    return dataclasses.replace(demo.SAMPLES, method=method, sizes=sizes)


def search(method: Method, budget: int) -> RolloutConfig:
    """A rollout that decodes so many candidates at once."""
    sizes = Sizes(
        problems=max(4, 64 // budget), lanes=budget, rows=64, threads=80 * budget, slots=2048 * budget, page_size=8,
        log=4096 * budget, log_page_size=8, **demo.QUEUES,
    )  # fmt: skip
    return dataclasses.replace(countdown_search.BEAM, method=method, sizes=sizes)


def allocation(budget: int) -> dict[str, Method]:
    """Methods that give up some of so many samples on the way; all weigh by log-probabilities, because no scorer is shipped."""
    ends = dict(thought_ends=STEPS, every=8, warmup=32, threshold=0.5, replace=max(budget // 4, 1), branches=4 * budget)
    return {
        "deepconf": DeepConf(budget, warmup=max(budget // 3, 1), percentile=10, window=32),
        "launch_prune": LaunchPrune(budget, keep=max(budget // 3, 1), after=64, score="logprob"),
        "parallel_probe": ParallelProbe(budget, every=64, answer_tokens=48, warmup=2, stable=4),
        "gambit": Gambit(budget, **ends, score="logprob"),
    }


def config() -> CompareConfig:
    methods = {"sequential": MethodConfig(demo.SEQUENTIAL), "apr": MethodConfig(demo.SPAWN_JOIN)}

    def add(name: str, budget: int, rollout: RolloutConfig, select: Selector) -> None:
        methods[f"{name}@{budget}"] = MethodConfig(rollout, select=select)

    for budget in BUDGETS:
        drawn = samples(Samples(budget), budget)
        add("self_consistency", budget, drawn, Majority())
        add("weighted_vote", budget, drawn, Weighted())
        add("best_of_n", budget, drawn, Likeliest())
        if budget < 2:
            continue
        add("early_vote", budget, samples(EarlyVote(budget), budget), Majority())
        beam = BeamSearch(step_ends=STEPS, beams=max(budget // 2, 1), width=2, steps=40, distinct=True)
        add("beam_search", budget, search(beam, budget), Likeliest())
        thoughts = dataclasses.replace(countdown_search.THOUGHTS, beams=max(budget // 2, 1), width=2)
        add("tree_of_thoughts", budget, search(thoughts, budget), Likeliest())
        rounds = Rounds(
            end="<end>",
            rounds=(Round(budget), Round(1)),
            templates=(Template(header="", after=""),),
            reasoning="<goal>",
        )
        add("rounds", budget, samples(rounds, budget), Only())
        nodes = dataclasses.replace(
            countdown_search.SEARCHES["mcts"], width=2, simulations=3 * budget, parallel=budget // 2
        )
        add("tree_search", budget, search(nodes, 2 * budget), Only())
        for name, method in allocation(budget).items() if budget >= 4 else ():
            add(name, budget, search(method, budget), Weighted() if name in ("deepconf", "gambit") else Majority())
        if budget >= 4:
            dvts = dataclasses.replace(beam, subtrees=budget // 2)
            add("dvts", budget, search(dvts, budget), Majority())
    return CompareConfig(
        methods=methods,
        task=Countdown(problems_per_setting=10),
        tokenizer=str(SHIPPED / "compact.model"),
        makespan=tuple(range(1, 17)),
        shown=2,
        output="results/compare_countdown",
        resume=True,
    )
