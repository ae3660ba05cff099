"""vLLM on CPU, driven in process, step by step, as the client of ThreadWeaver drives its server (without the server).

The client of ThreadWeaver knows three states: it asks for a stretch of reasoning; it asks for all threads at once, each
with the whole context so far and its header; it appends header and text of all threads to the context and goes on. vLLM
finds what it has seen before in its prefix cache.
"""

import os
import time
from typing import Any

from benchmarks.peers.workers.serve import Measured, Options, serve, unsupported
from benchmarks.peers.workloads import Feed, ForkJoin, Script, Threads, Workload

CACHE_GIB = 4


class Problem:
    """The state of one problem: what the client knows between two requests."""

    def __init__(self, script: Script):
        self.script = script
        self.context = list(script.prompt)
        self.threads: dict[int, list[int]] = {}
        self.forked = False

    def first(self) -> list[tuple[int, list[int], int]]:
        """The first request: (number of the thread, tokens, tokens to be generated)."""
        return [(0, self.context, self.script.alone)]

    def next(self, thread: int, tokens: list[int]) -> list[tuple[int, list[int], int]] | None:
        """The requests that follow an answer; None when the problem is finished."""
        script = self.script
        if not self.forked:
            self.forked = True
            self.context += tokens
            return [(i, [*self.context, i], length) for i, length in enumerate(script.lengths)]
        if len(self.threads) == len(script.lengths):
            return None
        self.threads[thread] = tokens
        if len(self.threads) < len(script.lengths):
            return []
        for i in range(len(script.lengths)):
            self.context += [i, *self.threads[i]]
        return [(0, self.context, script.after)]


class Vllm:
    """vLLM with prefix caching."""

    def __init__(self, folder: str, options: Options):
        # Read by vLLM when it is imported. One process, so that `step` is a function call and not a message; with
        # OMP_NUM_THREADS unset, vLLM would then leave its own products one thread.
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "OMP_NUM_THREADS": str(options.cores),
        }
        import torch
        import vllm

        arguments = vllm.EngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            dtype=options.dtype,
            max_model_len=options.context,
            max_num_seqs=options.sequences,
            enable_prefix_caching=True,
            disable_log_stats=True,
        )
        self.engine = vllm.LLMEngine.from_engine_args(arguments)
        self.vllm, self.temperature = vllm, options.temperature
        self.versions = {"vllm": vllm.__version__, "torch": torch.__version__}
        self.asked = 0

    def run(self, work: Workload) -> Measured:
        self.engine.reset_prefix_cache()
        if isinstance(work, ForkJoin):
            return self._fork_join(work)
        if isinstance(work, Threads):
            for prefix in work.prefixes:
                self._ask(list(prefix), 1)
            self._answers()
            start = time.perf_counter()
            for prefix in work.prefixes:
                for _ in range(work.threads):
                    self._ask(list(prefix), work.tokens_each)
            tokens = self._answers()
            return Measured(time.perf_counter() - start, tokens)
        if isinstance(work, Feed):
            start = time.perf_counter()
            self._ask(list(work.tokens_of_prompt), 1)
            return Measured(tokens=self._answers(), seconds=time.perf_counter() - start)
        raise unsupported(work, "vLLM")

    def _ask(self, tokens: list[int], count: int) -> str:
        """Send a request; returns its name."""
        self.asked += 1
        name = str(self.asked)
        parameters = self.vllm.SamplingParams(
            max_tokens=count, min_tokens=count, ignore_eos=True, temperature=self.temperature, detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self.engine.add_request(name, {"prompt_token_ids": tokens}, parameters)
        return name

    def _finished(self) -> list[tuple[str, list[int]]]:
        """Take one step; returns what it finished: names and tokens."""
        return [
            (answer.request_id, list(answer.outputs[0].token_ids)) for answer in self.engine.step() if answer.finished
        ]

    def _answers(self) -> int:
        """Step until nothing is left; returns the tokens generated."""
        tokens = 0
        while self.engine.has_unfinished_requests():
            tokens += sum(len(answer) for _, answer in self._finished())
        return tokens

    def _fork_join(self, work: ForkJoin) -> Measured:
        waiting = [Problem(script) for script in reversed(work.scripts)]
        asked: dict[str, tuple[Problem, int]] = {}
        generated = 0

        def ask(problem: Problem, requests: Any) -> None:
            for thread, tokens, count in requests:
                asked[self._ask(tokens, count)] = problem, thread

        start = time.perf_counter()
        for _ in range(min(work.in_flight, len(waiting))):
            problem = waiting.pop()
            ask(problem, problem.first())
        while asked:
            for name, tokens in self._finished():
                problem, thread = asked.pop(name)
                generated += len(tokens)
                requests = problem.next(thread, tokens)
                if requests is not None:
                    ask(problem, requests)
                elif waiting:
                    problem = waiting.pop()
                    ask(problem, problem.first())
        return Measured(time.perf_counter() - start, generated)


if __name__ == "__main__":
    serve(Vllm)
