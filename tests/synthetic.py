"""Transcripts made by hand or at random; their counts are known by construction (direct recursion over the tree)."""

import dataclasses

import numpy as np

from apr_jax.record import Log, Source, Stop, ThreadRecord, Transcript

NEVER = -1


@dataclasses.dataclass(frozen=True)
class Thread:
    """A thread: its prompt, then what it does in turn: generate a tuple of tokens, or fork a list and join it.

    `shared` threads see their parent, which is flushed first and sees them after the join; the others are isolated.
    """

    prompt: tuple[str, ...]
    body: tuple["tuple[str, ...] | list[Thread]", ...]
    shared: bool = False


class Builder:
    """Runs a fork tree and keeps one list of entries per thread."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.vocabulary: dict[str, int] = {}
        self.entries: list[list[dict]] = []
        self.records: list[ThreadRecord] = []
        self.edges: set[tuple[int, int]] = set()

    def text(self, token: int) -> str:
        return next(name for name, number in self.vocabulary.items() if number == token)

    def add(self, thread: int, text: str, source: Source, clock: int, depth: int, predictor=(NEVER, NEVER)) -> None:
        token = self.vocabulary.setdefault(text, len(self.vocabulary))
        logprob = -float(self.rng.exponential(0.3)) if source == Source.SAMPLED else np.nan
        self.entries[thread].append(
            {
                "token": token,
                "source": source,
                "clock": clock,
                "depth": depth,
                "predictor": predictor,
                "logprob": logprob,
            }
        )

    def run(self, spec: Thread, path=(), parent=-1, clock=0, depth=0) -> tuple[int, int, int]:
        """Returns thread number, clock of its last row and its depth."""
        thread = len(self.records)
        self.records.append(ThreadRecord(path, parent, Stop.END))
        self.entries.append([])
        self.edges.add((thread, thread))
        if spec.shared:
            self.edges |= {(thread, seen) for viewer, seen in set(self.edges) if viewer == parent}
        clock -= 1
        for text in spec.prompt:
            clock += 1
            self.add(thread, text, Source.FED, clock, depth)
        unfed, row, forks = None, len(self.entries[thread]) - 1, 0
        for part in spec.body:
            if isinstance(part, tuple):
                for text in part:
                    if unfed is not None:
                        clock += 1
                        self.entries[thread][unfed]["clock"] = clock
                        row = unfed
                    depth += 1
                    self.add(thread, text, Source.SAMPLED, NEVER, depth, (thread, row))
                    unfed = len(self.entries[thread]) - 1
                continue
            flush = unfed is not None and any(child.shared for child in part)
            if flush:
                clock += 1
                self.entries[thread][unfed]["clock"] = clock
                unfed = None
            ends = [self.run(child, (*path, forks + i), thread, clock + 1, depth) for i, child in enumerate(part)]
            forks += len(part)
            clock = max(end[1] for end in ends)
            depth = max(depth, *(end[2] for end in ends))
            if unfed is not None:
                clock += 1
                self.entries[thread][unfed]["clock"] = clock
                unfed = None
            for i, (child, _, _) in enumerate(ends):
                clock += 1
                self.add(thread, f"<result{i}>", Source.FED, clock, depth)
                if part[i].shared:
                    self.edges |= {(thread, seen) for viewer, seen in set(self.edges) if viewer == child}
            row = len(self.entries[thread]) - 1
        return thread, clock, depth

    def transcript(self, problem: int = 0, sample: int = 0, stop: Stop = Stop.END) -> Transcript:
        columns = {field.name: [] for field in dataclasses.fields(Log) if field.name not in ("drawn", "signals")}
        start = np.cumsum([0] + [len(entries) for entries in self.entries])
        longest = 0
        for thread, entries in enumerate(self.entries):
            fed = 0
            for entry in entries:
                was_fed = entry["clock"] != NEVER
                columns["thread"].append(thread)
                columns["index"].append(fed if was_fed else NEVER)
                columns["position"].append(fed if was_fed else NEVER)
                columns["behaviour_logprob"].append(entry["logprob"])
                owner, place = entry["predictor"]
                columns["predictor"].append(NEVER if owner == NEVER else int(start[owner]) + place)
                for name in ("token", "clock", "source", "logprob", "depth"):
                    columns[name].append(entry[name])
                fed += was_fed
            longest = max(longest, fed)
        kinds = {"logprob": np.float32, "behaviour_logprob": np.float32}
        log = Log(**{name: np.array(column, kinds.get(name, np.int32)) for name, column in columns.items()})
        sees = np.zeros((len(self.records),) * 2, bool)
        for viewer, seen in self.edges:
            sees[viewer, seen] = True
        return Transcript(problem, sample, stop, tuple(self.records), sees, log, longest)


def build(spec: Thread, seed: int = 0, **names) -> tuple[Transcript, Builder]:
    """A transcript of one fork tree, and its builder (whose `text` turns ids into text)."""
    builder = Builder(seed)
    builder.run(spec)
    return builder.transcript(**names), builder


def random_tree(rng: np.random.Generator, depth: int = 3, shared: bool = False) -> Thread:
    """A random nested fork tree of single letters."""

    def letters(low: int, high: int) -> tuple[str, ...]:
        return tuple(rng.choice(list("abcdefgh"), rng.integers(low, high + 1)).tolist())

    body: list = [letters(1, 6)]
    for _ in range(rng.integers(0, 3) if depth else 0):
        body.append([random_tree(rng, depth - 1, shared) for _ in range(rng.integers(1, 5))])
        body.append(letters(1, 6))
    return Thread(letters(1, 5), tuple(body), shared)


def countdown_tree(seed: int = 0, children: int = 3, length: int = 40) -> Thread:
    """A tree that looks like a Countdown search: 27 from 22, 26, 31, 53."""
    rng = np.random.default_rng(seed)

    def search(count: int) -> tuple[str, ...]:
        tokens: list[str] = []
        while len(tokens) < count:
            a, b = sorted(rng.integers(1, 60, 2).tolist(), reverse=True)
            tokens += ["<node>", *str(a), "-", *str(b), "=", *str(a - b), ","]
        return tuple(tokens[:count])

    def child(number: int) -> Thread:
        prompt = ("<spawn>", *f"27:53-{20 + number}={33 - number},26,31", "<go>")
        end = ("<goal>", "<join>", *"53-22=31;31/31=1;26+1=27", "<end>") if number == 1 else ("<join>", "<end>")
        return Thread(prompt, ((*search(int(rng.integers(length // 2, length * 2))), *end),))

    spawn = tuple(token for i in range(children) for token in ("<spawn>", *f"27:53-{20 + i}={33 - i},26,31"))
    return Thread(
        ("<s>", *"27:22,26,31,53", "<go>"),
        (
            (*search(length), *spawn, "<wait>"),
            [child(i) for i in range(children)],
            ("<goal>", *"53-22=31;31/31=1;26+1=27", "<end>"),
        ),
    )
