"""Search over steps on Countdown, and votes that end early, beside the sequential method and self-consistency.

    python -m experiments.evaluate --config configs/countdown_search.py

A step of the shipped SoS+ model ends where it opens the next node of its search (`<node>`, `<sub>`), leaves one (`<exit>`), or
names its solution (`<goal>`). Beams are ranked by the mean log-probability of their tokens, thoughts by the model's own estimate:
how sure it is of the first number of a solution, were it to name one now.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import First, Likeliest, Majority, Verifier, Weighted
from apr_jax.methods import BeamSearch, EarlyVote, Samples, Sampling, TreeOfThoughts, TreeSearch
from apr_jax.methods.judges import Asked, Rollout
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tasks.countdown.task import Countdown
from configs import demo

STEPS = ("<node>", "<sub>", "<exit>", "<goal>")
BEAM = RolloutConfig(
    method=BeamSearch(step_ends=STEPS, beams=2, width=3, steps=40, distinct=True),
    checkpoint=demo.SOS,
    sampling=Sampling(temperature=0.7, max_tokens=768),
    sizes=Sizes(
        problems=16, lanes=6, rows=96, threads=256, slots=8192, page_size=8, log=16384, log_page_size=8, **demo.QUEUES
    ),
)
SAMPLES = dataclasses.replace(
    demo.SAMPLES,
    method=Samples(5),
    sizes=dataclasses.replace(demo.SAMPLES.sizes, problems=16, lanes=5, rows=80, threads=6, slots=4096, log=4096),
)
BUDGETS = tuple(First(count, Majority()) for count in range(1, 5))  # read off the same five samples
SEARCH = TreeSearch(step_ends=STEPS, width=3, steps=40, distinct=True, simulations=24)
SEARCHES = {
    "mcts": dataclasses.replace(SEARCH, judge=Rollout(says=("<goal>",)), explore=0.5, answer="valued", enough=1),
    "mcts_likelihood": dataclasses.replace(SEARCH, explore=0.2),
    "depth_first": dataclasses.replace(
        SEARCH, judge=Asked(quotes=False), policy="depth", prune=-1.0, answer="valued", enough=1
    ),
}
THOUGHTS = TreeOfThoughts(step_ends=STEPS, beams=2, width=3, steps=16, distinct=True, judge=Asked(quotes=False))


def config() -> EvaluateConfig:
    dvts = dataclasses.replace(BEAM.method, subtrees=2)
    methods = {"beam_search": BEAM.method, "dvts": dvts, "tree_of_thoughts": THOUGHTS} | SEARCHES
    rollouts = {name: dataclasses.replace(BEAM, method=method) for name, method in methods.items()}
    return EvaluateConfig(
        methods={
            "sequential": MethodConfig(demo.SEQUENTIAL),
            "self_consistency": MethodConfig(SAMPLES, select=Majority(), also=(Weighted(), *BUDGETS, Verifier())),
            "early_vote": MethodConfig(dataclasses.replace(SAMPLES, method=EarlyVote(5)), select=Majority()),
            **{name: MethodConfig(each, also=(Likeliest(), Verifier())) for name, each in rollouts.items()},
        },
        task=Countdown(problems_per_setting=10),
        tokenizer=str(SHIPPED / "compact.model"),
    )
