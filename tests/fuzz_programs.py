"""Random programs of threads through the compiled loop and the interpreter, for as long as one likes.

    make fuzz MINUTES=10
    make fuzz ARGS="--first 1234 --cases 1"       # one case again
    make fuzz ARGS="--kernels True"               # on the CPU kernels

A case is a handful of problems with programs of their own, decoded together under one of a few sizes; its number says all
of it. A case that fails is made small before it is printed: neighbours are left out, then instructions, then numbers.

XLA's operations compute in f64, and all must be equal. The CPU kernels compute in f32, where near ties may fall either way: there
each transcript must follow from its own tokens (`replaying`), and problems that do not fit the sizes are counted, not replayed.
"""

import collections
import dataclasses
import functools
import random
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
import rich.console
import rich.progress

import program_checks
import program_oracle
import reference_model
import replaying
import thread_programs as programs
from apr_jax import settings
from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.record import Stop, Transcript
from program_protocol import Programs
from thread_programs import Body

CONFIG = ModelConfig(
    vocabulary=programs.VOCABULARY, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=24, qk_norm=True, tied=False,
    dtype="float64", param_dtype="float64",
)  # fmt: skip
# What the kernels take (`native.obstacle`).
KERNELS = dict(head_dim=16, dtype="float32", param_dtype="float32")
FULL = (Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL, Stop.MESSAGES_FULL, Stop.LANES_FULL)
TEXT = 12  # tokens of a prompt, at most
COMMON = dict(prompt=TEXT, queue=32, outbox=8)
HOLD = dict(threads=48, slots=1024, log=2048, attention_block=256) | COMMON


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewPieces(Sizes):
    """Sizes with a table of message pieces that programs can fill."""

    most_pieces: int = 24

    @property
    def pieces(self) -> int:
        return self.most_pieces


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is compiled once; the switches as in `Programs`."""

    sizes: Sizes
    live: bool = True
    races: bool = False
    together: int = 0
    beside: bool = False


SETTINGS = {
    "one row": Setting(
        Sizes(problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0, page_size=1, log_page_size=1, **HOLD)
    ),
    "scarce rows": Setting(
        Sizes(problems=3, lanes=3, rows=5, feed_tiles=2, feed_chunk=8, feed_threshold=2, page_size=8, log_page_size=8, **HOLD)
    ),
    "plenty": Setting(
        Sizes(problems=4, lanes=8, rows=32, feed_tiles=8, feed_chunk=64, feed_threshold=8, page_size=16, log_page_size=16, **HOLD)
    ),
    "small pool": Setting(
        Sizes(
            problems=3, lanes=4, rows=12, feed_tiles=3, feed_chunk=8, feed_threshold=0, page_size=8, log_page_size=4,
            threads=48, slots=128, log=2048, attention_block=32, **COMMON,
        )
    ),
    "small tables": Setting(
        FewPieces(
            problems=4, lanes=2, rows=8, feed_tiles=1, feed_chunk=8, feed_threshold=4, page_size=1, log_page_size=8,
            threads=9, slots=512, log=160, attention_block=128, **COMMON,
        )
    ),
    "not live": Setting(
        Sizes(problems=2, lanes=6, rows=9, feed_tiles=4, feed_chunk=8, feed_threshold=100, page_size=4, log_page_size=1, **HOLD),
        live=False,
    ),
    "races": Setting(
        Sizes(problems=3, lanes=3, rows=4, feed_tiles=2, feed_chunk=8, feed_threshold=2, page_size=8, log_page_size=4, **HOLD),
        races=True,
    ),
    "races, one row": Setting(
        Sizes(problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=2, feed_threshold=1, page_size=4, log_page_size=8, **HOLD),
        races=True,
    ),
    "races, small tables": Setting(
        FewPieces(
            problems=3, lanes=2, rows=5, feed_tiles=1, feed_chunk=8, feed_threshold=4, page_size=1, log_page_size=8,
            threads=9, slots=512, log=160, attention_block=128, **COMMON,
        ),
        races=True,
    ),
    "together": Setting(
        Sizes(problems=3, lanes=8, rows=24, feed_tiles=2, feed_chunk=8, feed_threshold=2, page_size=8, log_page_size=4, **HOLD),
        races=True, together=8,
    ),
    "beside": Setting(
        Sizes(problems=3, lanes=3, rows=5, feed_tiles=2, feed_chunk=8, feed_threshold=2, page_size=8, log_page_size=4, **HOLD),
        beside=True,
    ),
    "beside, one row": Setting(
        Sizes(problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=4, feed_threshold=1, page_size=4, log_page_size=8, **HOLD),
        live=False, beside=True,
    ),
    "beside, races": Setting(
        Sizes(problems=3, lanes=8, rows=24, feed_tiles=2, feed_chunk=8, feed_threshold=2, page_size=8, log_page_size=4, **HOLD),
        races=True, beside=True,
    ),
    "beside, races, small tables": Setting(
        FewPieces(
            problems=3, lanes=2, rows=5, feed_tiles=1, feed_chunk=8, feed_threshold=4, page_size=1, log_page_size=8,
            threads=9, slots=512, log=160, attention_block=128, **COMMON,
        ),
        races=True, beside=True,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """Problems decoded together: the name of their setting, the seed of their draws, and the program of each."""

    setting: str
    seed: int
    problems: tuple[tuple[Problem, Body], ...]

    def show(self) -> str:
        lines = [f"setting {self.setting!r}: {SETTINGS[self.setting]}, seed {self.seed}"]
        for problem, body in self.problems:
            facts = dataclasses.asdict(problem) | {"prompt": problem.prompt.tolist(), "arguments": "of the program"}
            lines.append(f"{facts}\n{programs.show(body, '    ')}")
        return "\n".join(lines)


def random_model(config: ModelConfig) -> transformer.Model:
    """Weights so large that a token depends on all that is seen, in the configuration's dtype."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape) / np.sqrt(config.width) if leaf.ndim > 1 else np.ones(leaf.shape),
        transformer.abstract_params(config),
    )
    params["embed"], params["head"] = 4.0 * params["embed"], 2.0 * params["head"]
    cast = lambda leaf: jax.numpy.asarray(leaf, config.param_dtype)
    return transformer.Model(transformer.graph_of(config), jax.tree.map(cast, params))


