"""Compare methods at a ladder of budgets: a table with intervals, accuracy against cost, and who is adaptive.

    python -m experiments.compare
    python -m experiments.compare --families self_consistency beam_search --budgets 2 4 --problems-per-setting 50
    python -m experiments.compare --families self_consistency --model path/of/a/model

The folder of the results holds what `experiments.evaluate` writes, for each method and budget, and comparison.md,
comparison.json and front_COST.png. Methods whose control words the tokenizer lacks are left out, and named with the reason.
Ctrl-C ends it with exit code 130; the same command goes on where it stopped.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import rich.console

from apr_jax import settings
from apr_jax.evaluate import comparison, report, runner
from apr_jax.evaluate.methods import Interrupted
from apr_jax.evaluate.show import comparison as shown
from apr_jax.pretrained.tokenizer import load


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, "configs/compare_countdown.py")
    try:
        evaluation, left_out = comparison.chosen(config, load(config.tokenizer))
        for name, reason in left_out.items():
            print(f"left out: {name}: {reason}", file=sys.stderr)
        settings.claim(evaluation, evaluation.output, "output", shown.FILES)
        results = runner.run(evaluation)
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    except (Interrupted, KeyboardInterrupt):
        print(f"interrupted; the same command goes on with what is in {config.output}", file=sys.stderr)
        return 130
    entries, found = {name: result.entry for name, result in results.items()}, comparison.compared(config, results)
    folder, console = Path(evaluation.output), rich.console.Console()
    shown.write(folder, entries, found, left_out)
    console.print(report.table(entries, len(next(iter(results.values())).outcomes), console.width))
    for line in report.machines(entries):
        console.print(line, style="dim", highlight=False, markup=False)
    console.print(f"results are in {folder}, begin with {folder}/comparison.md")
    for line in report.judge_failures(entries):
        print(line, file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
