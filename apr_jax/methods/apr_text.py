"""APR in its published text format (Pan et al. 2025, arXiv 2504.15466; the client that was released with it).

1. The root samples to the end of the text. If its last line holds `<End Calling Sub Searches>` then, the lines of the block before
   it name nodes of its search; otherwise the root is done.
2. Each of them becomes a child, whose prompt is the state of its node and nothing else. The client finds the state by parsing the
   root's text. Children end by the end of the text, and never call.
3. A child returns what it wrote after its last but one `Goal Reached`, or nothing.
4. The block is deleted, and a block of results takes its place; the root goes on as from a new request, and may call again.
5. No thread may write `<Sub Searches>` itself: the client deletes it, writes `<Calling Sub Searches>` instead, and goes on.

What is sent is text: it is encoded as a whole for every request, after the id that begins a text (the published client puts it
there itself). Rule 4 therefore forgets the block (`apr_jax.protocols.text_client`), and a text that the model cut into other tokens
than the tokenizer does is read as the tokenizer cuts it. Training on such a rollout reads from the log what each token saw.

Where the client fails with an error or does what nobody wants, the root ends as MALFORMED, and `Transcript.own["breach"]` tells
the `Breach`: a block that has no beginning (it would delete all that stands before), that names no node, or one that the text does
not describe, or more than `most`. Lines that do not parse describe no node; the published client evaluates them.
"""

import abc
import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np

from apr_jax import protocols
from apr_jax.decode.host import Host, Question, Said, View
from apr_jax.decode.problem import whole
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.methods.method import Method
from apr_jax.protocols.text_client import Action, Why
from apr_jax.record import Stop, Transcript
from apr_jax.tokenizer import TextCodec

CALL, RESULTS = "<Calling Sub Searches>", "<Sub Searches>"
CALL_END, RESULTS_END = "<End Calling Sub Searches>", "<End Sub Searches>"
_NODE = "Moving to Node #"


class Breach(enum.IntEnum):
    """What may be wrong with a call."""

    NONE = 0
    NO_BEGINNING = 1
    NO_NODES = 2
    UNKNOWN_NODE = 3
    TOO_MANY = 4


class Search(abc.ABC):
    """What the client must know of the task whose search the text is."""

    @abc.abstractmethod
    def prompts(self, text: str, nodes: Sequence[str]) -> list[str] | None:
        """The prompts of the children that begin at these nodes, as `text` describes them; None if it lacks one of them."""

    @abc.abstractmethod
    def result(self, text: str) -> str | None:
        """What a child returns that wrote `text`, its prompt included; None if it failed."""


def encoded(codec: TextCodec, text: str) -> list[int]:
    """The tokens of a request."""
    return [*([] if codec.bos is None else [codec.bos]), *codec.encode_text(text)]


def decoded(codec: TextCodec, tokens: Sequence[int]) -> str:
    """The text of a request and what came of it, without ids that only frame texts."""
    frames = codec.marks | {codec.bos, codec.eos}
    return codec.decode([token for token in map(int, tokens) if token not in frames])


@dataclasses.dataclass(frozen=True)
class Call:
    """A block at the end of a text: what stands before it, and the nodes that it names."""

    before: str
    nodes: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Call | Breach | None":
        """The call with which a text ends; None if it ends otherwise."""
        text = text.removesuffix("\n")
        if CALL_END not in text.rpartition("\n")[2]:
            return None
        before, begins, block = text.rpartition(f"{CALL}\n")
        if not begins:
            return Breach.NO_BEGINNING
        lines = block.partition(f"\n{CALL_END}")[0].split("\n")
        named = [line for line in lines if "<Start Sub Search" in line and _NODE in line]
        nodes = tuple(line.split(_NODE)[1].strip() for line in named)
        return cls(before, nodes) if nodes else Breach.NO_NODES

    def answered(self, results: Sequence[str | None]) -> str:
        """The text in which results stand in place of the call."""
        text = f"{self.before}{RESULTS}\n"
        for number, (node, result) in enumerate(zip(self.nodes, results, strict=True)):
            outcome = "No Solution" if result is None else "Goal Reached"
            text += f"<{outcome} in Sub Search {number} at level 1 at Node #{node}>\n"
            text += "" if result is None else f"{result}\n"
        return f"{text}{RESULTS_END}\n"


