"""Rounds of threads that read each other's answers, on 20 questions of reasoning-gym's gsm_symbolic, with SmolLM2-135M-Instruct.

    python -m experiments.evaluate --config configs/rounds.py

Three published methods as configurations of one: PaCoRe at its lowest setting (four answers, then one that reads them all, in an
order by chance); RSA, in which a population of four reads two of its own answers each, twice, and a vote selects; PDR, which
distils four drafts into one text and refines that. The words of their prompts are ours. SmolLM2 has no reasoning to leave out;
for a model that thinks give `--methods.pacore.rollout.method.reasoning "</think>"`.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.evaluate.select import Likeliest, Majority, Verifier
from apr_jax.methods import Rounds, Sampling
from apr_jax.methods.rounds import Template
from apr_jax.protocols.rounds import Round
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from configs.smollm2_methods import MODEL, QUEUES, SAMPLES, SEQUENTIAL

READ = Template()
DISTIL = Template(
    header="\n\nDraft {number}:\n",
    after="\n\nSum up what these drafts agree on, where they differ, and which steps are right.",
)
REFINE = Template(header="\n\nNotes:\n", after="\n\nUse these notes to answer the question.")
PACORE = Rounds(end="", rounds=(Round(4), Round(1)), templates=(READ,))
RSA = Rounds(end="", rounds=(Round(4), Round(4, reads=2), Round(4, reads=2)), templates=(READ,))
PDR = Rounds(
    end="", rounds=(Round(4), Round(1, template=0), Round(1, template=1)), templates=(DISTIL, REFINE), shuffled=False
)

ROLLOUT = dataclasses.replace(
    SAMPLES,
    method=PACORE,
    sampling=Sampling(temperature=0.6, top_p=0.95, max_tokens=192, child_max_tokens=128),
    sizes=Sizes(problems=10, lanes=4, rows=40, threads=13, slots=4096, log=6144, **QUEUES),
)


def config() -> EvaluateConfig:
    rounds = {
        name: dataclasses.replace(ROLLOUT, method=method) for name, method in {"pacore": PACORE, "pdr": PDR}.items()
    }
    rsa = dataclasses.replace(ROLLOUT, method=RSA)
    return EvaluateConfig(
        methods={
            "sequential": MethodConfig(SEQUENTIAL),
            "self_consistency": MethodConfig(SAMPLES, select=Majority(), also=(Verifier(),)),
            **{name: MethodConfig(rollout) for name, rollout in rounds.items()},
            "rsa": MethodConfig(rsa, select=Majority(), also=(Likeliest(), Verifier())),
        },
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/rounds",
    )
