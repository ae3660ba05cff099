"""The project itself: its engine, its loop without threads, and the bare matrix products of a decode step."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jaxlib
import numpy as np

from apr_jax import protocols, sharding
from apr_jax.decode import Engine, Problem, Sizes, Transcript
from apr_jax.decode.protocol import Protocol
from apr_jax.pretrained import load_pretrained
from benchmarks.bare import BareLoop, Layout
from benchmarks.peers.workers.attention import AttentionAlone
from benchmarks.peers.workers.products import BareProducts
from benchmarks.peers.workers.serve import Measured, Options, serve
from benchmarks.peers.workloads import (
    Attention,
    Bare,
    Events,
    Feed,
    ForkJoin,
    Products,
    Samples,
    Script,
    Steps,
    Threads,
    Workload,
)
from benchmarks.scripted import Scripted, ScriptedSteps

PAGE = 16  # slots of a page of the pool, and entries of a page of the log
BLOCK = 128  # slots by which attention reads up to the fill mark
BARE_BLOCK = 64  # the same of the bare loop
CHUNK = 128  # tokens of one thread in a feed step, at most
FEED = 512  # the same where nothing waits beside it
ENDLESS = 2**30  # steps: a slice ends when nothing is left to run
EVENT_TOKENS = 24  # tokens of each phase of `Events`
# Parameters up to which problems are dealt over a device for each core: a shard's steps then wait for no other core. Larger
# models are read from memory in every step, and would be by each shard.
SMALL = 2**24


class Project:
    """A model and, by workload, what is compiled for it."""

    def __init__(self, folder: str, options: Options):
        jax.config.update("jax_num_cpu_devices", options.cores)
        self.model, self.temperature = load_pretrained(folder, dtype=options.dtype), options.temperature
        self.cores = options.cores
        self.versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
        self._prepared: dict[Workload, Callable[[], Measured]] = {}

    def run(self, work: Workload) -> Measured:
        if work not in self._prepared:
            prepare = {
                ForkJoin: self._fork_join, Threads: self._threads, Feed: self._feed, Samples: self._samples,
                Steps: self._steps, Bare: self._bare, Attention: self._attention, Products: self._products, Events: self._events,
            }[type(work)]  # fmt: skip
            self._prepared[work] = prepare(work)
        return self._prepared[work]()

    def _mesh(self, problems: int) -> jax.sharding.Mesh:
        """A shard for each core where that is faster and there are problems for it."""
        shards = self.cores if self.model.config.parameters <= SMALL and problems % self.cores == 0 else 1
        return sharding.make_mesh(data=shards)

    def _fork_join(self, work: ForkJoin) -> Callable[[], Measured]:
        most = max(len(script.lengths) for script in work.scripts)
        protocol = Scripted(most, stitch=work.join == "stitch")
        problems = [self._scripted(protocol, i, script) for i, script in enumerate(work.scripts)]
        room = max(script_room(script, protocol) for script in work.scripts)
        mesh = self._mesh(work.in_flight)
        in_flight, queue = work.in_flight // mesh.size, -(-len(problems) // mesh.size)
        sizes = Sizes(
            problems=in_flight, lanes=most, rows=min(int(in_flight * work.rows) + 1, in_flight * most), feed_tiles=1,
            feed_chunk=CHUNK, feed_threshold=most, threads=protocol.needs.threads, slots=multiple(room, BLOCK), page_size=PAGE,
            log=multiple(room, PAGE), log_page_size=PAGE, queue=queue, prompt=len(problems[0].prompt), outbox=queue,
            attention_block=BLOCK,
        )  # fmt: skip
        engine = Engine(self.model, protocol, sizes, mesh)

        def once() -> Measured:
            state = jax.block_until_ready(engine.create(0))
            start = time.perf_counter()
            state, found = engine.drain(engine.run(engine.load(state, problems), ENDLESS))
            seconds = time.perf_counter() - start
            for transcript in found:
                check(transcript, work.scripts[transcript.problem])
            counters = {
                field.name: int(np.sum(getattr(state.counters, field.name)))
                for field in dataclasses.fields(state.counters)
            }
            occupancy = counters["decode_rows"] / (counters["decode_steps"] * sizes.rows)
            return Measured(seconds, sum(int(t.log.sampled.sum()) for t in found), {"occupancy": occupancy, **counters})

        return once

    def _scripted(self, protocol: Scripted, number: int, script: Script) -> Problem:
        tokens = script.prompt, script.alone, script.lengths, script.after
        return protocol.problem(number, *tokens, temperature=self.temperature)

    def _threads(self, work: Threads) -> Callable[[], Measured]:
        # The prompt but its last two tokens goes in whole feed steps: the flush that the fork waits for is timed with it.
        before = work.prefix - 2
        chunk = max(size for size in range(1, CHUNK + 1) if before % size == 0)
        room = work.prefix + PAGE + work.threads * (multiple(work.tokens_each, PAGE) + PAGE)
        mesh = sharding.make_mesh() if work.one_device else self._mesh(work.problems)
        each = work.problems // mesh.size
        sizes = all_busy(
            each, work.threads, work.prefix, room, feed_tiles=min(each, 4), feed_chunk=chunk, threads=work.threads + 1
        )
        sizes = dataclasses.replace(sizes, slots=work.slots or sizes.slots)
        # No token has the id of the vocabulary's size: no thread ends by itself.
        engine = Engine(self.model, protocols.Samples(work.threads, end=self.model.config.vocabulary), sizes, mesh)
        problems = [
            Problem(i, np.array(prefix, np.int32), temperature=self.temperature, max_tokens=work.tokens_each)
            for i, prefix in enumerate(work.prefixes)
        ]

        def once() -> Measured:
            state = engine.load(engine.create(0), problems)
            state = engine.run(state, -(-each // sizes.feed_tiles) * (before // chunk))
            fed = int(np.sum(jax.block_until_ready(state).counters.fed))
            if fed != work.problems * before:
                raise RuntimeError(f"{fed} tokens are fed before the fork, expected {work.problems * before}")
            start = time.perf_counter()
            state = jax.block_until_ready(engine.run(state, ENDLESS))
            seconds = time.perf_counter() - start
            return Measured(seconds, int(np.sum(state.counters.sampled)))

        return once

    def _feed(self, work: Feed) -> Callable[[], Measured]:
        sizes = all_busy(1, 1, work.prompt, work.prompt + PAGE, feed_chunk=min(work.prompt, FEED), threads=1)
        engine = Engine(self.model, protocols.Sequential(end=self.model.config.vocabulary), sizes)
        prompt = np.array(work.tokens_of_prompt, np.int32)
        return from_the_prompt(engine, [Problem(0, prompt, temperature=self.temperature, max_tokens=1)], work)

    def _samples(self, work: Samples) -> Callable[[], Measured]:
        room = work.prompt + PAGE + work.samples * (multiple(work.tokens_each, PAGE) + PAGE)
        protocol = protocols.Samples(work.samples, end=self.model.config.vocabulary)
        return self._searching(work, protocol, work.samples, room, protocol.needs.threads, work.tokens_each)

    def _steps(self, work: Steps) -> Callable[[], Measured]:
        protocol = ScriptedSteps(
            end=self.model.config.vocabulary, beams=work.beams, width=work.width, subtrees=work.subtrees,
            steps=work.steps, length=work.tokens_each,
        )  # fmt: skip
        threads = 1 + work.steps * work.candidates
        # The log keeps all candidates. The pool has room for all of them too, though it loses most after each round: what is
        # not filled costs nothing.
        room = work.prompt + PAGE + threads * multiple(work.tokens_each + 1, PAGE)
        return self._searching(work, protocol, work.candidates, room, threads, work.steps * work.tokens_each)

    def _searching(
        self, work: Samples | Steps, protocol: Protocol, lanes: int, room: int, threads: int, budget: int
    ) -> Callable[[], Measured]:
        """Problems that are fed their prompts at the same time, as many of them in a feed step as are worth it."""
        mesh = self._mesh(work.problems)
        each, chunk = work.problems // mesh.size, min(work.prompt, FEED)
        tiles = min(each, max(FEED // chunk, 1))
        sizes = all_busy(each, lanes, work.prompt, room, feed_tiles=tiles, feed_chunk=chunk, threads=threads)
        problems = [
            Problem(i, np.array(prompt, np.int32), temperature=work.temperature, max_tokens=budget)
            for i, prompt in enumerate(work.prompts)
        ]
        return from_the_prompt(Engine(self.model, protocol, sizes, mesh), problems, work)

    def _bare(self, work: Bare) -> Callable[[], Measured]:
        shape = work.work
        # A contiguous cache for each thread, its prefix copied.
        prefixes = np.repeat(np.array(shape.prefixes, np.int32), shape.threads, axis=0)
        loop = BareLoop(
            self.model, Layout(len(prefixes), 1, shape.prefix, shape.tokens_each, BARE_BLOCK), self.temperature
        )

        def once() -> Measured:
            state = jax.block_until_ready(loop.start(prefixes, 0))
            start = time.perf_counter()
            jax.block_until_ready(loop.run(state, shape.tokens_each))
            return Measured(time.perf_counter() - start, shape.tokens)

        return once

    def _attention(self, work: Attention) -> Callable[[], Measured]:
        shape = work.work
        alone = AttentionAlone(
            self.model, shape.problems, shape.threads, shape.prefix, shape.tokens_each // 2, PAGE, BLOCK
        )

        def once() -> Measured:
            start = time.perf_counter()
            jax.block_until_ready(alone.run(shape.tokens_each))
            return Measured(time.perf_counter() - start, shape.tokens)

        return once

    def _products(self, work: Products) -> Callable[[], Measured]:
        shape = work.work
        fill = shape.prefix + shape.threads * shape.tokens_each // 2
        products = BareProducts(self.model, shape.problems, shape.threads, multiple(fill, PAGE))

        def once() -> Measured:
            start = time.perf_counter()
            jax.block_until_ready(products.run(shape.tokens_each))
            return Measured(time.perf_counter() - start, shape.tokens)

        return once

    def _events(self, work: Events) -> Callable[[], Measured]:
        protocol = Scripted(work.threads, stitch=True)
        few = EVENT_TOKENS
        prefix = Feed(work.prefix, work.vocabulary, work.seed).tokens_of_prompt
        script = Script(prefix, few, (few,) * work.threads, few)
        problem = self._scripted(protocol, 0, script)
        room = script_room(script, protocol)
        sizes = all_busy(
            1, work.threads, len(problem.prompt), room, feed_chunk=CHUNK, threads=protocol.needs.threads,
            feed_threshold=work.threads,
        )  # fmt: skip
        engine = Engine(self.model, protocol, sizes)

        def once() -> Measured:
            state = engine.load(engine.create(0), [problem])
            while not np.sum(state.counters.sampled):
                state = jax.block_until_ready(engine.run(state, 1))
            steps, threads = [], []
            while not np.sum(state.counters.finished):
                start = time.perf_counter()
                state = jax.block_until_ready(engine.run(state, 1))
                steps.append((time.perf_counter() - start) * 1e3)
                threads.append(int(np.max(state.books.used)))
            # The step that flushes the last token has the fork in it, the last step of the threads their end and the join.
            fork = next(i for i, used in enumerate(threads) if used == protocol.needs.threads)
            join = fork + few
            alone, together = statistics.median(steps[: fork - 1]), statistics.median(steps[fork + 2 : join])
            extra = {"fork_ms": steps[fork] - alone, "join_ms": steps[join] - together}
            return Measured(sum(steps) / 1e3, script.tokens, extra | {"step_ms": alone, "threads_step_ms": together})

        return once


def all_busy(
    problems: int, lanes: int, prompt: int, room: int, feed_tiles: int = 1, feed_threshold: int = 1, **sizes
) -> Sizes:
    """Sizes for problems that are all in flight, with a row for each lane; `room` is that of slots and of log entries."""
    return Sizes(
        problems=problems, lanes=lanes, rows=problems * lanes, feed_tiles=feed_tiles, feed_threshold=feed_threshold,
        slots=multiple(room, BLOCK), page_size=PAGE, log=multiple(room, PAGE), log_page_size=PAGE, queue=problems,
        prompt=prompt, outbox=problems, attention_block=BLOCK, **sizes,
    )  # fmt: skip


def from_the_prompt(engine: Engine, problems: Sequence[Problem], work: Workload) -> Callable[[], Measured]:
    """What times the problems from the first prompt to the last token.

    It raises a RuntimeError if they were not decoded as scripted: a speed of something else would be reported.
    """

    def once() -> Measured:
        state = jax.block_until_ready(engine.create(0))
        start = time.perf_counter()
        state = jax.block_until_ready(engine.run(engine.load(state, problems), ENDLESS))
        seconds, sampled = time.perf_counter() - start, int(np.sum(state.counters.sampled))
        if sampled != work.tokens:
            raise RuntimeError(f"{sampled} tokens were sampled, expected {work.tokens}: {work}")
        return Measured(seconds, sampled)

    return once


def multiple(number: int, of: int) -> int:
    """The least multiple of `of` that is not below `number`."""
    return -(-number // of) * of


def script_room(script: Script, protocol: Scripted) -> int:
    """Slots, and log entries, that a problem may need: what is written once, what is fed again, a run begun by each thread."""
    again = 0 if protocol.stitch else sum(script.lengths)
    return len(script.prompt) + script.tokens + again + 3 * protocol.most + 2 * PAGE * protocol.needs.threads


def check(transcript: Transcript, script: Script) -> None:
    """Raise a RuntimeError if a problem was not decoded as scripted: a speed of something else would be reported."""
    lengths = tuple(
        int(np.sum(transcript.log.sampled & (transcript.log.thread == i))) for i in range(len(transcript.threads))
    )
    if lengths != (script.after, script.alone, *script.lengths):
        raise RuntimeError(
            f"problem {transcript.problem} ended with {transcript.stop.name}, threads of {lengths} tokens: {script}"
        )


if __name__ == "__main__":
    serve(Project)
