"""Numbers of the samples of a step for reports: by trajectory, by length, and as a row of a table.

Axes: n trajectories.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from apr_jax.evaluate import metrics
from apr_jax.methods import Method
from apr_jax.rl.rewards import Case

TABLE = {
    "reward": ("reward", "{:.3f}"),
    "right": ("accuracy", "{:.1%}"),
    "path": ("critical_path", "{:.1f}"),
    "threads": ("threads", "{:.2f}"),
    "forked": ("forked", "{:.0%}"),
    "entropy": ("other_entropy", "{:.3f}"),
    "at forks": ("fork_entropy", "{:.3f}"),
    "mismatch": ("gate/largest", "{:.1e}"),
    "drawn/s": ("rollout_tokens_per_second", "{:,.0f}"),
    "learnt/s": ("update_tokens_per_second", "{:,.0f}"),
    "host": ("host_share", "{:.1%}"),
    "seconds": ("seconds", "{:.1f}"),
}
"""The columns of the table in the terminal: heading, name of the number, format."""


def columns(cases: Sequence[Case], method: Method) -> dict[str, Float[np.ndarray, " n"]]:
    """Numbers of each trajectory by name; kinds of errors and of stops stand there only if they occur."""
    of = lambda measure: np.array([measure(case.transcript) for case in cases], np.float64)
    errors = [method.format_errors(case.transcript) for case in cases]
    stops = [case.transcript.stop.name.lower() for case in cases]
    return {
        "accuracy": np.array([case.correct for case in cases], np.float64),
        "critical_path": of(metrics.critical_path),
        "threads": of(metrics.threads),
        "forked": of(metrics.forked),
        "width": of(lambda transcript: next(iter(metrics.widths(transcript)), 0)),
        "waves": of(lambda transcript: len(metrics.widths(transcript))),
        "tokens": of(metrics.generated_tokens),
        "malformed": np.array([not case.well_formed for case in cases], np.float64),
        **{f"format_errors/{kind}": of_kind for kind, of_kind in _by_kind(errors).items()},
        **{f"stop/{name}": np.array([float(stop == name) for stop in stops]) for name in sorted(set(stops))},
    }


def _by_kind(counts: Sequence[Mapping[str, int]]) -> dict[str, np.ndarray]:
    kinds = sorted({kind for count in counts for kind in count})
    return {kind: np.array([count.get(kind, 0) for count in counts], np.float64) for kind in kinds}


def by_length(path: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Accuracy by length of the critical path, and how many samples are so long; `/64` are those of 33 to 64 tokens.

    Args:
        path: tokens on the critical path of each trajectory.
        correct: its grade, 0 to 1.
    """
    bins = 2 ** np.ceil(np.log2(np.maximum(path, 1))).astype(int)
    found: dict[str, float] = {}
    for top in np.unique(bins):
        found[f"accuracy_by_length/{top}"] = float(correct[bins == top].mean())
        found[f"samples_by_length/{top}"] = float((bins == top).sum())
    return found


def row(values: Mapping[str, float]) -> dict[str, str]:
    """The cells of a step in the table, by heading; a dash for what the step does not have, as when nothing was learnt."""
    return {head: form.format(values[name]) if name in values else "-" for head, (name, form) in TABLE.items()}