@dataclasses.dataclass(frozen=True)
class Client(Host):
    """The client: what it does with the text of a thread depends on that text alone."""

    codec: TextCodec
    search: Search
    end: int
    most: int

    def reply(self, questions: Sequence[Question]) -> list[Said]:
        return [self._one(question) for question in questions]

    def _one(self, question: Question) -> Said:
        view, why = question.view, int(question.own["why"])
        text = decoded(self.codec, view.token[:-1] if view.token[-1] == self.end else view.token)
        if why == Why.GUARD:
            return self._go_on(view, text[: text.rindex(RESULTS)] + CALL)
        call = Call.of(text)
        if call is None:
            return Said(Action.END if view.token[-1] == self.end else Action.LENGTH, (0,))
        if isinstance(call, Breach):
            return Said(Action.MALFORMED, (call,))
        if why == Why.JOINED:
            written = [
                decoded(self.codec, child.token[:-1] if child.stop == Stop.END else child.token)
                for child in question.joined
            ]
            return self._go_on(view, call.answered([self.search.result(text) for text in written]))
        if len(call.nodes) > self.most:
            return Said(Action.MALFORMED, (Breach.TOO_MANY,))
        prompts = self.search.prompts(text, call.nodes)
        if prompts is None:
            return Said(Action.MALFORMED, (Breach.UNKNOWN_NODE,))
        return Said(Action.FORK, (0,), [encoded(self.codec, prompt) for prompt in prompts])

    def _go_on(self, view: View, text: str) -> Said:
        """Let a thread go on from a text: the tokens that the text begins with stay, if some are the last thread's own."""
        new = np.array(encoded(self.codec, text))
        some = min(len(view.token), len(new) - 1)  # at least one token is fed
        same = view.token[:some] == new[:some]
        stays = some if same.all() else int(np.argmin(same))
        mine = stays - (len(view.token) - view.last)
        return Said(Action.GO_ON, (max(mine, 0),), [new[stays if mine > 0 else 0 :].tolist()])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AprText(Method):
    """See `apr_jax.methods.apr_text`.

    Attributes:
        search: the task's part of the client.
        most: children of one call; demonstrations have up to 10.
        context: tokens of a thread, prompt included; the released checkpoints have 4096.
    """

    search: Search
    end: str = ""
    most: int = 16
    context: int = 4096

    def __post_init__(self):
        super().__post_init__()
        whole("apr_text.most", self.most, 1)
        whole("apr_text.context", self.context, 0)

    def protocol(self, codec: TextCodec) -> protocols.TextClient:
        words = [Phrase("guard", RESULTS), Phrase("call", CALL_END)]
        return protocols.TextClient(Recogniser.of(codec, words), self.end_id(codec), self.most, self.context)

    def host(self, codec: TextCodec) -> Client:
        return Client(codec, self.search, self.end_id(codec), self.most)

    def voices(self, transcript: Transcript) -> Sequence[int]:
        """The last thread of the root's line."""
        return [max(i for i, thread in enumerate(transcript.threads) if not thread.path)]

    def format_errors(self, transcript: Transcript) -> Mapping[str, int]:
        """At most one: what ended the problem as MALFORMED."""
        kind = Breach(int(transcript.own["breach"][self.voices(transcript)[0]]))
        return {} if kind == Breach.NONE else {kind.name.lower(): 1}

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """All that the thread sees: its last request and what came of it."""
        log = transcript.log
        seen = transcript.sees[thread][log.thread] & ((log.clock >= 0) | (log.thread == thread))
        entries = np.flatnonzero(seen)
        return log.token[entries[np.argsort(log.clock[entries] % np.iinfo(np.int32).max, kind="stable")]]
