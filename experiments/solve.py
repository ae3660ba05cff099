"""Watch one Countdown problem, or one question in language, being solved.

python -m experiments.solve 22 26 31 53 --target 27
python -m experiments.solve 3 7 12 --target 33 --method sequential
python -m experiments.solve --problems-file my_problems.jsonl
python -m experiments.solve --model smollm2 "What is 6 times 7?"
python -m experiments.solve --model smollm2 "What is 6 times 7?" --method self_consistency
python -m experiments.solve --model path/of/a/model "What is 6 times 7?" --method spawn_join

A method goes by its name in the configuration; the name of a class of methods (`spawn_join`) stands for the first of them.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from apr_jax import settings
from apr_jax.decode import Engine, Problem, Sizes, Stop, Transcript
from apr_jax.decode.problem import check_seed
from apr_jax.evaluate import methods, metrics, report
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import Answer, MethodConfig
from apr_jax.evaluate.select import Selector
from apr_jax.evaluate.show import live
from apr_jax.pretrained import smollm2
from apr_jax.pretrained.tokenizer import load
from apr_jax.tasks.countdown import problems as countdown
from apr_jax.tasks.countdown import solver
from apr_jax.tasks.countdown.task import Countdown
from apr_jax.tasks.language.task import LanguageTask, Question
from apr_jax.tasks.task import Task
from apr_jax.tokenizer import TextCodec

NAMED = {"smollm2": (smollm2.PATH, "python -m experiments.fetch_smollm2")}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asked", nargs="*", help="three numbers of 1..30 or four of 1..99; with --model, a question")
    parser.add_argument("--target", type=int, help="10..50 with three numbers, 10..100 with four")
    parser.add_argument("--model", help=f"{', '.join(NAMED)}, a Hugging Face folder or a GGUF file")
    parser.add_argument("--method", help="a method of the configuration (default: apr, with --model sequential)")
    parser.add_argument("--config", help="file with the methods (default: configs/demo.py or smollm2_methods.py)")
    parser.add_argument("--problems-file", help='JSONL with {"nums": [...], "target": ...} per line')
    parser.add_argument("--seed", type=int, default=0, help="of the sampling methods")
    return parser.parse_intermixed_args(argv)


class CountdownShow:
    """How Countdown is shown and judged."""

    default = "apr"

    def __init__(self, args: argparse.Namespace):
        self.task: Task = Countdown()
        self.questions = read_problems(args)

    def heading(self, problem: countdown.Problem) -> str:
        text = f"[bold]{' '.join(map(str, problem.nums))} -> {problem.target}[/bold]"
        if solver.solve(problem.nums, problem.target) is None:
            text += "\n[yellow]this problem has no solution that uses every number once; the model will search in vain[/yellow]"
        return text

    def draw(self, transcript: Transcript, codec: TextCodec, console: Console, request: Problem) -> RenderableType:
        return live.lines(transcript, codec, console.width, "<goal>")

    def finished(self, transcript: Transcript, codec: TextCodec, console: Console, request: Problem) -> RenderableType:
        return self.draw(transcript, codec, console, request)

    def verdict(self, problem: countdown.Problem, transcript: Transcript, answers, rule: Selector) -> tuple[Text, bool]:
        """The equation and what the verifier says of it."""
        chosen = methods.choose(answers, rule)
        answer, correct = (chosen.candidate.answer, chosen.candidate.correct) if chosen else (None, False)
        if correct:
            return Text(f"{', '.join(answer.split(';'))}  = {problem.target}, checked", "bold green"), True
        if answer is not None:
            shown = ", ".join(answer.split(";"))
            return Text(f"wrong: {shown} does not reach {problem.target} from {list(problem.nums)}", "red"), False
        ended = transcript.stop == Stop.END
        reason = "the model found no solution" if ended else f"stopped: {transcript.stop.name.lower()}"
        known = solver.solve(problem.nums, problem.target)
        hint = f"; there is one: {', '.join(known)}" if known else "; there is none"
        return Text(reason + hint, "yellow"), False


class Asked(LanguageTask):
    """A question of the user's: nobody knows the answer."""

    def questions(self, seed: int) -> list[Question]:
        return []

    def grade(self, pairs: Sequence[tuple[Question, str]]) -> list[bool]:
        return [False] * len(pairs)


