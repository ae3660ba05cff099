"""What a study has found: means of the arms, and a verdict on each claim."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from apr_jax import files, record
from apr_jax.evaluate import outcomes, statistics
from apr_jax.evaluate.outcomes import Outcome
from apr_jax.evaluate.statistics import Difference
from apr_jax.sweep.study import Arm, Claim, Measure, Study

Values = Mapping[str, Mapping[str, np.ndarray]]
"""Of each arm and measure: [S, P], a row for each seed, a column for each problem."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of a claim.

    Attributes:
        claim: the claim.
        difference: see `apr_jax.evaluate.statistics.Difference`.
        p: of the difference, or of the equivalence where equality is claimed, corrected for the number of claims (Holm).
        resolvable: the smallest true difference that would be found in four of five repetitions.
        verdict: "reproduced", "contradicted", "not resolved", or "smaller than the target".
    """

    claim: Claim
    difference: Difference
    p: float
    resolvable: float
    verdict: str


def values(study: Study) -> Values:
    """The measures of every problem, from the transcripts of the test.

    Raises:
        ValueError: two evaluations were on different problems.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    choice = files.read_json(study.root / "choice.json")
    folders: dict[str, list] = {}
    for run in study.tests(choice):
        folders.setdefault(run.point["arm"], []).append(run.folder)
    questions = None
    for arm in study.arms:
        rows = []
        for folder in folders[arm.name]:
            asked, measured = _outcomes(arm, folder)
            if questions not in (None, asked):
                raise ValueError(
                    f"{folder} answers other problems than the evaluations before; pairs need the same problems"
                )
            questions = asked
            rows.append(measured)
        found[arm.name] = {
            name: np.array([[_of(o, m) for o in row] for row in rows]) for name, m in study.measures.items()
        }
    return found


def _outcomes(arm: Arm, folder) -> tuple[list[str], list[Outcome]]:
    pairs = list(record.read(folder / f"transcripts_{arm.method}.jsonl"))
    return (
        [line["question"] for _, line in pairs],
        [outcomes.outcome(transcript, line["answer"], line["correct"]) for transcript, line in pairs],
    )


def _of(outcome: Outcome, measure: Measure) -> float:
    counts = measure.within is None or getattr(outcome, measure.within[0]) <= measure.within[1]
    return float(getattr(outcome, measure.field)) * counts


def arms(found: Values) -> dict[str, dict[str, Difference]]:
    """The mean of each measure in each arm with its interval over problems and seeds (its difference from 0)."""
    return {
        arm: {name: statistics.difference(each, np.zeros((1, each.shape[1]))) for name, each in measures.items()}
        for arm, measures in found.items()
    }


def judge(study: Study, found: Values, level: float = 0.05) -> list[Finding]:
    """The claims, corrected for their number."""
    pairs = [(found[claim.arm][claim.measure], found[claim.than][claim.measure]) for claim in study.claims]
    each = [statistics.difference(a, b, claim.margin) for (a, b), claim in zip(pairs, study.claims, strict=True)]
    # Where equality is claimed, it is the equivalence that must be shown.
    tested = [d.equivalence if c.wants == "equal" else d.p for d, c in zip(each, study.claims, strict=True)]
    corrected = statistics.holm(tested)
    return [
        Finding(claim, one, p, statistics.resolvable(one.error, level), _verdict(claim, one, p, level))
        for claim, one, p in zip(study.claims, each, corrected, strict=True)
    ]


def _verdict(claim: Claim, found: Difference, p: float, level: float) -> str:
    if claim.wants == "equal":
        if p < level:
            return "reproduced"
        outside = found.low > claim.margin or found.high < -claim.margin
        return "contradicted" if outside else "not resolved"
    if p >= level:
        return "not resolved"
    if (found.mean > 0) != (claim.wants == "more"):
        return "contradicted"
    return "reproduced" if abs(found.mean) >= claim.target else "smaller than the target"
