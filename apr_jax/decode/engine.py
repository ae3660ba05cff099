"""The host's side of decoding, from problems to transcripts.

The host fills the queue, runs the compiled program slice by slice, and fetches finished problems between slices. Within a
slice the device needs nothing from the host.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax import sharding
from apr_jax.decode import assemble, host, loop, memory, native, replies, signals
from apr_jax.decode import state as states
from apr_jax.decode.book import RANDOM
from apr_jax.decode.placement import Placement
from apr_jax.decode.problem import Problem, check, check_seed, whole
from apr_jax.decode.program import Program, Weights
from apr_jax.decode.progress import Progress
from apr_jax.decode.protocol import Protocol
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.state import State
from apr_jax.model import io, transformer
from apr_jax.model import scorer as scorers
from apr_jax.model.transformer import Model
from apr_jax.record import Transcript


class Engine:
    """A program compiled for one model, protocol and sizes; it decodes any number of problems.

    Args:
        model: the model.
        protocol: the protocol.
        sizes: static sizes of a shard.
        mesh: mesh with the axes `data` and `model` (`sharding.make_mesh`); a mesh of one device by default. Problems are dealt
            over `data`. A mesh may span processes, which must then make the same calls with the same problems.
        host: Python's part of the method, for protocols that ask it.
        kernel: use the C++ kernels of `apr_jax.decode.native` for attention and products. None: if possible (with a warning if
            only a compiler is missing); True: or raise an error; False: never.
        scorer: weights for a protocol with the signal `Scorer`; see `set_scorer`.

    Raises:
        ValueError: the mesh does not fit the model, see `Placement`; the sizes do not fit the devices, see `memory.require`; the
            protocol asks and there is no host; `kernel` is True and the kernels cannot be used; or `scorer` is not what the
            protocol needs.
    """

    def __init__(
        self,
        model: Model,
        protocol: Protocol,
        sizes: Sizes,
        mesh: jax.sharding.Mesh | None = None,
        kernel: bool | None = None,
        host: host.Host | None = None,
        scorer: scorers.Weights | None = None,
    ):
        if protocol.needs.asks and host is None:
            raise ValueError(
                f"host is None; threads of {type(protocol).__name__} ask it, give one (`Method.host` has it)"
            )
        self.host = host
        self.mesh = mesh or sharding.make_mesh()
        self.sizes = sizes
        limit = memory.device_memory(self.mesh.local_devices[0])
        if limit is not None:
            memory.require(model.config, sizes, limit, self.mesh)
        dtype, graph = _activation_dtype(model), model.graph
        if self.mesh.devices.flat[0].platform == "cpu" and self.mesh.shape["model"] == 1:
            graph = transformer.graph_of(model.config, fused=True)
        self.program = Program(
            graph, protocol, sizes, native.choose(kernel, model.config, dtype, sizes, self.mesh, protocol.needs)
        )
        self.placement = Placement(self.program, self.mesh, dtype)
        self.shards = self.placement.shards
        self._given = Model(model.graph, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params))
        self._decoding = 0
        self.model = self._prepared(model)
        self.version = 0
        self.scorer: Any = ()
        self.set_scorer(scorer)
        self.traces = 0
        places = self.placement.state_places()
        self._create = jax.jit(self.placement.create, out_shardings=places)
        self._run = jax.jit(self._traced, donate_argnums=1, out_shardings=places)
        everywhere = jax.NamedSharding(self.mesh, jax.P())
        look = lambda books: (loop.asking(books), replies.untold(books.threads))
        self._asking = jax.jit(look, out_shardings=self.placement.place())
        self._count = jax.jit(jnp.sum, out_shardings=everywhere)
        places = dataclasses.replace(places, pool=())
        self._answer = jax.jit(self.placement.answer, donate_argnums=0, out_shardings=places)
        self._share = jax.jit(lambda counters: counters, out_shardings=everywhere)

    def _prepared(self, model: Model) -> Model:
        """The model as the program computes with it: fused, in its place, and packed."""
        graph, dtype = self.program.graph, self.placement.dtype
        model = transformer.fuse(model) if graph.fused and not model.graph.fused else model
        params = jax.tree.map(sharding.put, model.params, self.placement.param_places())
        model = Model(graph, params)
        return native.prepare(model, dtype) if self.program.kernel else model

    def update(self, params: transformer.Params, version: int | None = None) -> None:
        """Use these parameters from now on; nothing is compiled anew, and the caller may donate his arrays afterwards.

        Args:
            params: of the model that the engine was made with, in any dtype and layout: they are cast to the dtypes of that model
                and moved to where the engine needs them, from a training mesh over the same devices too.
            version: the number of these parameters, which transcripts keep (`Transcript.version`), such as the number of updates
                before; by default one more than that of the last ones. An engine begins with version 0. A state that is stepped
                by hand must be drained before.

        Raises:
            RuntimeError: problems are in flight, whose threads would go on with keys and values of other parameters.
            ValueError: the parameters are of another model.
        """
        if self._decoding:
            raise RuntimeError(
                "update: problems are in flight; read what `decode` yields to its end, or close it, before"
            )
        given = self._given
        shapes = lambda tree: {name: leaf.shape for name, leaf in io.flatten(tree).items()}
        wanted, found = shapes(given.params), shapes(params)
        if wanted != found:
            name = min(name for name in wanted | found if wanted.get(name) != found.get(name))
            raise ValueError(
                f"params: {name} has the shape {found.get(name)}; the engine's model has {wanted.get(name)}, give parameters of "
                "the same model"
            )
        # Copied even if nothing is cast: a training step may donate the arrays.
        copied = jax.tree.map(lambda new, old: jnp.array(new, old.dtype), params, given.params)
        made = self._prepared(Model(given.graph, copied))
        layout = lambda model: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), model.params)
        if layout(made) != layout(self.model):
            raise RuntimeError(
                "update: the new parameters lie otherwise than those that the program was compiled for, and it would be compiled "
                "anew; this is a fault of the engine, report it with the mesh and the versions"
            )
        self.model = made
        self.version = self.version + 1 if version is None else whole("version", version, 0)

    def set_scorer(self, weights: scorers.Weights | None) -> None:
        """Use these weights of the scorer from now on; nothing is compiled anew.

        Raises:
            ValueError: weights are missing, do not fit, or no signal of the protocol reads them.
        """
        name, read = type(self.program.protocol).__name__, signals.scored_by(self.program.protocol.needs.signals)
        if bool(weights) != bool(read):
            told = "reads a scorer, give its weights" if read else "reads no scorer, leave it out"
            raise ValueError(f"scorer is {'missing' if read else 'given'}; {name} {told}")
        if read:
            scorers.check("scorer", weights, self.model.config.width, read.hidden)
            everywhere = jax.NamedSharding(self.mesh, jax.P())
            self.scorer = jax.tree.map(lambda leaf: sharding.put(np.asarray(leaf, np.float32), everywhere), weights)

    @property
    def weights(self) -> Weights:
        """All that the program computes with."""
        return Weights(self.model.params, self.scorer)

    def _traced(self, weights: Weights, state: State, steps: jax.Array) -> State:
        self.traces += 1
        return self.placement.run(weights, state, steps)

    def compile(self) -> jax.stages.Compiled:
        """Compile now, from shapes alone, instead of at the first run; the result, of the slice, tells memory use and HLO text."""
        state = self.placement.abstract_state()
        self._run = self._run.lower(self.weights, state, np.int32(0)).compile()
        if self.host is not None:
            told = jax.tree.map(self._put, host.tell({}, self.shards, self.program))
            self._asking = self._asking.lower(state.books).compile()
            self._answer = self._answer.lower(dataclasses.replace(state, pool=()), told).compile()
        return self._run

    def create(self, seed: int) -> State:
        """An empty state, allocated in its place on the mesh; `seed`: see `check_seed`."""
        key = jax.random.key(np.uint32(check_seed(seed)), impl=RANDOM)
        return self._create(np.asarray(jax.random.key_data(key)))

    def load(self, state: State, problems: Sequence[Problem]) -> State:
        """Put problems, at most Q per shard, into the queue, which must be used up; they are dealt over the shards."""
        queue = states.Queue.of(problems, self.sizes, self.shards, self.program.protocol.needs)
        return dataclasses.replace(state, queue=jax.tree.map(self._put, queue))

    def _put(self, array: np.ndarray) -> jax.Array:
        return sharding.put(array, self.placement.place())

    def run(self, state: State, steps: int) -> State:
        """Run one slice of at most `steps` steps; the given state is donated."""
        return self._run(self.weights, state, np.int32(steps))

    def answer(self, state: State) -> tuple[State, int]:
        """Let the host reply to all threads that ask it, each process to those of its own shards; the given state is donated.

        Returns:
            The state; the number of questions of all processes. Without any nothing is done.
        """
        if self.host is None:
            return state, 0
        asking, untold = self._asking(state.books)
        count = int(self._count(asking))
        if not count:
            return state, 0
        clock, log = state.books.threads.cursor.clock, state.log
        held = states.kept(state.books, True), log.queued, log.fed, clock, asking, untold
        asked = host.questions(host.Held(*jax.tree.map(sharding.local, held)), self.program)
        shard_of = sharding.local_places(asking)
        said = self.host.reply(list(asked.values())) if asked else ()
        at = [(shard_of[shard], row, thread) for shard, row, thread in asked]
        told = host.tell(dict(zip(at, said, strict=True)), self.shards, self.program)
        pool, told = state.pool, jax.tree.map(self._put, told)
        return dataclasses.replace(self._answer(dataclasses.replace(state, pool=()), told), pool=pool), count

    def drain(self, state: State) -> tuple[State, list[Transcript]]:
        """Fetch finished problems and empty the outbox. Each process gets the problems of its own shards."""
        outbox = state.outbox
        counts = sharding.local(outbox.count)
        if not counts.any():
            return state, []
        host = jax.tree.map(sharding.local, outbox)
        places = [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
        found = [assemble.transcript(host.book, host.log, place, self.program, self.version) for place in places]
        empty = dataclasses.replace(outbox, count=self._put(np.zeros(self.shards, np.int32)))
        return dataclasses.replace(state, outbox=empty), found

    def peek(self, state: State) -> list[Transcript]:
        """Transcripts of the problems in flight, so far, with the stop reason RUNNING."""
        book = jax.tree.map(sharding.local, states.kept(state.books, self.program.protocol.needs.recorded))
        log = jax.tree.map(sharding.local, state.log)
        places = [(shard, row) for shard, row in np.argwhere(sharding.local(state.books.active)).tolist()]
        return [assemble.transcript(book, log, place, self.program, self.version) for place in places]

    def decode(
        self,
        problems: Sequence[Problem],
        seed: int = 0,
        slice_steps: int = 1000,
        watch: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[Transcript]:
        """Decode any number of problems; yields transcripts as problems finish (each process those of its own shards).

        Args:
            problems: the problems.
            seed: seed of all random draws.
            slice_steps: steps of a slice, between two visits of the host.
            watch: called with the progress after each slice.
            stop: called after each slice; when it returns True, decoding ends after the transcripts finished so far. To end a
                run with Ctrl-C, enter an `apr_jax.interrupt.Interrupt` and return its `requested`. All processes must return
                the same.

        Raises:
            ValueError: the sizes cannot hold a problem; the message names the problem and the allowed range.
            RuntimeError: no thread can run or asks, but problems have not ended: the protocol left a thread without a message.
        """
        for problem in problems:
            check(problem, self.model.config.vocabulary, self.sizes, self.program.protocol.needs)
        self._decoding += 1
        try:
            state, start = self.create(seed), time.monotonic()
            batch, stops, returns = self.sizes.queue * self.shards, collections.Counter(), 0
            for first in range(0, len(problems), batch):
                group = problems[first : first + batch]
                state = self.load(state, group)
                progress = self._progress(state, len(problems), start)
                while progress.finished < first + len(group):
                    before = progress.finished, progress.shard_steps
                    state, asked = self.answer(self.run(state, slice_steps))
                    returns += asked > 0
                    progress = self._progress(state, len(problems), start)
                    progress = dataclasses.replace(progress, returns=returns)
                    if not asked and before == (progress.finished, progress.shard_steps):
                        raise RuntimeError(self._stuck(state))
                    state, found = self.drain(state)
                    stops.update(transcript.stop for transcript in found)
                    if watch:
                        watch(dataclasses.replace(progress, stops=dict(stops)))
                    yield from found
                    if stop and stop():
                        return
        finally:
            self._decoding -= 1

    def _stuck(self, state: State) -> str:
        ids, name = ", ".join(str(found.problem) for found in self.peek(state)), type(self.program.protocol).__name__
        return (
            f"nothing can run any more, but the problems {ids} have not ended: {name} left a thread with nothing to feed and "
            "nobody to wait for; `Engine.peek` shows the threads"
        )

    def _progress(self, state: State, problems: int, start: float) -> Progress:
        """The progress over all shards, equal on all processes, so that they stop together; `start`: when decoding began."""
        counters = jax.tree.map(
            np.asarray, self._share(state.counters)
        )  # waits for the slice, which is only dispatched
        seconds = time.monotonic() - start
        sums = {field.name: int(np.sum(getattr(counters, field.name))) for field in dataclasses.fields(counters)}
        rows = sums.pop("decode_rows") / max(sums["decode_steps"] * self.sizes.rows, 1)
        steps = tuple((counters.feed_steps + counters.decode_steps).tolist())
        return Progress(problems=problems, occupancy=rows, seconds=seconds, shard_steps=steps, **sums)


def decode(
    model: Model,
    problems: Sequence[Problem],
    protocol: Protocol,
    sizes: Sizes,
    seed: int = 0,
    host: host.Host | None = None,
    **options: Any,
) -> list[Transcript]:
    """Decode problems with one protocol and return their transcripts, in the order of `problems`.

    Every call compiles anew: keep an `Engine` to decode more than once, to get transcripts as they finish, or to single-step.

    Args:
        model: the model.
        problems: prompts with their sampling parameters and budgets; no two with the same `id` and `sample`.
        protocol: a protocol, of `apr_jax.protocols` or your own.
        sizes: static sizes. Choose
            `problems`, P: problems in flight; memory and the number of busy rows grow with P;
            `rows`, A, `lanes`, W: rows of a step, and the most rows that one problem gets. Idle rows cost about as much as busy
            rows; if P W is well above A, few rows are idle (`benchmarks.occupancy`);
            `threads`, M, `slots`, N, `log`, T: for one problem over its life. A problem that needs more ends with
            THREADS_FULL, POOL_FULL or LOG_FULL; other problems are not affected. N counts tokens with keys and values, T all
            tokens;
            `prompt`, `queue`, `outbox`: see `Sizes`; they bound the host's part and cost little, except the outbox's logs.
            Memory is the parameters and, above all, the pool: 2 L P N K h numbers of the model's dtype (L layers, K kv heads
            of size h), or of int8 with `int8_pool`; `transformer.quantise` stores the parameters in int8.
            `memory.costs(model.config, sizes)` prints all parts and the cost of growing each size; `memory.choose_sizes`
            proposes sizes for given memory, prompt length, tokens per thread and threads.
        seed: seed of all random draws. A draw depends only on seed, id, sample and the path of its thread.
        host: Python's part of the method, for protocols that ask it.
        options: `slice_steps` and `watch` of `Engine.decode`.

    Raises:
        ValueError: the sizes cannot hold a problem, the devices cannot hold the sizes, or two problems have the same id and
            sample.
    """
    if len({(problem.id, problem.sample) for problem in problems}) < len(problems):
        raise ValueError("problems: two of them have the same id and sample; number them apart")
    engine = Engine(model, protocol, sizes, host=host)
    found = {(t.problem, t.sample): t for t in engine.decode(problems, seed, **options)}
    return [found[problem.id, problem.sample] for problem in problems]


def _activation_dtype(model: Model):
    wide = model.params["norm"]["scale"].dtype == jnp.float64
    return jnp.float64 if wide else jnp.dtype(model.config.dtype)
