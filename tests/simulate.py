"""Random programs of threads through the simulator of their rules, for as long as one likes.

    make simulate PROGRAMS=100000
    make simulate ARGS="--first 1234 --programs 1"       # one program again
    make simulate ARGS="--without 'goes on'"             # leave a rule out, to see a counterexample that it prevents

Every program is run under a reference schedule and nine others. It is a finding if a row saw something else than the final record
says, if slots were gone that it needed, if a count is not that of the longest chain, if nothing could run, or if the outcome is
not the same under all schedules. A program with a finding is made small before it is printed.
"""

import collections
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import rich.console
import rich.progress

from apr_jax import settings
from simulator_programs import Fixed, Lines, Program, show, size, smaller
from simulator_rules import RULES
from thread_simulator import REFERENCE, SCHEDULES, Stuck, TooLarge, faults, record, run


def findings(
    program: Any, seed: int, without: frozenset[str] = frozenset(), features: collections.Counter | None = None
) -> Iterator[str]:
    """What is wrong with a program, in words that begin with the kind of the finding.

    Args:
        program: says for each path what the line there does, see `simulator_programs`.
        seed: of what the rules leave open.
        without: names of `RULES` that are left out.
        features: what the program is an example of is counted there.

    Raises:
        TooLarge: it has too many threads.
    """
    reference = None
    for number, schedule in enumerate((REFERENCE, *SCHEDULES)):
        try:
            world = run(program, schedule, seed + number, without)
        except Stuck as error:
            yield f"stuck: {error} ({schedule})"
            continue
        yield from (f"{fault} ({schedule})" for fault in faults(world))
        left = record(world)
        if reference is None:
            reference = left
            if features is not None:
                features.update(set(world.features))
        elif left != reference:
            name = min(name for name in left.keys() | reference.keys() if left.get(name) != reference.get(name))
            yield f"differs: {name}: {reference.get(name)}, or {left.get(name)} ({schedule})"


def shrink(lines: Lines, seed: int, without: frozenset[str], seconds: float = 60.0) -> Lines:
    """The smallest program found in so many seconds that still has a finding of the same kind as the first one."""
    kind = next(findings(Fixed(lines), seed, without)).split(":")[0]

    def fails(less: Lines) -> bool:
        try:
            return any(finding.startswith(f"{kind}:") for finding in findings(Fixed(less), seed, without))
        except TooLarge:
            return False

    end, candidates = time.monotonic() + seconds, smaller(lines)
    while (less := next(candidates, None)) is not None and time.monotonic() < end:
        if size(less) < size(lines) and fails(less):
            lines, candidates = less, smaller(less)
    return lines


@dataclasses.dataclass(frozen=True)
class SimulateConfig:
    """How long to look.

    Attributes:
        programs: programs to run.
        minutes: wall time, at most; 0: as long as it takes.
        first: number of the first program.
        without: rules to leave out, by name.
        stop: findings after which to stop.
        seconds: spent on making one of them small, at most.
    """

    programs: int = 1000
    minutes: float = 0.0
    first: int = 0
    without: tuple[str, ...] = ()
    stop: int = 3
    seconds: float = 60.0


@dataclasses.dataclass
class Outcome:
    """Programs that were run and that were too large, the first finding by number of the program, and the features."""

    run: int = 0
    too_large: int = 0
    found: dict[int, str] = dataclasses.field(default_factory=dict)
    features: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def simulate(config: SimulateConfig, console: rich.console.Console) -> Outcome:
    """Run programs until there are enough findings, or time is up; findings are made small and printed."""
    outcome, without, end = Outcome(), frozenset(config.without), time.monotonic() + (config.minutes or 1e9) * 60
    columns = (
        "{task.description}",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        for number in bar.track(range(config.first, config.first + config.programs), description="programs"):
            if time.monotonic() > end or len(outcome.found) == config.stop:
                break
            program = Program(number)
            try:
                found = list(findings(program, number, without, outcome.features))
            except TooLarge:
                outcome.too_large += 1
                continue
            outcome.run += 1
            if found:
                small = shrink(program.drawn, number, without, config.seconds)
                outcome.found[number] = found[0]
                told = "\n".join([f"program {number}", show(small), *findings(Fixed(small), number, without)])
                console.print(told, markup=False, highlight=False)
    return outcome


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, SimulateConfig())
    if unknown := set(config.without) - set(RULES):
        settings.fail(f"--without {', '.join(unknown)}: allowed are {', '.join(RULES)}")
    outcome = simulate(config, rich.console.Console(stderr=True))
    for name, count in sorted(outcome.features.items()):
        print(f"{count:8d}  {name}")
    print(
        f"{outcome.run} programs from {config.first} on, {1 + len(SCHEDULES)} schedules each: {len(outcome.found)} with findings; "
        f"{outcome.too_large} more were too large"
    )
    return 1 if outcome.found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
