"""`transformers` on torch CPU: one batch, its own cache, step by step (the loop of `generate` without its bookkeeping)."""

import time

import torch
import transformers

from benchmarks.peers.workers.serve import Measured, Options, serve, unsupported
from benchmarks.peers.workloads import Feed, Threads, Workload


class Transformers:
    """A causal language model of `transformers`."""

    def __init__(self, folder: str, options: Options):
        torch.set_num_threads(options.cores)
        dtype = getattr(torch, options.dtype)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.temperature = options.temperature
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}

    def run(self, work: Workload) -> Measured:
        with torch.inference_mode():
            if isinstance(work, Feed):
                prompt = torch.tensor([work.tokens_of_prompt])
                start = time.perf_counter()
                self._next(self.model(prompt, use_cache=True, logits_to_keep=1).logits)
                return Measured(time.perf_counter() - start, 1)
            if isinstance(work, Threads):
                return self._threads(work)
        raise unsupported(work, "transformers")

    def _threads(self, work: Threads) -> Measured:
        prefixes = torch.tensor(work.prefixes)
        output = self.model(prefixes, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits
        start = time.perf_counter()
        cache.batch_repeat_interleave(work.threads)
        tokens = self._next(logits.repeat_interleave(work.threads, dim=0))
        for _ in range(work.tokens_each - 1):
            output = self.model(tokens, past_key_values=cache, use_cache=True)
            tokens = self._next(output.logits)
        return Measured(time.perf_counter() - start, work.tokens)

    def _next(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each row, [rows, 1]."""
        if self.temperature == 0:
            return logits[:, -1].argmax(dim=-1, keepdim=True)
        return torch.multinomial(torch.softmax(logits[:, -1].float() / self.temperature, dim=-1), 1)


if __name__ == "__main__":
    serve(Transformers)