@functools.cache
def model(kernels: bool = False) -> transformer.Model:
    return random_model(dataclasses.replace(CONFIG, **KERNELS) if kernels else CONFIG)


@functools.cache
def engine(setting: str, kernels: bool = False) -> Engine:
    chosen = SETTINGS[setting]
    protocol = Programs(chosen.live, chosen.races, chosen.together, chosen.beside)
    return Engine(model(kernels), protocol, chosen.sizes, kernel=kernels)


def draw_case(number: int, count: int, names: Sequence[str] = tuple(SETTINGS)) -> Case:
    """The case with that number."""
    rng = random.Random(number)
    name = names[number % len(names)]
    seed = rng.randrange(1000)
    return Case(name, seed, tuple(_draw_problem(rng, i, SETTINGS[name]) for i in range(count)))


def _draw_problem(rng: random.Random, number: int, setting: Setting) -> tuple[Problem, Body]:
    body = programs.draw(rng, programs.Kinds(setting.live, setting.races, setting.beside))
    text = [rng.randrange(programs.VOCABULARY) for _ in range(rng.choice((1, 2, 3, 5, TEXT)))]
    budget = rng.choice((2, 6, 16, 32, 48))
    problem = Problem(
        id=number,
        prompt=np.array(text, np.int32),
        arguments=programs.encode(body),
        sample=rng.randrange(3),
        temperature=rng.choice((0.0, 0.75, 1.0, 1.0, 1.25, 1.5)),
        top_k=rng.choice((0, 0, 0, 5, 12)),
        top_p=rng.choice((1.0, 1.0, 1.0, 0.75, 0.9375)),
        max_tokens=budget,
        child_max_tokens=rng.choice((0, 0, 3, 8, 24)),
    )
    return problem, body


def run_case(case: Case, kernels: bool = False) -> tuple[list[str], collections.Counter]:
    """Decode a case and check it: what is wrong, in words, and how many problems are an example of what."""
    transcripts = engine(case.setting, kernels).decode([problem for problem, _ in case.problems], seed=case.seed)
    found = {transcript.problem: transcript for transcript in transcripts}
    faults, features = [], collections.Counter()
    for problem, body in case.problems:
        features[f"ended {found[problem.id].stop.name}"] += 1
        try:
            features.update((_check_kernels if kernels else _check)(case, problem, body, found[problem.id]))
        except AssertionError as error:
            faults.append(str(error))
    return faults, features


