"""One thread that thinks until it ends: the baseline."""

import dataclasses

from apr_jax import protocols
from apr_jax.methods.method import Method
from apr_jax.methods.samples import Samples
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Sequential(Method):
    """See `apr_jax.protocols.sequential`."""

    def protocol(self, codec: TextCodec) -> protocols.Sequential:
        return protocols.Sequential(self.end_id(codec))

    def grouped(self, count: int) -> Samples:
        return Samples(count=count, end=self.end, add=self.add, gain=self.gain)
