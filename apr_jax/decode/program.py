"""What is compiled: a model, a protocol and sizes, and whether these go together."""

import dataclasses
from typing import Any

from apr_jax.decode import signals
from apr_jax.decode.protocol import Protocol
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.threads import pytree
from apr_jax.model import scorer, transformer


@pytree
class Weights:
    """What a program computes with, which may change without compiling anew.

    Attributes:
        model: the model's parameters.
        scorer: the weights of the scorer that a signal reads; `()` if none does.
    """

    model: transformer.Params
    scorer: Any = ()


@dataclasses.dataclass(frozen=True)
class Program:
    """The static (hashable) inputs of compilation. `kernel`: attention is computed by `apr_jax.decode.native`."""

    graph: transformer.Graph
    protocol: Protocol
    sizes: Sizes
    kernel: bool = False

    def __post_init__(self):
        fit(self.protocol, self.sizes)
        told, branches = self.graph.config.branch_embedding, self.protocol.needs.branches
        if 0 < told <= branches:
            raise ValueError(
                f"model.branch_embedding = {told}: {type(self.protocol).__name__} has branches up to {branches}, so at least "
                f"{branches + 1} are needed; train a model that has them, or let the protocol have fewer"
            )
        signals.scored_by(self.protocol.needs.signals)

    def abstract_scorer(self) -> Any:
        """Shapes and dtypes of the scorer's weights; `()` if no signal reads one."""
        read = signals.scored_by(self.protocol.needs.signals)
        return scorer.abstract(self.graph.config.width, read.hidden) if read else ()


def _hears(protocol: Protocol, sizes: Sizes) -> None:
    """Refuse a protocol that asks the host where that cannot be; ValueError says why."""
    name, needs = type(protocol).__name__, protocol.needs
    if needs.asks and needs.groups:
        raise ValueError(
            f"{name}.needs.asks with live or races: threads that see or end each other keep step by clock, so that one that asks "
            "would hold up all the others of its group until Python has replied; let the children end, and their parent ask"
        )
    if needs.asks and needs.asks.messages and not sizes.host:
        raise ValueError(f"sizes.host = 0: the host may send tokens to threads of {name}, so at least 1 is needed")


def fit(protocol: Protocol, sizes: Sizes) -> None:
    """Refuse sizes that are too small for every problem of the protocol.

    Raises:
        ValueError: a size is too small; the message has the size, its value and the least allowed value.
    """
    _hears(protocol, sizes)
    name, least, together = type(protocol).__name__, protocol.needs.threads, protocol.needs.together
    holds = {
        "threads": (sizes.threads, 1),
        "slots": (sizes.pages, sizes.page_size),
        "log": (sizes.log_pages, sizes.log_page_size),
    }
    for size, (most, unit) in holds.items():  # every thread needs at least one page of slots and one page of the log
        if most < least:
            raise ValueError(
                f"sizes.{size} = {getattr(sizes, size)}: {name} opens {least} threads, so at least {least * unit} are needed"
            )
    if protocol.needs.views and (protocol.needs.splits or sizes.block % sizes.page_size):
        raise ValueError(
            f"{name} has views: a page must belong to one thread (needs.splits is {protocol.needs.splits}) and lie in one block: "
            f"sizes.attention_block = {sizes.attention_block} must be a multiple of sizes.page_size = {sizes.page_size}"
        )
    if together > min(sizes.lanes, sizes.rows // sizes.problems):
        raise ValueError(
            f"sizes.lanes = {sizes.lanes}, sizes.rows = {sizes.rows}: up to {together} threads of a problem go together, so "
            f"lanes must be at least {together} and rows at least problems x {together} = {sizes.problems * together}"
        )
