"""Static sizes: everything the compiled program depends on beside the model and the protocol.

`apr_jax.decode.memory` tells the memory that each size costs.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Static sizes (per shard); the program compiles once for each value.

    Attributes:
        problems: P, problems in flight.
        lanes: W, threads of one problem that may compute in one decode step.
        rows: A, rows of a decode step, shared by all problems (at most P W).
        feed_tiles: G, threads that a feed step serves.
        feed_chunk: C, tokens of one thread in a feed step (a feed step has F = G C rows).
        feed_threshold: a thread with more waiting tokens than this is served by feed steps, every other thread by decode steps.
        threads: M, threads of a problem over its life.
        slots: N, key/value slots of a problem.
        page_size: slots of a page; a page belongs to one thread.
        log: T, log entries of a problem.
        log_page_size: entries of a page of the log; such a page belongs to one thread.
        queue: Q, problems that one call of the compiled program can take.
        prompt: longest prompt, tokens.
        outbox: O, finished problems kept on the device until the host fetches them.
        attention_block: slots that attention reads at a time, up to the fill mark.
        host: tokens that the host may say in a problem, for protocols that ask it.
        asking: a slice ends when so many threads ask the host; 0: when nothing else can run, so that replies come in large batches.
        int8_pool: keys and values are kept in int8, with one scale per slot and kv head for keys and one for values; about half
            the memory of bfloat16. `experiments.measure_int8` measures the loss. Attention is then XLA's on CPU too.
    """

    problems: int = 8
    lanes: int = 8
    rows: int = 64
    feed_tiles: int = 4
    feed_chunk: int = 32
    feed_threshold: int = 4
    threads: int = 32
    slots: int = 2048
    page_size: int = 16
    log: int = 4096
    log_page_size: int = 16
    queue: int = 64
    prompt: int = 64
    outbox: int = 64
    attention_block: int = 512
    host: int = 0
    asking: int = 0
    int8_pool: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("feed_threshold", "host", "asking") else 1
            if field.name == "int8_pool":
                if not isinstance(value, bool):
                    raise ValueError(f"sizes.int8_pool = {value!r}: must be True or False")
            elif value < least:
                raise ValueError(f"sizes.{field.name} = {value}: at least {least} is needed")
        if self.rows > self.problems * self.lanes:
            raise ValueError(
                f"sizes.rows = {self.rows}: more than problems x lanes = {self.problems} x {self.lanes} = "
                f"{self.problems * self.lanes} rows can never be busy; lower rows or raise lanes"
            )
        for whole, part in (("slots", "page_size"), ("log", "log_page_size")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"sizes.{whole} = {getattr(self, whole)}: must be a multiple of sizes.{part} = {getattr(self, part)}"
                )
        if self.slots % self.block:
            raise ValueError(
                f"sizes.slots = {self.slots}: must be a multiple of sizes.attention_block = {self.attention_block}"
            )

    @property
    def block(self) -> int:
        """Slots that attention reads at a time."""
        return min(self.attention_block, self.slots)

    @property
    def pages(self) -> int:
        """Pages of a pool."""
        return self.slots // self.page_size

    @property
    def log_pages(self) -> int:
        """Pages of a log."""
        return self.log // self.log_page_size

    @property
    def words(self) -> int:
        """32-bit words of one row of the visibility matrix."""
        return -(-self.threads // 32)
