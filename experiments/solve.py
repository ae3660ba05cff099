"""Watch one Countdown problem being solved.

python -m experiments.solve 22 26 31 53 --target 27
python -m experiments.solve 3 7 12 --target 33 --method sequential
python -m experiments.solve --problems-file my_problems.jsonl
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import rich.box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from apr_jax import settings
from apr_jax.decode import Engine, Sizes, Stop, Transcript
from apr_jax.evaluate import methods, metrics, report
from apr_jax.tasks.countdown import problems as countdown
from apr_jax.tasks.countdown import solver
from apr_jax.tasks.countdown.task import Countdown
from apr_jax.tokenizer import Stream, TextCodec
from apr_jax.tokenizer.load import load
from experiments.evaluate import EvaluateConfig

STEPS = 8  # device steps between two pictures


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nums", nargs="*", type=int, help="three numbers of 1..30, or four of 1..99")
    parser.add_argument("--target", type=int, help="10..50 with three numbers, 10..100 with four")
    parser.add_argument("--method", default="apr", help="a method of the configuration (default: apr)")
    parser.add_argument("--config", default="configs/demo.py", help="configuration file with the methods")
    parser.add_argument("--problems-file", help='JSONL with {"nums": [...], "target": ...} per line')
    parser.add_argument("--seed", type=int, default=0, help="of the sampling methods")
    return parser.parse_args(argv)


def read_problems(args: argparse.Namespace) -> list[countdown.Problem]:
    """The problems asked for, checked.

    Raises:
        ValueError: neither or both of numbers and a file, or a problem that is out of range.
    """
    if args.problems_file:
        if args.nums or args.target is not None:
            raise ValueError("give either numbers with --target or --problems-file, not both")
        return countdown.read_jsonl(Path(args.problems_file))
    if not args.nums or args.target is None:
        raise ValueError("give the numbers and --target, as in `22 26 31 53 --target 27`, or --problems-file FILE")
    problem = countdown.Problem(tuple(args.nums), args.target)
    countdown.check_any(problem)
    return [problem]


def snapshots(engine: Engine, request, seed: int) -> Iterator[Transcript]:
    """The problem as it stands after every few steps; the last one is the finished transcript."""
    state = engine.load(engine.create(seed), [request])
    while True:
        state = engine.run(state, STEPS)
        state, found = engine.drain(state)
        yield from found or engine.peek(state)
        if found:
            return


def picture(transcript: Transcript, words: TextCodec, width: int) -> Table:
    """The threads side by side in time: one line a thread, its last words, and how it ended."""
    table = Table(box=rich.box.SIMPLE, expand=True, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="crop")
    table.add_column(no_wrap=True, justify="right")
    room = max(width - 34, 20)
    for number, thread in enumerate(transcript.threads):
        text = "".join(map(Stream(words).push, transcript.tokens(number)))  # a character that is not whole yet waits
        shown = text if len(text) <= room else "..." + text[3 - room :]
        name = (
            "root" if not thread.path else "  " * (len(thread.path) - 1) + "thread " + ".".join(map(str, thread.path))
        )
        state = "" if thread.stop == Stop.RUNNING else thread.stop.name.lower()
        table.add_row(Text(name, "bold"), Text(shown, "green" if "<goal>" in text else ""), Text(state, "dim"))
    return table


def verdict(problem: countdown.Problem, transcript: Transcript, words: TextCodec, rule: str) -> tuple[Text, bool]:
    """The equation and what the verifier says of it."""
    chosen = methods.judge(methods.read(Countdown(), [problem], [transcript], words)[0], rule)
    answer, correct = (chosen.sample.answer, chosen.sample.correct) if chosen else (None, False)
    if correct:
        return Text(f"{', '.join(answer.split(';'))}  = {problem.target}, checked", "bold green"), True
    if answer is not None:
        return Text(
            f"wrong: {', '.join(answer.split(';'))} does not reach {problem.target} from {list(problem.nums)}", "red"
        ), False
    reason = (
        "the model found no solution" if transcript.stop == Stop.END else f"stopped: {transcript.stop.name.lower()}"
    )
    known = solver.solve(problem.nums, problem.target)
    hint = f"; there is one: {', '.join(known)}" if known else "; there is none"
    return Text(reason + hint, "yellow"), False


def solve(problem, engine: Engine, method: methods.MethodConfig, words: TextCodec, seed: int, console: Console) -> bool:
    """Solve one problem before the user's eyes; returns whether it was solved."""
    console.print(f"[bold]{' '.join(map(str, problem.nums))} -> {problem.target}[/bold]")
    if solver.solve(problem.nums, problem.target) is None:
        console.print(
            "[yellow]this problem has no solution that uses every number once; the model will search in vain[/yellow]"
        )
    request = methods.requests(Countdown(), [problem], method.rollout, words)[0]
    start = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for transcript in snapshots(engine, request, seed):
            if console.is_terminal:
                live.update(Group(picture(transcript, words, console.width)), refresh=True)
    console.print(picture(transcript, words, console.width))
    text, solved = verdict(problem, transcript, words, method.select)
    console.print(text)
    console.print(
        f"[dim]{metrics.threads(transcript)} threads, {metrics.generated_tokens(transcript)} tokens generated, critical path "
        f"{metrics.critical_path(transcript)}, {time.monotonic() - start:.1f} s[/dim]\n"
    )
    return solved


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    console = Console()
    try:
        problems = read_problems(args)
        config: EvaluateConfig = settings.load(args.config)
        if args.method not in config.methods:
            raise ValueError(f"--method {args.method}: allowed are {', '.join(config.methods)}")
        method = config.methods[args.method]
        words = load(config.tokenizer)
        small = small_sizes(method.rollout.sizes)
        engine = methods.make_engine(dataclasses.replace(method.rollout, sizes=small), words)
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    console.print(f"[dim]{report.title(args.method)}; compiling ...[/dim]")
    solved = sum(solve(problem, engine, method, words, args.seed, console) for problem in problems)
    if len(problems) > 1:
        console.print(f"solved {solved} of {len(problems)}")
    return 0 if solved == len(problems) else 1


def small_sizes(sizes: Sizes) -> Sizes:
    """The same for one problem at a time."""
    return dataclasses.replace(sizes, problems=1, rows=sizes.lanes, queue=1, outbox=1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