def _interpret(case: Case, problem: Problem, body: Body, **choices) -> program_oracle.Expected:
    mine = model("choose" in choices)
    forward = reference_model.transformer(mine.params, mine.config)
    return program_oracle.run(
        forward, problem, body, case.seed, together=SETTINGS[case.setting].together > 0, **choices
    )


def _check(case: Case, problem: Problem, body: Body, transcript: Transcript) -> set[str]:
    """Assert that a transcript of XLA's operations is right; returns what it is an example of."""
    expected = _interpret(case, problem, body)
    program_checks.check(transcript, expected, SETTINGS[case.setting].sizes)
    return set(program_checks.features(body, expected))


def _check_kernels(case: Case, problem: Problem, body: Body, transcript: Transcript) -> set[str]:
    """Assert that a transcript of the kernels follows from its own tokens; returns what it is an example of."""
    if transcript.stop in FULL:
        return {"not replayed"}
    last = []

    def interpret(choose):
        last[:] = [_interpret(case, problem, body, choose=choose)]
        return last[0].transcript

    replaying.replay(transcript, interpret, replaying.F32)
    return set(program_checks.features(body, last[0]))


def shrink(case: Case, kernels: bool = False, seconds: float = 120.0) -> Case:
    """The smallest case found in so many seconds that still fails."""
    end = time.monotonic() + seconds
    candidates = _smaller(case)
    while (less := next(candidates, None)) and time.monotonic() < end:
        if run_case(less, kernels)[0]:
            case, candidates = less, _smaller(less)
    return case


def _smaller(case: Case):
    problems = case.problems
    keep = lambda *kept: dataclasses.replace(case, problems=tuple(kept))  # noqa: E731
    if len(problems) > 1:
        half = len(problems) // 2
        yield from (keep(*problems[:half]), keep(*problems[half:]))
        yield from (keep(*problems[:i], *problems[i + 1 :]) for i in range(len(problems)))
    for i, (problem, body) in enumerate(problems):
        for less in programs.smaller(body):
            if programs.size(less) < programs.size(body):
                new = dataclasses.replace(problem, arguments=programs.encode(less)), less
                yield keep(*problems[:i], new, *problems[i + 1 :])


# ---- the program


@dataclasses.dataclass(frozen=True)
class FuzzConfig:
    """How long to look.

    Attributes:
        minutes: wall time, compilation included.
        cases: cases at most, 0: as many as there is time for.
        first: number of the first case.
        problems: problems of a case.
        only: settings to use, all by default.
        kernels: on the CPU kernels instead of XLA's operations.
    """

    minutes: float = 1.0
    cases: int = 0
    first: int = 0
    problems: int = 32
    only: tuple[str, ...] = tuple(SETTINGS)
    kernels: bool = False


def fuzz(config: FuzzConfig, console: rich.console.Console) -> tuple[int, collections.Counter, list[Case]]:
    """Run cases until time is up; failing ones are shrunk and printed. Returns problems done, features, failing cases."""
    columns = ("[progress.description]{task.description}", rich.progress.BarColumn(), rich.progress.TimeElapsedColumn())
    start, number, done, failed, features = time.monotonic(), config.first, 0, [], collections.Counter()
    with rich.progress.Progress(*columns, "{task.fields[state]}", console=console) as bar:
        shown = bar.add_task("programs", total=config.minutes * 60, state="compiling")
        while time.monotonic() - start < config.minutes * 60 and not 0 < config.cases <= number - config.first:
            case = draw_case(number, config.problems, config.only)
            faults, counts = run_case(case, config.kernels)
            if faults:
                console.print(f"case {number} fails: {len(faults)} of {config.problems} problems; making it smaller")
                failed.append(shrink(case, config.kernels))
                console.print(
                    f"{failed[-1].show()}\n{run_case(failed[-1], config.kernels)[0][0]}", markup=False, highlight=False
                )
            number, done, features = number + 1, done + len(case.problems), features + counts
            state = f"{done} programs, {len(failed)} failing cases, next case {number}"
            bar.update(shown, completed=time.monotonic() - start, state=state)
    return done, features, failed


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, FuzzConfig())
    if unknown := set(config.only) - set(SETTINGS):
        settings.fail(f"--only {', '.join(unknown)}: allowed are {', '.join(SETTINGS)}")
    jax.config.update("jax_enable_x64", True)
    console = rich.console.Console(stderr=True)
    done, features, failed = fuzz(config, console)
    print(f"{done} programs from case {config.first} on, {len(failed)} failing cases")
    for name, count in sorted(features.items()):
        print(f"{count:8d}  {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
