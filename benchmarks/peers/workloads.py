"""Workloads: plain data that every engine can be asked to do. Nothing but the standard library is needed here.

All lengths are scripted and no token ends a thread, so any weights serve. Axes are not arrays: everything is ints.
"""

import dataclasses
import random
from typing import Any, get_args

ALONE, AFTER = 64, 48  # tokens that a problem generates before its fork, and after its join
PROMPT = 128
CHILDREN, LENGTHS = (2, 8), (32, 160)  # least and most threads of a fork, tokens of a thread


@dataclasses.dataclass(frozen=True)
class ForkJoin:
    """Problems that think alone, fork, join and go on; timed from the first prompt to the last token.

    Attributes:
        problems: how many.
        in_flight: how many of them may be begun and not finished at a time.
        join: "reencode": whoever goes on sees the first thread and is fed the header and the tokens of the others (as
            ThreadWeaver's client does); "stitch": it sees what the threads saw and wrote, and nothing is fed again.
        share: of all scripted lengths; 1 is the workload of the benchmark.
        vocabulary, seed: of prompts and lengths.
        rows: of the project's decode steps, for each problem in flight. Idle rows cost little, so that the fastest number keeps
            problems from waiting; with fewer all are busy.
    """

    problems: int
    in_flight: int
    vocabulary: int
    join: str = "reencode"
    share: float = 1.0
    seed: int = 0
    rows: float = 2.5

    def __post_init__(self):
        if self.join not in ("reencode", "stitch"):
            raise ValueError(f"fork_join.join = {self.join!r}: reencode or stitch is needed")

    @property
    def scripts(self) -> tuple["Script", ...]:
        """The problems, drawn from the seed."""
        rng = random.Random(self.seed)
        scaled = lambda length: max(int(length * self.share), 1)

        def draw() -> Script:
            prompt = tuple(rng.randrange(self.vocabulary) for _ in range(max(scaled(PROMPT), 2)))
            lengths = tuple(scaled(rng.randint(*LENGTHS)) for _ in range(rng.randint(*CHILDREN)))
            return Script(prompt, scaled(ALONE), lengths, scaled(AFTER))

        return tuple(draw() for _ in range(self.problems))

    @property
    def tokens(self) -> int:
        """Tokens that are generated in all."""
        return sum(script.tokens for script in self.scripts)


@dataclasses.dataclass(frozen=True)
class Script:
    """One problem of `ForkJoin`: its prompt, and how many tokens it generates alone, in each thread, and after the join.

    Thread i begins with a header of one token, `i`: it makes the threads differ, as the number of a thread does in
    ThreadWeaver's `<Thread> i:`.
    """

    prompt: tuple[int, ...]
    alone: int
    lengths: tuple[int, ...]
    after: int

    @property
    def tokens(self) -> int:
        return self.alone + sum(self.lengths) + self.after

    @property
    def longest(self) -> int:
        """Tokens on the critical path."""
        return self.alone + max(self.lengths) + self.after


@dataclasses.dataclass(frozen=True)
class Threads:
    """Threads forked from prefixes that are fed before the clock starts; the clock covers the fork and all their tokens.

    Attributes:
        problems, threads: that many prefixes, and threads of each.
        prefix: tokens of a prefix.
        tokens_each: tokens that a thread generates. 1 times the fork alone.
        slots: slots of the project's pool; 0 means as many as it takes. Peers ignore it.
        one_device: the project deals no problems over devices, as it is compared with something that cannot. Peers ignore it.
        vocabulary, seed: of the prefixes.
    """

    problems: int
    threads: int
    prefix: int
    tokens_each: int
    vocabulary: int
    slots: int = 0
    one_device: bool = False
    seed: int = 0

    @property
    def prefixes(self) -> tuple[tuple[int, ...], ...]:
        return draw_prompts(self.problems, self.prefix, self.vocabulary, self.seed)

    @property
    def tokens(self) -> int:
        """Tokens that are generated in all."""
        return self.problems * self.threads * self.tokens_each


