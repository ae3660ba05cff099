"""Programs of threads, as data: what a thread does at its events, and which programs its children run.

A program is a tree. `encode` flattens it to the numbers of a problem's arguments, where `program_protocol.Programs` reads
them; `program_oracle` interprets the tree itself. `draw` makes random ones, `smaller` the next simpler ones of a given one.

A new action needs a name here, a branch in the protocol and one in the interpreter.
"""

import dataclasses
import enum
import random
from collections.abc import Iterator

VOCABULARY = 32
FIRST_EVENT = 16  # tokens from here on are events
MOST_CHILDREN, MEMORY, MOST_THREADS = 4, 31, 40  # children of an instruction, instructions and threads of a program
HEADERS = 16  # the header of child i begins at template i % HEADERS
RESULT, FOOTER = 30, 31  # places of the template table
TEMPLATES = tuple((7 * place + 3) % VOCABULARY for place in range(VOCABULARY))


class Action(enum.IntEnum):
    """What happens after the last of the event tokens that an instruction waits for."""

    GO_ON = 0
    OPEN = 1  # open children and go on; the next fork starts them
    FORK = 2  # open children, start all that are open, wait for them, join
    END = 3
    FAIL = 4  # end as malformed
    KILL = 5  # its youngest sibling that has not ended is killed, when that is decided
    TURN = 6  # go on as a new thread, which is fed a quotation and a footer
    CUT = 7  # split the thread in the middle and go on as a third, which is fed a footer; live threads just go on
    WAIT = 8  # wait for some of the outstanding children, join them; with nobody outstanding it is fed a footer at once


# What a thread is not fed anything after.
GOES_ON = (Action.GO_ON, Action.OPEN, Action.KILL, Action.CUT)


class Beside(enum.IntEnum):
    """Which children of a fork the parent does not wait for."""

    NOBODY = 0
    YOUNGER = 1  # all but the eldest
    ALL = 2  # the parent goes on; if it has no unfed token then, it is fed a footer


class Which(enum.IntEnum):
    """Which of its outstanding lines a thread waits for, killed ones counted like any."""

    ALL = 0
    ELDEST = 1
    YOUNGEST = 2


class Context(enum.IntEnum):
    """What a child sees beside itself."""

    ISOLATED = 0
    SHARED = 1
    LIVE = 2


class Join(enum.IntEnum):
    """What the parent goes on from, beside a footer of one token."""

    MESSAGE = 0  # it is fed the last tokens of every child, each after a header
    STITCH = 1  # it sees every child's line
    REENCODE = 2  # it sees the first child's line and is fed all tokens of the others
    DROP = 3  # nothing


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a thread.

    Attributes:
        say: event tokens that it samples first; 0: it acts without having sampled, where it was just fed something.
        action: what it does then.
        children: programs of the children that OPEN and FORK open.
        context: see there; all children of a fork have the same.
        flush: its last token is fed before its children start.
        quote: the header of a child, or what a TURN is fed, begins with that many last tokens of the parent, or of the old thread.
        header: and goes on with that many of the template table.
        join: see there.
        message: last tokens of a child that a MESSAGE quotes.
        race: the children are a race, in which they may KILL each other.
        enough: of a race, so many ends decide it; 0: ends do not, but for `bound`.
        bound: of a race, it is decided too when those who have ended have generated so many tokens together; 0: any number.
        rest: when ends have decided a race the others run on, and the parent does not wait for them; otherwise they are killed.
        shared: tokens that they and all below them may sample together; 0: any number.
        keeps: a TURN sees the old thread; a CUT sees the former half of it, otherwise the latter.
        beside: which children the parent does not wait for.
        which: of a WAIT, whom it waits for. Joined as `join` and `message` say, but for those that were to be seen from their fork
            on: they are stitched.
        hand: the children are handed the unfed token, if there is one, of the thread that they go on from, before their header.
        holds: the children's lines are held when they are joined, so that later children may go on from them.
        source: of a SHARED fork: 0, or its children go on from the held line number `source` - 1 of those (counted round) that
            this line has joined and that were not killed; from the parent if there is none.
    """

    say: int
    action: Action = Action.GO_ON
    children: tuple["Body", ...] = ()
    context: Context = Context.ISOLATED
    flush: bool = True
    quote: int = 0
    header: int = 1
    join: Join = Join.MESSAGE
    message: int = 0
    race: bool = False
    enough: int = 0
    bound: int = 0
    rest: bool = False
    shared: int = 0
    keeps: bool = True
    beside: Beside = Beside.NOBODY
    which: Which = Which.ALL
    hand: bool = False
    holds: bool = False
    source: int = 0

    def sound(self) -> bool:
        """Whether the rules of threads allow it, whatever stands around it."""
        copies = self.context == Context.ISOLATED or (
            (self.quote > 0 or self.hand) and self.say > 0 and self.join in (Join.MESSAGE, Join.DROP)
        )
        leaves = all(child.action not in (Action.OPEN, Action.FORK) for body in self.children for child in body)
        kills = self.action == Action.FORK and any(
            child.action == Action.KILL for body in self.children for child in body
        )
        return (
            self.quote + self.header > 0
            and (self.say > 0 or self.action in (Action.FORK, Action.WAIT, Action.END, Action.FAIL))
            and (self.flush or copies)
            and (self.context != Context.LIVE or leaves)
            and (self.race or not (self.enough or self.bound or self.rest or self.shared or kills))
            and (self.source == 0 or self.context == Context.SHARED)
            and (not self.rest or bool(self.enough or self.bound))
        )


Body = tuple[Instruction, ...]
OPERANDS = (
    "say",
    "action",
    "context",
    "flush",
    "quote",
    "header",
    "join",
    "message",
    "race",
    "enough",
    "bound",
    "rest",
    "shared",
    "keeps",
    "beside",
    "which",
    "hand",
    "holds",
    "source",
)
WIDTH = len(OPERANDS) + MOST_CHILDREN
NUMBERS = MEMORY * WIDTH


def sound(body: Body) -> bool:
    """Whether a program can be run: it ends, and nothing is asked of it that the rules of threads refuse."""
    if not body or body[-1].action not in (Action.END, Action.FAIL):
        return False
    opened: list[Body] = []
    for before, now in zip((None, *body), body, strict=False):
        if now.action in (Action.OPEN, Action.FORK):
            opened += now.children
        goes_on = before and (before.action in GOES_ON or before.action == Action.FORK and before.beside == Beside.ALL)
        if goes_on and not now.say:
            return False  # it would act twice at one token
        if opened and now.action in (Action.TURN, Action.CUT):
            return False  # children are opened and started by one thread
        if now.action == Action.FORK:
            if not dataclasses.replace(now, children=tuple(opened)).sound():
                return False
            opened = []
        elif not now.sound():
            return False
    return all(sound(child) for now in body for child in now.children)


def bodies(body: Body) -> list[Body]:
    """All different programs in a tree, breadth first, the root's first."""
    found = [body]
    for each in found:
        found += [child for now in each for child in now.children if child not in found]
    return list(dict.fromkeys(found))


