"""llama.cpp through llama-cpp-python: one batch of sequences that share the cells of their prefix (`seq_cp` copies nothing).

The weights are those of the GGUF file beside the Hugging Face folder (`weights.write_gguf`). Greedy, whatever the
temperature: the cheapest choice there is.
"""

import time
from pathlib import Path

import llama_cpp

from benchmarks.peers.workers.serve import Measured, Options, serve, unsupported
from benchmarks.peers.workloads import Feed, Threads, Workload

CPU = Path("/proc/cpuinfo")


class LlamaCpp:
    """A context of llama.cpp whose sequences share one cache."""

    def __init__(self, folder: str, options: Options):
        path = Path(folder) / f"model.{options.quantisation}.gguf"
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        # On processors with AMX it repacks weights for tiles and dies of a segmentation fault in the first product with them
        # (ggml-org/llama.cpp issue 20824, pull request 26954): the fault is its own, so it runs there without.
        repacks = "amx_int8" not in CPU.read_text() if CPU.exists() else True
        model.use_extra_bufts = repacks
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_seq_max = options.context, options.context, 64
        context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = options.cores
        context.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError(f"llama.cpp could not open {path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.greedy = llama_cpp.llama_sampler_init_greedy()
        self.batch = llama_cpp.llama_batch_init(options.context, 0, 1)
        self.versions = {"llama-cpp-python": llama_cpp.__version__, "gguf": options.quantisation}
        self.versions |= {} if repacks else {"llama.cpp repacking": "off, it dies of it on AMX"}

    def run(self, work: Workload) -> Measured:
        self.memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(self.memory, True)
        if isinstance(work, Feed):
            start = time.perf_counter()
            self._prompt(work.tokens_of_prompt)
            return Measured(time.perf_counter() - start, 1)
        if isinstance(work, Threads) and work.problems == 1:
            token = self._prompt(work.prefixes[0])
            start = time.perf_counter()
            for thread in range(1, work.threads):
                llama_cpp.llama_memory_seq_cp(self.memory, 0, thread, -1, -1)
            tokens = [token] * work.threads
            for step in range(work.tokens_each - 1):
                rows = range(work.threads)
                self._decode([(tokens[row], work.prefix + step, row, True) for row in rows])
                tokens = [self._sample(row) for row in rows]
            return Measured(time.perf_counter() - start, work.tokens)
        raise unsupported(work, "llama.cpp")

    def _prompt(self, tokens: tuple[int, ...]) -> int:
        """Feed a prompt to sequence 0; returns the token after it."""
        last = len(tokens) - 1
        self._decode([(token, place, 0, place == last) for place, token in enumerate(tokens)])
        return self._sample(last)

    def _sample(self, row: int) -> int:
        return llama_cpp.llama_sampler_sample(self.greedy, self.context, row)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Feed rows of (token, position, sequence, wants logits)."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, position, wants
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
        code = llama_cpp.llama_decode(self.context, self.batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code} for {len(rows)} rows")


if __name__ == "__main__":
    serve(LlamaCpp)
