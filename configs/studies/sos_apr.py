"""SoS+ in one thread against APR, the same model trained on the same problems (APR, arXiv 2504.15466, section 5).

    python -m experiments.reproduce sos_apr
    python -m experiments.reproduce sos_apr --smoke True

Both twins are trained from nothing in two stages, as the shipped ones were, with three seeds; about an hour and a half each.
"""

from apr_jax.sweep.study import MEASURES, Arm, Claim, Measure, Stage, Study
from configs.studies import rl_apr

SFT = "experiments.train_sft"
TOKENS, LATENCY, CONTEXT = 640, 160, 256
SMALL = {
    "data.folder": "{folder}/data",
    "data.train": 60, "data.held_out": 6, "data.processes": 1, "steps": 2, "optimizer.warm_up": 1, "evaluate_every": 2,
    "tensorboard": False,
}  # fmt: skip


def stages(name: str) -> tuple[Stage, Stage]:
    """Both stages; the seeds share the data, which whoever comes first makes."""
    second = {"start": "{before}/model.safetensors"}
    return Stage(f"configs/sft_{name}.py", SFT), Stage(f"configs/sft_{name}_two.py", SFT, second)


def config() -> Study:
    measures = MEASURES | {
        f"accuracy within {TOKENS} tokens": Measure(within=("generated", TOKENS)),
        f"accuracy within a path of {LATENCY}": Measure(within=("critical_path", LATENCY)),
        f"accuracy within a context of {CONTEXT}": Measure(within=("peak_context", CONTEXT)),
    }
    published = ("+13.5 points", "+17.9 points", "+23.4 points")
    sos = {"methods.sequential.rollout.checkpoint": "{trained}/model.safetensors"}
    return Study(
        question="Does APR solve more than SoS+ within the same tokens, the same latency and the same context?",
        arms=(
            Arm("SoS+", "sequential", stages("sos"), evaluate=sos),
            Arm("APR", "apr", stages("apr"), evaluate=rl_apr.CHECKPOINT),
        ),
        claims=tuple(
            Claim("APR", "SoS+", name, published=found)
            for name, found in zip(list(measures)[len(MEASURES) :], published, strict=True)
        ),
        evaluation=rl_apr.EVALUATION,
        options=rl_apr.FOUR,
        hours=9,
        small=rl_apr.SMALL | {SFT: SMALL},
        measures=measures,
        validation="held_out/loss",  # nothing is chosen: there is one try
        output="results/studies/sos_apr",
    )