def fits(body: Body) -> bool:
    """Whether the memory of a program holds it, and it has no more threads than an interpreter has patience for."""
    return sum(map(len, bodies(body))) <= MEMORY and threads(body) <= MOST_THREADS


def threads(body: Body) -> int:
    """Threads of a program in which nothing ends early."""
    more = {Action.TURN: 1, Action.CUT: 2}
    return 1 + sum(more.get(now.action, 0) + sum(map(threads, now.children)) for now in body)


def encode(body: Body) -> list[int]:
    """The numbers of a program: WIDTH an instruction, with 0 (the root's address) where there is no child.

    Raises:
        ValueError: more than MEMORY instructions.
    """
    address, length = {}, 0
    for each in bodies(body):
        address[each] = length
        length += len(each)
    if length > MEMORY:
        raise ValueError(f"program of {length} instructions: {MEMORY} are allowed")
    numbers: list[int] = []
    for now in (now for each in address for now in each):
        children = [address[child] for child in now.children]
        numbers += [int(getattr(now, name)) for name in OPERANDS]
        numbers += children + [0] * (MOST_CHILDREN - len(children))
    return numbers + [0] * (NUMBERS - len(numbers))


@dataclasses.dataclass(frozen=True)
class Kinds:
    """What random programs may do: fork live children; KILL, TURN and CUT; fork beside, WAIT, hold and hand on."""

    live: bool = True
    races: bool = False
    beside: bool = False


def draw(rng: random.Random, kinds: Kinds = Kinds(), depth: int = 3) -> Body:  # noqa: B008 - frozen
    """A random program that can be run, nested up to `depth`."""
    while True:
        body = _body(rng, kinds, depth, rng.choice((1, 2, 2, 3, 4)))
        if sound(body) and fits(body):
            return body


def _body(rng: random.Random, kinds: Kinds, depth: int, length: int) -> Body:
    body: list[Instruction] = []
    for _ in range(length):
        now = _instruction(rng, kinds, depth)
        while not now.sound():
            now = _instruction(rng, kinds, depth)
        body.append(now)
    body.append(Instruction(rng.choice((0, 1, 1, 2, 4)), rng.choice((Action.END, Action.END, Action.END, Action.FAIL))))
    for place, before in enumerate(body[:-1]):
        goes_on = before.action in GOES_ON or before.action == Action.FORK and before.beside == Beside.ALL
        if goes_on and not body[place + 1].say:
            body[place + 1] = dataclasses.replace(body[place + 1], say=1)
    return tuple(body)


