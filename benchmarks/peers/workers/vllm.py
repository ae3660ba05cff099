"""vLLM on CPU, driven in process, step by step, as published clients drive it.

The client of ThreadWeaver knows three states: it asks for a stretch of reasoning; it asks for all threads at once, each
with the whole context so far and its header; it appends header and text of all threads to the context and goes on. (Here it
has no server between.)

search-and-learn's beam search and DVTS know the text of every beam. In each round they ask for `width` samples of one step
after the prompt and each beam so far, score all answers, and keep the best.

vLLM finds what it has seen before in its prefix cache.
"""

import dataclasses
import heapq
import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.workers.serve import Measured, Options, serve, unsupported
from benchmarks.peers.workloads import Feed, ForkJoin, Samples, Script, Steps, Threads, Workload

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


@dataclasses.dataclass(frozen=True)
class Answer:
    """A sample of a request: its tokens, and the sum of their log-probabilities where those were asked for."""

    tokens: list[int]
    logprob: float | None = None


class Search:
    """The state of one problem of `Steps`: beams as prompt and tokens so far, with the sum of their log-probabilities.

    All beams of a round are of one length, so that the sum ranks them as the mean does.
    """

    def __init__(self, work: Steps, prompt: Sequence[int]):
        self.work, self.rounds = work, 0
        self.beams = [Answer(list(prompt), 0.0)] * work.beams
        self.answers: dict[int, list[Answer]] = {}

    def contexts(self) -> list[list[int]]:
        """What is asked for `width` samples of a step each, by beam."""
        return [beam.tokens for beam in self.beams]

    def next(self, beam: int, answers: list[Answer]) -> bool:
        """Take the samples after a beam; whether a round of requests follows."""
        work = self.work
        self.answers[beam] = answers
        if len(self.answers) < len(self.beams):
            return False
        extended = [
            [Answer(before.tokens + answer.tokens, before.logprob + answer.logprob) for answer in self.answers[i]]
            for i, before in enumerate(self.beams)
        ]
        each = work.beams // work.subtrees
        self.beams, self.answers, self.rounds = [], {}, self.rounds + 1
        for first in range(0, work.beams, each):
            candidates = [answer for answers in extended[first : first + each] for answer in answers]
            self.beams += heapq.nlargest(each, candidates, key=lambda answer: answer.logprob)
        return self.rounds < work.steps


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
            **({"block_size": options.block_size} if options.block_size else {}),
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
        if isinstance(work, Samples):
            start = time.perf_counter()
            for prompt in work.prompts:
                self._ask(list(prompt), work.tokens_each, n=work.samples, temperature=work.temperature)
            return Measured(tokens=self._answers(), seconds=time.perf_counter() - start)
        if isinstance(work, Steps):
            return self._steps(work)
        raise unsupported(work, "vLLM")

    def _ask(self, tokens: list[int], count: int, **options: Any) -> str:
        """Send a request; returns its name. The options are further sampling parameters."""
        self.asked += 1
        name = str(self.asked)
        parameters = self.vllm.SamplingParams(
            max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
            **{"temperature": self.temperature, **options},
        )  # fmt: skip
        self.engine.add_request(name, {"prompt_token_ids": tokens}, parameters)
        return name

    def _finished(self) -> list[tuple[str, list[Answer]]]:
        """Take one step; returns what it finished: the names of requests and their samples."""
        return [
            (request.request_id, [Answer(list(one.token_ids), one.cumulative_logprob) for one in request.outputs])
            for request in self.engine.step()
            if request.finished
        ]

    def _answers(self) -> int:
        """Step until nothing is left; returns the tokens generated."""
        tokens = 0
        while self.engine.has_unfinished_requests():
            tokens += sum(len(answer.tokens) for _, answers in self._finished() for answer in answers)
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
            for name, (answer,) in self._finished():
                problem, thread = asked.pop(name)
                generated += len(answer.tokens)
                requests = problem.next(thread, answer.tokens)
                if requests is not None:
                    ask(problem, requests)
                elif waiting:
                    problem = waiting.pop()
                    ask(problem, problem.first())
        return Measured(time.perf_counter() - start, generated)

    def _steps(self, work: Steps) -> Measured:
        asked: dict[str, tuple[Search, int]] = {}
        generated = 0

        def ask(search: Search) -> None:
            for beam, tokens in enumerate(search.contexts()):
                # No further log-probabilities than that of the token sampled.
                name = self._ask(tokens, work.tokens_each, n=work.width, temperature=work.temperature, logprobs=0)
                asked[name] = search, beam

        start = time.perf_counter()
        for prompt in work.prompts:
            ask(Search(work, prompt))
        while asked:
            for name, answers in self._finished():
                search, beam = asked.pop(name)
                generated += sum(len(answer.tokens) for answer in answers)
                if search.next(beam, answers):
                    ask(search)
        return Measured(time.perf_counter() - start, generated)


if __name__ == "__main__":
    serve(Vllm)
