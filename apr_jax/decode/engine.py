"""From problems to transcripts: the host's side of decoding.

The host fills the queue, runs the compiled program slice by slice, and fetches finished problems between slices. Inside a
slice nothing is asked of it.
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
from apr_jax.decode import assemble, memory, native
from apr_jax.decode import state as states
from apr_jax.decode.book import RANDOM
from apr_jax.decode.loop import Program
from apr_jax.decode.placement import Placement
from apr_jax.decode.problem import Problem, check, check_seed
from apr_jax.decode.progress import Progress
from apr_jax.decode.protocol import Protocol
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.state import State
from apr_jax.model import transformer
from apr_jax.model.transformer import Model
from apr_jax.record import Transcript


class Engine:
    """A program compiled for one model, protocol and sizes, to be run on any number of problems.

    Args:
        model: the model.
        protocol: the method.
        sizes: static sizes of a shard.
        mesh: mesh with the axes `data` and `model` (`sharding.make_mesh`); a mesh of one device by default. The queue is dealt
            over `data`. It may span processes, which then make the same calls with the same problems.
        kernel: attention and products by the C++ kernels of `apr_jax.decode.native`: None where it can be (with a warning where
            only a compiler is lacking), True or an error, False never.

    Raises:
        ValueError: the mesh does not fit the model, see `Placement`, the sizes do not fit the devices, see `memory.require`, or
            the kernel is asked for and cannot be had.
    """

    def __init__(
        self,
        model: Model,
        protocol: Protocol,
        sizes: Sizes,
        mesh: jax.sharding.Mesh | None = None,
        kernel: bool | None = None,
    ):
        self.mesh = mesh or sharding.make_mesh()
        self.sizes = sizes
        limit = memory.device_memory(self.mesh.local_devices[0])
        if limit is not None:
            memory.require(model.config, sizes, limit, self.mesh)
        if self.mesh.devices.flat[0].platform == "cpu" and self.mesh.shape["model"] == 1:
            model = transformer.fuse(model)
        dtype = _activation_dtype(model)
        self.program = Program(
            model.graph, protocol, sizes, native.choose(kernel, model.config, dtype, sizes, self.mesh)
        )
        self.placement = Placement(self.program, self.mesh, dtype)
        self.shards = self.placement.shards
        params = jax.tree.map(sharding.put, model.params, self.placement.param_places())
        model = dataclasses.replace(model, params=params)
        self.model = native.prepare(model, dtype) if self.program.kernel else model
        self.traces = 0
        places = self.placement.state_places()
        self._create = jax.jit(self.placement.create, out_shardings=places)
        self._run = jax.jit(self._traced, donate_argnums=1, out_shardings=places)
        everywhere = jax.NamedSharding(self.mesh, jax.P())
        self._share = jax.jit(lambda counters: counters, out_shardings=everywhere)

    def _traced(self, params: Any, state: State, steps: jax.Array) -> State:
        self.traces += 1
        return self.placement.run(params, state, steps)

    def compile(self) -> jax.stages.Compiled:
        """Compile the slice now instead of at the first run, from shapes alone; tells its memory and its text."""
        self._run = self._run.lower(self.model.params, self.placement.abstract_state(), np.int32(0)).compile()
        return self._run

    def create(self, seed: int) -> State:
        """An empty state, born in its place on the mesh; `seed`: see `check_seed`."""
        key = jax.random.key(np.uint32(check_seed(seed)), impl=RANDOM)
        return self._create(np.asarray(jax.random.key_data(key)))

    def load(self, state: State, problems: Sequence[Problem]) -> State:
        """Put problems into the queue, which must be spent; at most Q per shard are taken, dealt over the shards."""
        queue = states.Queue.of(problems, self.sizes, self.shards, self.program.protocol.needs)
        return dataclasses.replace(state, queue=jax.tree.map(self._put, queue))

    def _put(self, array: np.ndarray) -> jax.Array:
        return sharding.put(array, self.placement.place())

    def run(self, state: State, steps: int) -> State:
        """Run one slice; the state given is consumed."""
        return self._run(self.model.params, state, np.int32(steps))

    def drain(self, state: State) -> tuple[State, list[Transcript]]:
        """Fetch what is finished and empty the outbox. Of several processes, each gets what its own shards have finished."""
        outbox = state.outbox
        counts = sharding.local(outbox.count)
        if not counts.any():
            return state, []
        host = jax.tree.map(sharding.local, outbox)
        places = [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
        found = [assemble.transcript(host.book, host.log, place, self.program) for place in places]
        empty = dataclasses.replace(outbox, count=self._put(np.zeros(self.shards, np.int32)))
        return dataclasses.replace(state, outbox=empty), found

    def peek(self, state: State) -> list[Transcript]:
        """The problems in flight as they stand: their threads so far, with the stop reason RUNNING."""
        book = jax.tree.map(sharding.local, states.kept(state.books, self.program.protocol.needs.recorded))
        log = jax.tree.map(sharding.local, state.log)
        places = [(shard, row) for shard, row in np.argwhere(sharding.local(state.books.active)).tolist()]
        return [assemble.transcript(book, log, place, self.program) for place in places]

    def decode(
        self,
        problems: Sequence[Problem],
        seed: int = 0,
        slice_steps: int = 1000,
        watch: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[Transcript]:
        """Decode any number of problems; transcripts come as they finish (to each process those of its own shards).

        Args:
            problems: what to decode.
            seed: seed of all random draws.
            slice_steps: steps between two looks of the host.
            watch: called after each slice.
            stop: asked after each slice; once it says so, what is finished has come and nothing else does. To end a run with
                Ctrl-C, enter an `apr_jax.interrupt.Interrupt` and look at its `requested`. Of several processes all must
                say the same.

        Raises:
            ValueError: a problem that the sizes cannot hold, named with what is allowed.
            RuntimeError: nothing can run, but problems have not ended: the protocol lost a thread.
        """
        for problem in problems:
            check(problem, self.model.config.vocabulary, self.sizes, self.program.protocol.needs)
        state, start = self.create(seed), time.monotonic()
        batch, stops = self.sizes.queue * self.shards, collections.Counter()
        for first in range(0, len(problems), batch):
            group = problems[first : first + batch]
            state = self.load(state, group)
            progress = self._progress(state, len(problems), 0.0)
            while progress.finished < first + len(group):
                before = progress.finished, progress.shard_steps
                state = self.run(state, slice_steps)
                progress = self._progress(state, len(problems), time.monotonic() - start)
                if before == (progress.finished, progress.shard_steps):
                    raise RuntimeError(self._stuck(state))
                state, found = self.drain(state)
                stops.update(transcript.stop for transcript in found)
                if watch:
                    watch(dataclasses.replace(progress, stops=dict(stops)))
                yield from found
                if stop and stop():
                    return

    def _stuck(self, state: State) -> str:
        ids, name = ", ".join(str(found.problem) for found in self.peek(state)), type(self.program.protocol).__name__
        return (
            f"nothing can run any more, but the problems {ids} have not ended: {name} left a thread with nothing to feed and "
            "nobody to wait for; `Engine.peek` shows the threads"
        )

    def _progress(self, state: State, problems: int, seconds: float) -> Progress:
        """The same on all processes, so that they stop together."""
        counters = jax.tree.map(np.asarray, self._share(state.counters))
        sums = {field.name: int(np.sum(getattr(counters, field.name))) for field in dataclasses.fields(counters)}
        rows = sums.pop("decode_rows") / max(sums["decode_steps"] * self.sizes.rows, 1)
        steps = tuple((counters.feed_steps + counters.decode_steps).tolist())
        return Progress(problems=problems, occupancy=rows, seconds=seconds, shard_steps=steps, **sums)


def decode(
    model: Model, problems: Sequence[Problem], protocol: Protocol, sizes: Sizes, seed: int = 0, **options: Any
) -> list[Transcript]:
    """Decode problems with one method and return their transcripts, in the order of `problems`.

    Compiles anew at every call: keep an `Engine` to decode more than once, to see transcripts as they come, or to step.

    Args:
        model: the model.
        problems: prompts with their sampling parameters and budgets; no two with the same `id` and `sample`.
        protocol: the method, one of `apr_jax.protocols` or of your own.
        sizes: what is compiled for. Choose
            `problems`, P: problems in flight; memory grows with it, and so do busy rows;
            `rows`, A, `lanes`, W: rows of a step, and the most that one problem gets of them. A step costs about as much for
            idle rows as for busy ones: with P W well above A few idle (`benchmarks.occupancy`);
            `threads`, M, `slots`, N, `log`, T: for one problem over its life. A problem that needs more ends with
            THREADS_FULL, POOL_FULL or LOG_FULL; others do not notice. N counts tokens with keys and values, T all tokens;
            `prompt`, `queue`, `outbox`: see `Sizes`; they bound the host's part and cost little but for the outbox's logs.
            Memory is the parameters and, above all, the pool: 2 L P N K h numbers of the model's dtype (L layers, K kv heads
            of size h), or of int8 with `int8_pool`; `transformer.quantise` does the same for the parameters.
            `memory.costs(model.config, sizes)` prints all parts and what growing each size adds; `memory.choose_sizes`
            proposes sizes for a memory, a prompt length, tokens a thread and threads.
        seed: seed of all random draws. A problem's draws depend on seed, id, sample and path of the thread alone.
        options: `slice_steps` and `watch` of `Engine.decode`.

    Raises:
        ValueError: a problem that the sizes cannot hold, sizes that the devices cannot, or problems that are named alike.
    """
    if len({(problem.id, problem.sample) for problem in problems}) < len(problems):
        raise ValueError("problems: two of them have the same id and sample; number them apart")
    found = {(t.problem, t.sample): t for t in Engine(model, protocol, sizes).decode(problems, seed, **options)}
    return [found[problem.id, problem.sample] for problem in problems]


def _activation_dtype(model: Model):
    wide = model.params["norm"]["scale"].dtype == jnp.float64
    return jnp.float64 if wide else jnp.dtype(model.config.dtype)
