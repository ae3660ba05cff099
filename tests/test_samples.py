"""Transcripts to be read: what is taken for the answer, which one is shown, all that was said and no mark of a turn."""

import dataclasses

import pytest

import vocabularies
from apr_jax.decode import Progress, Stop
from apr_jax.evaluate import methods, outcomes, samples
from apr_jax.evaluate.methods import Result, Rollout, RolloutConfig
from apr_jax.methods import SpawnJoin
from apr_jax.tasks.language.task import LanguageTask, Question
from synthetic import Builder, Thread

CODEC = vocabularies.byte_level().with_control_words(["<part>", "<go>", "<wait>"])
ASK = ("<|im_start|>", "q", "<|im_end|>", "<|im_start|>")
CHILD = Thread(("<part>", "a", "<go>"), (("b", "<|im_end|>"),))
FORK = Thread(ASK, (("c", "<part>", "a"), [CHILD, CHILD], ("<think>", "d", "`", "`", "`", "`", "<|im_end|>")))
ALONE = Thread(ASK, (("e", "<|im_end|>"),))
SILENT = Thread(ASK, ([Thread((), (("f", "<|im_end|>"),))] * 2,))


def made(spec: Thread, correct: bool, stop: Stop = Stop.END):
    builder = Builder()
    builder.vocabulary = {CODEC.decode([i]): i for i in reversed(range(CODEC.size))}
    builder.vocabulary |= {f"<result{i}>": CODEC.size + i for i in range(2)}
    builder.run(spec)
    builder.records[-1] = dataclasses.replace(builder.records[-1], stop=stop)
    transcript = builder.transcript()
    return transcript, outcomes.outcome(transcript, "7" if correct else None, correct)


def result(*pairs) -> Result:
    transcripts, found = zip(*pairs, strict=True)
    entry = outcomes.summary(found, 1.0, 1, 1)
    return Result(list(found), entry, Rollout(list(transcripts), [], CODEC, Progress, 1))


@pytest.mark.parametrize(
    ("pairs", "best"),
    [
        ([(ALONE, True), (FORK, False), (FORK, True), (FORK, True)], 2),
        ([(ALONE, True), (FORK, True, Stop.LENGTH), (FORK, True)], 2),
        ([(ALONE, True), (FORK, False, Stop.LENGTH)], 1),
        ([(ALONE, False), (ALONE, True)], 1),
        ([(ALONE, False), (ALONE, False)], 0),
    ],
)
def test_the_best_is_chosen(pairs, best):
    assert samples.choose(result(*(made(*pair) for pair in pairs))) == best


def test_all_that_was_said_is_shown_and_no_mark_of_a_turn():
    results = {"fork": result(made(FORK, True, Stop.LENGTH)), "again": result(made(FORK, True))}
    results |= {"vote": result(made(SILENT, False))}
    text = samples.markdown(results, [{"question": "why\nnot?", "right": "7"}])
    assert "| fork | 100.0% |" in text and "| vote | 0.0% |" in text
    assert "Of 1 questions 1 got an answer, 1 the right one; 1 forked. How threads ended: 2 end, 1 length." in text
    assert "Question 0: right: 7, answer: 7, correct: True" in text
    prompt, *rest = text.split("````text\n")[1:]
    assert prompt.startswith("<|im_start|>q<|im_end|><|im_start|>\n````")  # of the first two, shown once
    shown = "root (end): c<part>a<result0><result1><think>d''''\n    thread 0 (end): <part>a<go>b\n"
    shown += "    thread 1 (length): <part>a<go>b"
    told = CODEC.decode([CODEC.size, CODEC.size + 1])
    known = shown.replace("<result0><result1>", told)
    assert rest[0].startswith(f"why\nnot?\n\n{known}\n````")
    assert rest[1].startswith(f"why\nnot?\n\n{known.replace('length', 'end')}\n````")
    assert rest[2].startswith(f"<|im_start|>q<|im_end|><|im_start|>{told}\n````")  # its root only reads
    assert rest[3].startswith("why\nnot?\n\n    thread 0 (end): f\n    thread 1 (end): f\n````")
    assert len(rest) == 4 and "<|im" not in rest[0] + rest[1] + rest[3]


def test_long_lines_are_wrapped_under_their_thread():
    lines = samples._block("    thread 0: " + "word " * 60).splitlines()
    assert all(line.startswith("    ") and len(line) <= samples.WIDTH for line in lines[1:-1]) and len(lines) == 5


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ((("<part>", "7", "<wait>"), [CHILD], ("9", "<|im_end|>")), "9"),
        ((("8", "<part>", "7", "<part>", "6", "<|im_end|>"),), "8"),  # never waited
        ((("<part>", "7", "<|im_end|>"),), None),
        ((("<part>", "7", "<wait>"), [CHILD], ("<part>", "5", "<wait>"), [CHILD], ("<|im_end|>",)), None),
    ],
)
def test_what_a_thread_asks_of_its_children_is_not_its_answer(body, answer):
    class Task(LanguageTask):
        questions = None
        grade = lambda self, pairs: [True] * len(pairs)

    builder = Builder()
    builder.vocabulary = {CODEC.decode([i]): i for i in reversed(range(CODEC.size))}
    builder.vocabulary |= {f"<result{i}>": CODEC.size + i for i in range(2)}
    builder.run(Thread(ASK, body))
    config = RolloutConfig(SpawnJoin(spawn="<part>"), "none")
    found = methods.read(Task(), [Question(0, "q", "9")], [builder.transcript()], CODEC, config)
    assert [given.candidate.answer for given in found[0]] == [answer]