def _instruction(rng: random.Random, kinds: Kinds, depth: int) -> Instruction:
    waits = (Action.WAIT,) * 2 if kinds.beside else ()
    action = rng.choice((Action.GO_ON, Action.OPEN, *waits, *(Action.FORK,) * 5)) if depth else Action.GO_ON
    if action == Action.GO_ON:
        say = rng.choice((1, 2, 5))
        if not kinds.races:
            return Instruction(say)
        action = rng.choice((Action.GO_ON, Action.KILL, Action.TURN, Action.CUT))
        return Instruction(say, action, quote=rng.choice((0, 1, 5)), keeps=rng.random() < 0.7)
    join, message = rng.choice((*Join,)), rng.choice((0, 1, 3, 12))
    if action == Action.WAIT:
        return Instruction(rng.choice((0, 1, 2)), action, join=join, message=message, which=rng.choice((*Which,)))
    context = rng.choice((*Context,) if kinds.live else (Context.ISOLATED, Context.SHARED))
    inside = 0 if context == Context.LIVE else depth - 1
    bodies = [_body(rng, kinds, inside, rng.choice((0, 1, 1, 2, 3))) for _ in range(rng.choice((1, 1, 2)))]
    count = rng.choice((0, 1, 2, 2, 3, MOST_CHILDREN)) if action == Action.FORK else 1
    now = Instruction(
        say=rng.choice((0, 0, 1, 1, 2)),
        action=action,
        children=tuple(rng.choice(bodies) for _ in range(count)),
        context=context,
        flush=rng.random() < 0.6,
        quote=rng.choice((0, 0, 1, 2, 5)),
        header=rng.choice((0, 1, 1, 2, 9, 15)),
        join=join,
        message=message,
    )
    if kinds.races and action == Action.FORK and rng.random() < 0.7:
        now = dataclasses.replace(now, race=True, **_race(rng, kinds.beside))
    if kinds.beside and action == Action.FORK:
        now = dataclasses.replace(
            now,
            beside=rng.choice((*Beside,)),
            hand=rng.random() < 0.4,
            holds=rng.random() < 0.4,
            source=rng.choice((0, 0, 1, 2)) if context == Context.SHARED else 0,
        )
    return now


def _race(rng: random.Random, beside: bool) -> dict[str, int]:
    """What decides a race."""
    enough = rng.choice((0, 0, 0, 1, 1, 2 if beside else 1))
    bound = rng.choice((0, 0, 5, 12)) if beside else 0
    rest = beside and bool(enough or bound) and rng.random() < 0.5
    return dict(enough=enough, bound=bound, rest=rest, shared=rng.choice((0, 0, 4, 9)))


def smaller(body: Body) -> Iterator[Body]:
    """Simpler programs that can be run, the simplest first: with an instruction or a child less, or a smaller number."""
    yield from (each for each in _smaller(body) if sound(each) and fits(each))


def _smaller(body: Body) -> Iterator[Body]:
    put = lambda place, *new: (*body[:place], *new, *body[place + 1 :])  # noqa: E731
    for place, now in enumerate(body):
        yield put(place)
        if now.children:
            yield put(place, Instruction(max(now.say, 1)))
            yield from (put(place, *child[:-1]) for child in dict.fromkeys(now.children))
        for child in range(len(now.children)):
            yield put(place, dataclasses.replace(now, children=(*now.children[:child], *now.children[child + 1 :])))
        simplest = Instruction(1, now.action, now.children)
        for name in OPERANDS:
            value, least = getattr(now, name), getattr(simplest, name)
            if name != "action" and value != least:
                for less in sorted({least, value - 1} if value > least else {least}):
                    yield put(place, dataclasses.replace(now, **{name: type(value)(less)}))
        for child, inner in enumerate(now.children):
            for less in _smaller(inner):
                yield put(
                    place, dataclasses.replace(now, children=(*now.children[:child], less, *now.children[child + 1 :]))
                )


def size(body: Body) -> int:
    """How large a program is, for comparing: what shrinks makes it less."""
    numbers = (
        now.say
        + now.quote
        + now.header
        + now.message
        + now.context
        + now.join
        + (not now.flush)
        + now.race
        + now.enough
        + now.bound
        + now.rest
        + now.shared
        + (not now.keeps)
        + now.beside
        + now.which
        + now.hand
        + now.holds
        + now.source
        for now in body
    )
    return 10 * len(body) + sum(numbers) + sum(5 + size(child) for now in body for child in now.children)


def show(body: Body, indent: str = "") -> str:
    """A program to be read: an instruction a line, children below."""
    lines = []
    for now in body:
        facts = [f"say {now.say}", now.action.name]
        if now.action in (Action.OPEN, Action.FORK):
            facts += [now.context.name, "flush" if now.flush else "no flush", f"quote {now.quote}"]
            facts += [f"header {now.header}", f"join {now.join.name}", f"message {now.message}"]
            facts += ["race"] * now.race + ["the rest runs on"] * now.rest + ["hand"] * now.hand + ["holds"] * now.holds
            facts += [
                f"{name} {getattr(now, name)}" for name in ("enough", "bound", "shared", "source") if getattr(now, name)
            ]
            facts += [f"beside {now.beside.name}"] * (now.beside > 0)
        if now.action == Action.WAIT:
            facts += [f"for {now.which.name}", f"join {now.join.name}", f"message {now.message}"]
        if now.action in (Action.TURN, Action.CUT):
            facts += [f"quote {now.quote}", "keeps" if now.keeps else "forgets"]
        lines.append(indent + ", ".join(facts))
        lines += [f"{indent}  child {i}\n{show(child, indent + '    ')}" for i, child in enumerate(now.children)]
    return "\n".join(lines)
