"""Independent samples of one prompt: self-consistency and best-of-N, which differ in the selector of the answer."""

import dataclasses

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.method import Method, Sampling
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Samples(Method):
    """See `apr_jax.protocols.samples`.

    Attributes:
        count: samples of each question.
    """

    count: int = 4
    independent = True

    def __post_init__(self):
        super().__post_init__()
        whole("samples.count", self.count, 1)

    def check(self, sampling: Sampling) -> Sampling:
        if self.count > 1:
            sampling.require_chance(f"the {self.count} samples of each question would be copies of one answer", 0.7)
        return sampling

    def protocol(self, codec: TextCodec) -> protocols.Samples:
        return protocols.Samples(self.count, self.end_id(codec))