@dataclasses.dataclass(frozen=True)
class Feed:
    """One prompt, from nothing to the first token sampled after it."""

    prompt: int
    vocabulary: int
    seed: int = 0

    tokens = 1

    @property
    def tokens_of_prompt(self) -> tuple[int, ...]:
        return draw_prompts(1, self.prompt, self.vocabulary, self.seed)[0]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Self-consistency: samples of every prompt, from nothing to their last token.

    Attributes:
        problems, samples: that many prompts, and samples of each.
        prompt: tokens of a prompt.
        tokens_each: tokens of a sample.
        temperature: search-and-learn's. Not the common one: vLLM takes no request for several samples that are greedy.
        vocabulary, seed: of the prompts.
    """

    problems: int
    samples: int
    prompt: int
    tokens_each: int
    vocabulary: int
    temperature: float = 0.8
    seed: int = 0

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        return draw_prompts(self.problems, self.prompt, self.vocabulary, self.seed)

    @property
    def tokens(self) -> int:
        """Tokens that are generated in all."""
        return self.problems * self.samples * self.tokens_each


@dataclasses.dataclass(frozen=True)
class Steps:
    """Beam search over steps, ranked by the mean log-probability of a beam's tokens; from the prompts to the last token.

    Attributes:
        problems: how many, all in flight.
        beams: kept in each round.
        width: candidates that each of them goes on with.
        subtrees: parts of the beams that do not compete: 1 is beam search, as many as there are beams is DVTS.
        steps: rounds.
        tokens_each: tokens of a step.
        prompt: tokens of a prompt.
        temperature: as in `Samples`.
        vocabulary, seed: of the prompts.
    """

    problems: int
    beams: int
    width: int
    subtrees: int
    steps: int
    tokens_each: int
    prompt: int
    vocabulary: int
    temperature: float = 0.8
    seed: int = 0

    def __post_init__(self):
        if self.beams % self.subtrees:
            raise ValueError(
                f"steps.beams = {self.beams}: must be a multiple of steps.subtrees = {self.subtrees}, which keep as many each"
            )

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        return draw_prompts(self.problems, self.prompt, self.vocabulary, self.seed)

    @property
    def candidates(self) -> int:
        """Steps that a problem samples in each round."""
        return self.beams * self.width

    @property
    def tokens(self) -> int:
        """Tokens that are generated in all, by beams that are kept and by others."""
        return self.problems * self.candidates * self.steps * self.tokens_each


@dataclasses.dataclass(frozen=True)
class Bare:
    """The project's loop without threads on the work of `Threads` (only the project's worker can)."""

    work: Threads

    @property
    def tokens(self) -> int:
        return self.work.tokens


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention over the pool as `Threads` does it half way, of all layers, and nothing else (only the project's worker can)."""

    work: Threads

    @property
    def tokens(self) -> int:
        return self.work.tokens


@dataclasses.dataclass(frozen=True)
class Products:
    """The matrix products of `Threads`, attention's two included, and nothing else (only the project's worker can)."""

    work: Threads

    @property
    def tokens(self) -> int:
        return self.work.tokens


@dataclasses.dataclass(frozen=True)
class Events:
    """The cost of a fork and of a join by stitching over an ordinary step (only the project's worker can).

    The answer's `extra` has `fork_ms` and `join_ms`.

    Attributes:
        prefix: tokens of the prefix that is forked.
        threads: threads that fork from it.
    """

    prefix: int
    threads: int
    vocabulary: int
    seed: int = 0


Workload = ForkJoin | Threads | Feed | Samples | Steps | Bare | Attention | Products | Events
_KINDS = get_args(Workload)


def draw_prompts(count: int, length: int, vocabulary: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Prompts of random tokens."""
    rng = random.Random(seed)
    return tuple(tuple(rng.randrange(vocabulary) for _ in range(length)) for _ in range(count))


def to_json(work: Workload) -> dict[str, Any]:
    return {"kind": type(work).__name__, **dataclasses.asdict(work)}


def from_json(fields: dict[str, Any]) -> Workload:
    """Inverse of `to_json`."""
    fields = dict(fields)
    kind = {kind.__name__: kind for kind in _KINDS}[fields.pop("kind")]
    if "work" in fields:
        fields["work"] = Threads(**fields["work"])
    return kind(**fields)
