"""See whether a published finding holds: train the arms, choose on validation problems, test once, judge the claims.

    python -m experiments.reproduce                      # the studies, with the hours that they take
    python -m experiments.reproduce rl_apr
    python -m experiments.reproduce rl_apr --smoke True  # everything, in the smallest way

Every run is a process in a folder of its own; killed in whatever way, the same command goes on. It leaves table, plots and
summary.json in the results folder and a page in docs/studies/. Exit codes: 0 the study is complete, 1 a run has failed, 2 something
in the configuration is wrong, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from apr_jax import settings
from apr_jax.sweep import driver, runs, show
from apr_jax.sweep.runs import Run
from apr_jax.sweep.study import CHOICE, Study, carry_out

STUDIES = Path("configs/studies")


def main(argv: Sequence[str]) -> int:
    if not argv:
        for path in sorted(STUDIES.glob("[a-z]*.py")):
            study = settings.load(path)
            print(f"{path.stem:<24} {study.hours:>5g} h   {study.question}")
        return 0
    path = Path(argv[0]) if argv[0].endswith(".py") else STUDIES / f"{argv[0]}.py"
    if not path.is_file():
        settings.fail(
            f"there is no study {argv[0]}; there are {', '.join(p.stem for p in sorted(STUDIES.glob('[a-z]*.py')))}"
        )
    study = settings.parse(argv[1:], path)
    try:
        return reproduce(study)
    except ValueError as error:
        settings.fail(str(error))


def reproduce(study: Study) -> int:
    """Carry out a study, and write what it has found."""
    if not isinstance(study, Study):
        raise ValueError(f"the file describes {type(study).__name__}; a study is an apr_jax.sweep.study.Study")
    if study.place.executor == "slurm":
        raise ValueError(
            "executor is 'slurm', which a study cannot use: it must wait for its runs; take 'local' or 'ray'"
        )
    status = 0

    def drive(found: Sequence[Run], root: Path) -> bool:
        nonlocal status
        if not found:
            return True
        executor = study.place.start(study.need)
        with show.LiveTable() as table:
            ended = driver.drive(found, executor, root, study.need, study.retries, watch=table)
        for failure in ended.failures:
            print(failure, file=sys.stderr)
        if ended.interrupted:
            print(f"interrupted; the same command goes on with what is in {study.root}", file=sys.stderr)
        status = 130 if ended.interrupted else 1 if ended.failures else 0
        return not status

    if carry_out(study, drive):
        write(study)
    return status


def write(study: Study) -> None:
    """Write summary.json, the plots and the page."""
    from apr_jax import files
    from apr_jax.sweep import findings, page  # only here: drivers start fast

    found = findings.values(study)
    means, judged = findings.arms(found), findings.judge(study, found)
    runs.write_json(study.root / "summary.json", page.summary(study, means, judged))
    folder = study.root if study.smoke else files.local(study.page, "page")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [folder / f"{study.name}.png"]
    y, x = list(study.measures)[:2]
    page.draw_front(pictures[0], means, x, y)
    curves = folder / f"{study.name}_training.png"
    if page.draw_curves(curves, study, files.read_json(study.root / CHOICE)):
        pictures.append(curves)
    problems = next(iter(next(iter(found.values())).values())).shape[1]
    text = page.markdown(study, problems, means, judged, [path.name for path in pictures])
    (folder / f"{study.name}.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written: {folder / study.name}.md, {study.root / 'summary.json'}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
