"""Evaluate methods on a task: one table, transcripts, plots and a page of thread timelines.

    python -m experiments.evaluate --config configs/demo.py
    python -m experiments.evaluate --problems-file my_problems.jsonl --output results/mine
    python -m experiments.evaluate --config configs/language_math.py --problems-file my_questions.jsonl
    python -m experiments.evaluate --methods.apr.rollout.sampling.max-tokens 300 --only apr

The folder of the results holds summary.json, settings.json, report.md, samples.md (one transcript a method, to be read),
transcripts_METHOD.jsonl (+ .npz), two plots, threads_METHOD.png (one problem that forked, solved if any was) and timeline.html.
Ctrl-C ends it with exit code 130; the methods that are finished by then are written as always. What was decoded is kept in
rollouts/ as soon as a method is done or was ended, before it is judged: the same command with `--resume True` decodes only
what is missing, and judges all of it again. An answer on which the judge fails counts as wrong, and is counted as such.
"""

import sys
import time
from collections.abc import Sequence

import rich.console

from apr_jax import settings
from apr_jax.evaluate import report, runner
from apr_jax.evaluate.methods import Interrupted


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, "configs/demo.py")
    print(settings.describe(config), flush=True)
    start = time.monotonic()
    try:
        results = runner.run(config)
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    except Interrupted as interrupted:
        print(f"interrupted: {interrupted}; --resume True goes on with what is in {config.output}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:  # while answers were judged, or before there was anything to keep
        print(
            f"interrupted; what was decoded is kept, --resume True goes on with what is in {config.output}",
            file=sys.stderr,
        )
        return 130
    entries = {name: result.entry for name, result in results.items()}
    console = rich.console.Console()
    console.print(report.table(entries, len(next(iter(results.values())).outcomes), console.width))
    for line in (*report.machines(entries), *report.format_errors(entries)):
        console.print(line, style="dim", highlight=False, markup=False)
    console.print(
        f"{time.monotonic() - start:.0f} s; results are in {config.output}, open {config.output}/timeline.html"
    )
    for line in (lines := report.judge_failures(entries)):
        print(line, file=sys.stderr)
    if lines:
        print("mend the judge, then --resume True judges again without decoding", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
