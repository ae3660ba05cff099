"""Self-consistency that ends its samples as soon as the majority is certain."""

import dataclasses

from apr_jax import protocols
from apr_jax.methods.samples import Samples
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class EarlyVote(Samples):
    """See `apr_jax.protocols.early_vote`.

    Attributes:
        answer: the word after which an answer stands, up to the end; one id.
    """

    answer: str = "<goal>"
    independent = False

    def protocol(self, codec: TextCodec) -> protocols.EarlyVote:
        return protocols.EarlyVote(self.count, self.end_id(codec), codec.id(self.answer))
