"""Random programs of threads: the compiled loop against the interpreter, and the tools that draw programs and make them small.

`make fuzz MINUTES=n` goes on with cases that these tests do not reach.
"""

import dataclasses
import random

import numpy as np
import pytest

import fuzz_programs
import oracle
import program_checks
import program_oracle
import reference_model
import thread_programs as programs
from apr_jax.decode import Problem, Stop
from thread_programs import Action, Beside, Context, Instruction, Join

END = Instruction(1, Action.END)


@pytest.mark.parametrize("setting", fuzz_programs.SETTINGS)
def test_the_loop_runs_programs_as_the_interpreter_does(setting):
    """What happens in full tables and budgets included; one trace for all programs."""
    place, count = list(fuzz_programs.SETTINGS).index(setting), len(fuzz_programs.SETTINGS)
    for turn in range(2):
        case = fuzz_programs.draw_case(place + turn * count, 32)
        assert case.setting == setting
        faults, _ = fuzz_programs.run_case(case)
        assert not faults, f"case {place + turn * count}: {faults[0]}"
    assert fuzz_programs.engine(setting, False).traces == 1


def problem(number, body, **fields):
    text, program = np.array([1, 2, 3]), programs.encode(body)
    return Problem(number, text, arguments=program, **{"temperature": 1.0, "max_tokens": 48, **fields})


def interpret(body, seed=0, **fields):
    forward = reference_model.transformer(fuzz_programs.model().params, fuzz_programs.CONFIG)
    return program_oracle.run(forward, problem(0, body, **fields), body, seed)


def check_orders(problem, body, seed, orders=2):
    """Lines in any order, and decisions late for those outside of what is decided, make no difference but in rounding."""
    forward = reference_model.transformer(fuzz_programs.model().params, fuzz_programs.CONFIG)
    expected = program_oracle.run(forward, problem, body, seed)
    for order in range(orders):
        shuffled = program_oracle.run(forward, problem, body, seed, np.random.default_rng(order))
        oracle.compare(shuffled.transcript, expected.transcript, 1e-12)
        assert (shuffled.pieces, shuffled.kept) == (expected.pieces, expected.kept)
    return expected


@pytest.mark.parametrize("number", [1, 6, 12, 13])
def test_the_order_of_threads_does_not_matter_to_the_interpreter(number):
    case = fuzz_programs.draw_case(number, 12)
    for problem, body in case.problems:
        check_orders(problem, body, case.seed)


def forks(*children, **fields):
    """A fork of one SHARED child each."""
    return Instruction(1, Action.FORK, children, **dict(context=Context.SHARED, join=Join.DROP) | fields)