class LanguageShow:
    """How a question in language is shown; it is put as the task of the configuration puts its own."""

    default = "sequential"

    def __init__(self, args: argparse.Namespace, task: Task):
        if not isinstance(task, LanguageTask):
            raise ValueError(
                f"--config {args.config}: its task is {type(task).__name__}; --model wants one in language"
            )
        if args.problems_file or args.target is not None:
            raise ValueError("--target and --problems-file belong to Countdown; with --model give a question")
        text = " ".join(args.asked).strip()
        if not text:
            raise ValueError('there is no question; give one in quotes, as in --model smollm2 "What is 6 times 7?"')
        self.task: Task = Asked(ask=task.ask, read=task.read)
        self.questions = [Question(0, text, "")]

    def heading(self, question: Question) -> Text:
        return Text(question.text, "bold")

    def draw(self, transcript: Transcript, codec: TextCodec, console: Console, request: Problem) -> RenderableType:
        return live.columns(transcript, codec, console, len(request.prompt))

    def finished(self, transcript: Transcript, codec: TextCodec, console: Console, request: Problem) -> RenderableType:
        return live.whole(transcript, codec, len(request.prompt))

    def verdict(self, question: Question, transcript: Transcript, answers, rule: Selector) -> tuple[Text, bool]:
        """The chosen answer; there is no judge of it."""
        chosen: Answer | None = methods.choose(answers, rule)
        stopped = "" if transcript.stop == Stop.END else f"stopped: {transcript.stop.name.lower()}; "
        if chosen is None:
            return Text(f"{stopped}no answer of the form that is looked for", "yellow"), not stopped
        votes = sum(answer.candidate.answer == chosen.candidate.answer for answer in answers)
        said = f" ({votes} of {len(answers)} threads say so)" if len(answers) > 1 else ""
        return Text(f"{stopped}answer: {chosen.candidate.answer}{said}", "bold"), True


def read_problems(args: argparse.Namespace) -> list[countdown.Problem]:
    """The problems asked for, checked.

    Raises:
        ValueError: neither or both of numbers and a file, or a problem that is out of range.
    """
    if args.problems_file:
        if args.asked or args.target is not None:
            raise ValueError("give either numbers with --target or --problems-file, not both")
        return countdown.read_jsonl(Path(args.problems_file))
    if words := [word for word in args.asked if not word.removeprefix("-").isdecimal()]:
        raise ValueError(f"{words[0]!r} is not a whole number; to ask a question in language, give a --model")
    if not args.asked or args.target is None:
        raise ValueError("give the numbers and --target, as in `22 26 31 53 --target 27`, or --problems-file FILE")
    problem = countdown.Problem(tuple(map(int, args.asked)), args.target)
    countdown.check_any(problem)
    return [problem]


def find_model(name: str) -> str:
    """The path of a model.

    Raises:
        FileNotFoundError: it is not there; says how to get it.
    """
    path, command = NAMED.get(name, (Path(name), ""))
    if not path.exists():
        fix = f"fetch it with `{command}`" if command else f"give {', '.join(NAMED)}, a folder or a GGUF file"
        raise FileNotFoundError(f"--model {name}: there is nothing at {path}; {fix}")
    return str(path)


def find_method(config: EvaluateConfig, name: str) -> MethodConfig:
    """A method by its name, or by that of its class."""
    found = [m for key, m in config.methods.items() if key == name]
    found += [m for m in config.methods.values() if m.rollout.method.name == name]
    if not found:
        classes = dict.fromkeys(m.rollout.method.name for m in config.methods.values())
        raise ValueError(f"--method {name}: allowed are {', '.join(dict.fromkeys([*config.methods, *classes]))}")
    return found[0]


def prepare(args: argparse.Namespace) -> tuple[CountdownShow | LanguageShow, MethodConfig, TextCodec]:
    """The display of the task, the method, and the tokenizer.

    Raises:
        ValueError, FileNotFoundError: an argument or the configuration is wrong.
    """
    check_seed(args.seed)
    if args.model is None:
        show: CountdownShow | LanguageShow = CountdownShow(args)
        config: EvaluateConfig = settings.load(args.config or "configs/demo.py")
        return show, find_method(config, args.method or show.default), load(config.tokenizer)
    config = settings.load(args.config or "configs/smollm2_methods.py")
    show, path = LanguageShow(args, config.task), find_model(args.model)
    method = find_method(config, args.method or show.default)
    if method.select.oracle:
        raise ValueError(f"--method {args.method} chooses by the right answer, which nobody knows here")
    return show, dataclasses.replace(method, rollout=dataclasses.replace(method.rollout, checkpoint=path)), load(path)


def solve(show, question, request: Problem, engine: Engine, method: MethodConfig, codec, seed: int, console) -> bool:
    """Decode one problem and show its threads; returns whether it was solved."""
    console.print(show.heading(question))
    start = time.monotonic()
    drawn = lambda transcript: show.draw(transcript, codec, console, request)
    transcript = live.watch(engine, request, seed, console, drawn)
    console.print(show.finished(transcript, codec, console, request))
    answers = methods.read(show.task, [question], [transcript], codec, method.rollout)[0]
    text, solved = show.verdict(question, transcript, answers, method.select)
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
        show, method, codec = prepare(args)
        rollout = dataclasses.replace(method.rollout, sizes=small_sizes(method.rollout.sizes))
        requests = methods.requests(show.task, show.questions, rollout, codec)
        show.task = methods.put(show.task, rollout)
        engine, codec = methods.make_engine(rollout, codec)
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    console.print(f"[dim]{report.title(args.method or show.default)}; compiling ...[/dim]")
    pairs = zip(show.questions, requests, strict=True)
    solved = sum(solve(show, *pair, engine, method, codec, args.seed, console) for pair in pairs)
    if len(show.questions) > 1:
        console.print(f"solved {solved} of {len(show.questions)}")
    return 0 if solved == len(show.questions) else 1


def small_sizes(sizes: Sizes) -> Sizes:
    """The same for one problem at a time."""
    return dataclasses.replace(sizes, problems=1, rows=sizes.lanes, queue=1, outbox=1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
