"""A comparison: methods at a ladder of budgets, on the same questions, with the uncertainty of what is found.

A comparison is an evaluation whose methods are called NAME@BUDGET. A budget is what the configuration says it is: samples,
beams, tokens. The results of a method at several budgets are a curve of accuracy against cost; the points that no other point
beats in both are the front. Intervals are percentiles of means over questions drawn with replacement (Efron 1979).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from apr_jax.decode.problem import whole
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, Result
from apr_jax.evaluate.outcomes import Outcome
from apr_jax.tokenizer import TextCodec

COSTS = ("critical_path", "generated_tokens", "wall_s")
THIRDS = ("easy", "middle", "hard")


def family(name: str) -> str:
    """The method of a NAME@BUDGET."""
    return name.rpartition("@")[0] or name


def budget(name: str) -> int:
    """The budget of a NAME@BUDGET, 0 if there is none.

    Raises:
        ValueError: it is not a whole number.
    """
    if "@" not in name:
        return 0
    text = name.rpartition("@")[2]
    if not text.isdecimal():
        raise ValueError(
            f"methods: {name} has the budget {text!r}; it must be a whole number, as in self_consistency@4"
        )
    return int(text)


@dataclasses.dataclass(frozen=True)
class CompareConfig(EvaluateConfig):
    """A comparison.

    Attributes: as of `EvaluateConfig`, whose methods are called NAME@BUDGET, or NAME if they have no budget, and

        families: names of the methods to run, without budgets; empty: all.
        budgets: budgets to run; empty: all. Methods without a budget are run in any case.
        model: path of a model that all methods use; empty: each uses its own.
        draws: how often questions are drawn for an interval.
        share: of the drawn means that lie in an interval.
    """

    families: tuple[str, ...] = ()
    budgets: tuple[int, ...] = ()
    model: str = ""
    draws: int = 1000
    share: float = 0.95

    def __post_init__(self):
        super().__post_init__()
        names = list(self.methods)
        for what, given, known in (
            ("families", self.families, list(dict.fromkeys(map(family, names)))),
            ("budgets", self.budgets, sorted({budget(name) for name in names} - {0})),
        ):
            for one in given:
                if one not in known:
                    raise ValueError(f"{what}: {one!r} is not one of {', '.join(map(str, known))}")
        whole("draws", self.draws, 1)
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; it must lie between 0 and 1, as 0.95")


def chosen(config: CompareConfig, codec: TextCodec) -> tuple[EvaluateConfig, dict[str, str]]:
    """The evaluation that a comparison asks for, and the methods that do not fit the tokenizer, with the reason.

    Raises:
        ValueError: no method is left.
    """
    methods: dict[str, MethodConfig] = {}
    left_out: dict[str, str] = {}
    for name, method in config.methods.items():
        wanted = (not config.families or family(name) in config.families) and name in (config.only or [name])
        if not wanted or (config.budgets and budget(name) not in (0, *config.budgets)):
            continue
        rollout = method.rollout
        if config.model:
            rollout = dataclasses.replace(rollout, checkpoint=config.model)
        try:
            rollout.method.protocol(rollout.method.spoken(codec))
        except ValueError as error:
            left_out[name] = str(error)
            continue
        methods[name] = dataclasses.replace(method, rollout=rollout)
    if not methods:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"no method is left to compare{': ' + reasons if reasons else ''}")
    same = {field.name: getattr(config, field.name) for field in dataclasses.fields(EvaluateConfig)}
    return EvaluateConfig(**same | {"methods": methods}), left_out


def interval(values: Sequence[float], draws: int, share: float, seed: int = 0) -> tuple[float, float]:
    """The bootstrap interval of a mean.

    Args:
        values: one a question.
        draws: how often as many questions are drawn.
        share: of the drawn means that lie in the interval.
    """
    values = np.asarray(values, float)
    picked = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picked].mean(axis=1), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def front(entries: Mapping[str, Mapping], cost: str) -> list[str]:
    """The methods that no other one beats: none costs no more and is more accurate, or costs less and is as accurate.

    Args:
        entries: entries of `summary.json` by name.
        cost: the key of the cost.

    Returns:
        Their names, the cheapest first.
    """
    found: list[str] = []
    for name in sorted(entries, key=lambda name: (entries[name][cost], -entries[name]["accuracy"])):
        if not found or entries[name]["accuracy"] > entries[found[-1]]["accuracy"]:
            found.append(name)
    return found


def difficulty(outcomes: Mapping[str, Sequence[Outcome]]) -> np.ndarray:
    """The share of all methods and budgets that gave no right answer to each question, [questions]."""
    return 1 - np.mean([[outcome.correct for outcome in found] for found in outcomes.values()], axis=0)


@dataclasses.dataclass(frozen=True)
class Adaptivity:
    """How a method's threads and tokens follow the difficulty of questions.

    Attributes:
        threads, generated: means over the third of the questions that are easiest, the middle third and the hardest third.
        rank: Spearman's rank correlation of generated tokens with difficulty; NaN if either is the same for all questions.
    """

    threads: tuple[float, ...]
    generated: tuple[float, ...]
    rank: float


def adaptivity(outcomes: Sequence[Outcome], hard: np.ndarray) -> Adaptivity:
    """See `Adaptivity`; questions that are equally difficult keep their order.

    Args:
        outcomes: of a method, one a question.
        hard: the difficulty of each question.
    """
    thirds = [part for part in np.array_split(np.argsort(hard, kind="stable"), len(THIRDS)) if len(part)]
    means = lambda field: tuple(float(np.mean([getattr(outcomes[i], field) for i in part])) for part in thirds)
    generated = np.array([outcome.generated for outcome in outcomes], float)
    varies = np.ptp(generated) > 0 and np.ptp(hard) > 0
    rank = float(scipy.stats.spearmanr(generated, hard).statistic) if varies else float("nan")
    return Adaptivity(means("threads"), means("generated"), rank)


def compared(config: CompareConfig, results: Mapping[str, Result]) -> dict[str, dict]:
    """What a comparison adds to the entry of each method.

    Returns:
        By name of the method: family, budget, the interval of its accuracy, the mean difference of its accuracy from the first
        method's and the interval of that, adaptivity (`easy`, `middle`, `hard`: threads and generated tokens; `rank`), and the
        fronts that it is on.
    """
    right = {name: np.array([o.correct for o in result.outcomes], float) for name, result in results.items()}
    first = next(iter(right.values()))
    entries = {name: result.entry for name, result in results.items()}
    fronts = {cost: front(entries, cost) for cost in COSTS}
    hard = difficulty({name: result.outcomes for name, result in results.items()})
    found = {}
    for name, result in results.items():
        follows, difference = adaptivity(result.outcomes, hard), right[name] - first
        thirds = zip(THIRDS, follows.threads, follows.generated, strict=False)
        found[name] = {
            "family": family(name),
            "budget": budget(name),
            "accuracy_interval": interval(right[name], config.draws, config.share),
            "difference": float(difference.mean()),
            "difference_interval": interval(difference, config.draws, config.share),
            **{third: {"threads": threads, "generated_tokens": generated} for third, threads, generated in thirds},
            "rank": follows.rank,
            "fronts": [cost for cost, names in fronts.items() if name in names],
        }
    return found