LATER = (Instruction(3), END)
# Programs, small ones, of which one rule or another is made; and what happens in them.
RULES = {
    "who goes on from a held line brings in what is older": (
        (
            forks((END,), context=Context.ISOLATED, holds=True),
            forks((END,), source=1, join=Join.STITCH),
            END,
        ),
        "join on a new thread",
    ),
    "who goes on from a held line may see the thread that forks": (
        (forks((END,), holds=True), forks(LATER, source=1, beside=Beside.ALL), Instruction(4, Action.END)),
        "fork on a new thread",
    ),
    "a race lets go of whom the fork waits for": (
        (forks((END,), LATER, race=True, enough=1, rest=True), Instruction(3, Action.WAIT), END),
        "let go",
    ),
    "a race does not let go of whom a wait names": (
        (
            forks((END,), LATER, race=True, enough=1, rest=True, beside=Beside.ALL),
            Instruction(3, Action.WAIT, message=3),
            END,
        ),
        "rest",
    ),
    "of a line that was let go all segments are": (
        (
            forks(
                (Instruction(1, Action.TURN), *LATER, ), (Instruction(3), Instruction(2, Action.END)),
                race=True, enough=1, rest=True, holds=True, beside=Beside.YOUNGER, context=Context.ISOLATED,
            ),
            Instruction(1, Action.WAIT),
            END,
        ),
        "rest",
    ),
    "what is handed on is fed first": (
        (forks(LATER, flush=False, hand=True, beside=Beside.ALL), Instruction(1, Action.WAIT, message=3), END),
        "handed",
    ),
    "a budget is used up when the last token of it is sampled": (
        (
            forks(
                (forks((Instruction(2), END), context=Context.ISOLATED, beside=Beside.ALL), END),
                (Instruction(12), END), race=True, shared=12, context=Context.ISOLATED, join=Join.MESSAGE, message=3,
            ),
            END,
        ),
        "shared",
    ),
    "who ends waits for those it has not joined": ((forks(LATER, beside=Beside.ALL), END), "waits before its end"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rules_of_threads_that_run_beside(name):
    """The interpreter in several orders, and the loop."""
    body, wanted = RULES[name]
    assert programs.sound(body)
    problems = tuple((problem(i, body, child_max_tokens=0), body) for i in range(4))
    for seed in (0, 1):
        events = [check_orders(each, body, seed).events for each, _ in problems]
        assert any(wanted in found for found in events), events
        assert fuzz_programs.run_case(fuzz_programs.Case("beside, races", seed, problems))[0] == []


def test_a_program_by_hand():
    """Two children, one of which forks too: what they are fed, and what comes back."""
    grandchild = (Instruction(0, Action.END),)
    forks = (
        Instruction(0, Action.FORK, (grandchild,), Context.SHARED, header=2, join=Join.STITCH),
        Instruction(0, Action.END),
    )
    root = (Instruction(0, Action.FORK, ((END,), forks), quote=2, header=1, join=Join.MESSAGE, message=2), END)
    transcript = interpret(root).transcript
    header, result, footer = (
        programs.TEMPLATES[:2],
        programs.TEMPLATES[programs.RESULT],
        programs.TEMPLATES[programs.FOOTER],
    )
    assert [thread.path for thread in transcript.threads] == [(), (0,), (1,), (1, 0)]
    assert transcript.tokens(1)[:3].tolist() == [2, 3, header[0]]
    assert transcript.tokens(2).tolist() == [2, 3, header[1], footer]
    assert transcript.tokens(3).tolist() == [*programs.TEMPLATES[:2]]
    told = transcript.tokens(1)[-2:].tolist()
    assert transcript.tokens(0)[3:-1][:7].tolist() == [result, *told, result, header[1], footer, footer]
    assert transcript.sees.astype(int).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert {thread.stop for thread in transcript.threads} == {Stop.END}


def test_a_join_does_not_bring_back_what_a_line_forgot():
    """A live sibling saw it; the parent that stitches both lines does not (found by `make fuzz`)."""
    turns = (Instruction(1, Action.TURN, keeps=False), END)
    body = (Instruction(1, Action.FORK, ((END,), turns), Context.LIVE, join=Join.STITCH), END)
    case = fuzz_programs.Case("races", 3, tuple((problem(i, body, child_max_tokens=0), body) for i in range(8)))
    assert interpret(body).transcript.sees[:, 2].tolist() == [False, True, True, False]
    assert fuzz_programs.run_case(case)[0] == []


def test_cases_have_what_the_comparison_is_about():
    """Every context, every join, depth 3, all stops that a program can have, and problems that do not fit."""
    forward = reference_model.transformer(fuzz_programs.model().params, fuzz_programs.CONFIG)
    found = []
    for number in (1, 4, 6, 10, 12, 13):
        case = fuzz_programs.draw_case(number, 32)
        for problem, body in case.problems:
            expected = program_oracle.run(forward, problem, body, case.seed)
            found += set(program_checks.features(body, expected))
            found += [
                stop.name for stop in program_checks.lacking(expected, fuzz_programs.SETTINGS[case.setting].sizes)
            ]
    wanted = [f"{context.name} {join.name}".lower() for context in Context for join in Join]
    wanted += [f"stop {stop}" for stop in ("END", "LENGTH", "MALFORMED", "DROPPED")]
    wanted += [f"stop {stop}" for stop in ("KILLED", "CONTINUED", "SPLIT", "SHARED")] + ["depth 2", "depth 3"]
    wanted += ["isolated stitch, not flushed", "shared message, not flushed", "live message, not flushed"]
    wanted += ["fork beside", "fork on a new thread", "join on a new thread", "waits before its end", "cut refused"]
    wanted += ["wait for all", "wait for eldest", "wait for youngest", "wait for nobody", "handed", "held context"]
    wanted += ["first", "rest", "let go", "2 ends suffice", "kill", "shared"]
    wanted += [stop.name for stop in (Stop.THREADS_FULL, Stop.LOG_FULL, Stop.MESSAGES_FULL)]
    assert not set(wanted) - set(found)


def test_a_comparison_that_cannot_fail_is_none():
    """A transcript that says something else is refused, and so is a stop for which there was room."""
    expected = interpret((Instruction(2, Action.FORK, ((END,), (END,)), Context.SHARED, join=Join.REENCODE), END))
    right, sizes = expected.transcript, fuzz_programs.SETTINGS["plenty"].sizes
    program_checks.check(right, expected, sizes)
    for stop in (Stop.POOL_FULL, Stop.LOG_FULL, Stop.THREADS_FULL, Stop.MESSAGES_FULL):
        with pytest.raises(AssertionError, match="fit|runs"):
            program_checks.check(dataclasses.replace(right, stop=stop), expected, sizes)
    with pytest.raises(AssertionError, match="does not fit"):
        program_checks.check(right, expected, dataclasses.replace(sizes, threads=2))
    for name in ("token", "clock", "position", "logprob"):
        wrong = np.array(getattr(right.log, name))
        wrong[-2] += 1
        with pytest.raises(AssertionError):
            program_checks.check_beginning(
                dataclasses.replace(right, log=dataclasses.replace(right.log, **{name: wrong})), right
            )
    with pytest.raises(AssertionError, match="seen"):
        program_checks.check_beginning(dataclasses.replace(right, sees=np.eye(3, dtype=bool)), right)


def test_programs_get_smaller_until_nothing_can_go():
    rng = random.Random(0)
    for _ in range(20):
        body = programs.draw(rng)
        assert programs.sound(body) and len(programs.encode(body)) == programs.NUMBERS
        forks = lambda body: any(now.action == Action.FORK for now in body)  # noqa: E731
        if not forks(body):
            continue
        while less := next(
            (x for x in programs.smaller(body) if programs.size(x) < programs.size(body) and forks(x)), None
        ):
            body = less
        assert programs.size(body) <= 35, programs.show(body)


def test_a_failing_case_is_made_small(monkeypatch):
    """Three neighbours and all but one fork go, and what is left still fails."""
    stitches = lambda body: any(
        now.join == Join.STITCH and now.children for each in programs.bodies(body) for now in each
    )  # noqa: E731
    faults = lambda case, kernels: (["wrong"] * sum(stitches(body) for _, body in case.problems), {})  # noqa: E731
    monkeypatch.setattr(fuzz_programs, "run_case", faults)
    small = fuzz_programs.shrink(fuzz_programs.draw_case(1, 12))
    assert len(small.problems) == 1 and len(programs.bodies(small.problems[0][1])) <= 2
    assert "STITCH" in small.show()
