"""Asking a pretrained model: every method answers, what a user types stays text, what is wrong is said; and what is shown."""

import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import vocabularies
from apr_jax.evaluate.show import live
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.pretrained import save_pretrained
from apr_jax.record import Stop, ThreadRecord
from apr_jax.tokenizer import ChatTemplate, chat
from apr_jax.tokenizer.chat import Message
from experiments import solve
from synthetic import Builder, Thread, build

CODEC = vocabularies.byte_level()
CONFIG = ModelConfig(vocabulary=CODEC.size, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16)
METHODS = """
from apr_jax.decode import Sizes
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Majority, Verifier
from apr_jax.methods import Samples, Sampling, Sequential, SpawnJoin
from apr_jax.tasks.language.mathematics import Mathematics
from apr_jax.tasks.prompt import Prompt, Shot
from apr_jax.evaluate.config import EvaluateConfig

SIZES = Sizes(problems=2, lanes=3, rows=6, threads=6, prompt=96, slots=512, log=512, queue=4, outbox=4, attention_block=256)
ASK = Prompt(shots=(Shot("1 + 2", "<spawn>1<spawn>2<wait><result>1<result>2<go>3"),))
ONE = RolloutConfig(Sequential(end=""), "elsewhere", Sampling(temperature=1.0, max_tokens=12), sizes=SIZES)
MANY = RolloutConfig(Samples(3, end=""), "elsewhere", Sampling(temperature=1.0, max_tokens=12), sizes=SIZES)
FORK = RolloutConfig(
    SpawnJoin(context="shared", end="", add=True, gain=3.0), "elsewhere",
    Sampling(temperature=1.0, max_tokens=40, child_max_tokens=8), ask=ASK, sizes=SIZES,
)


def config():
    methods = {"one": MethodConfig(ONE), "vote": MethodConfig(MANY, Majority()), "oracle": MethodConfig(MANY, Verifier())}
    return EvaluateConfig(methods=methods | {"fork": MethodConfig(FORK)}, task=Mathematics(), tokenizer="elsewhere")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with a real tokenizer, and a file of methods."""
    folder, rng = tmp_path_factory.mktemp("solve"), np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype)
    model = transformer.Model(transformer.graph_of(CONFIG), jax.tree.map(draw, transformer.abstract_params(CONFIG)))
    save_pretrained(folder / "model", model, tokenizer=CODEC)
    # Every second draw, or so, ends the turn.
    table = model.params["embed"].at[CODEC.eos].multiply(20.0)
    brief = transformer.Model(model.graph, {**model.params, "embed": table})
    save_pretrained(folder / "brief", brief, tokenizer=CODEC)
    larger = CODEC.with_control_words(["<more>"])
    save_pretrained(folder / "larger", model, tokenizer=CODEC)
    larger.save_folder(folder / "larger")
    save_pretrained(folder / "bare", model, tokenizer=type(CODEC)(CODEC.definition, CODEC.config))
    failing = type(CODEC)(CODEC.definition, CODEC.config, ChatTemplate("{{ 1 / 0 }}", "failing"))
    save_pretrained(folder / "failing", model, tokenizer=failing)
    silent = type(CODEC)(CODEC.definition, CODEC.config, ChatTemplate("{# nothing #}", "silent"))
    save_pretrained(folder / "silent", model, tokenizer=silent)
    (folder / "methods.py").write_text(METHODS)
    return folder


def ask(folder, *arguments: str, model: str = "model") -> int:
    return solve.main(["--model", str(folder / model), "--config", str(folder / "methods.py"), *arguments])


@pytest.mark.parametrize("method", ["one", "vote", "spawn_join"])
def test_every_method_answers(folder, method, capsys):
    code = ask(folder, "What is 6 <|im_end|> * 7 <spawn>?", "--method", method)
    printed = capsys.readouterr().out
    assert "What is 6 <|im_end|> * 7 <spawn>?" in printed and "critical path" in printed
    assert (code == 1) == ("stopped: " in printed and "no answer" in printed)
    if method == "vote":
        assert "thread 2" in printed


def test_marks_of_turns_are_not_shown(folder, capsys):
    """Three threads of a model that soon ends its turn; and threads that say a mark and a word of the model's."""
    ask(folder, "Why?", "--method", "vote", model="brief")
    printed = capsys.readouterr().out
    assert "(end)" in printed and "<|im" not in printed and "Why?" in printed
    said = ("a", "<think>", "b", "<|im_start|>", "c", "<|im_end|>")
    builder = Builder()
    builder.vocabulary = {CODEC.decode([i]): i for i in reversed(range(CODEC.size))}
    builder.run(Thread(("<|im_start|>", "q"), (said,)))
    console = Console(width=80, height=12, file=io.StringIO())
    for shown in (
        live.columns(builder.transcript(), CODEC, console, prompt=2),
        live.whole(builder.transcript(), CODEC, prompt=2),
    ):
        text = "\n".join(drawn(shown, 80, 12))
        assert "a<think>bc" in text and "<|im" not in text and "end" in text


def test_what_a_user_types_stays_text(folder, monkeypatch):
    """Also the control words that a method adds."""
    seen = {}

    def stop_here(config, words):
        raise ValueError("far enough")

    def requests(task, questions, config, words):
        seen["prompt"] = original(task, questions, config, words)[0].prompt
        return []

    original = solve.methods.requests
    monkeypatch.setattr(solve.methods, "requests", requests)
    monkeypatch.setattr(solve.methods, "make_engine", stop_here)
    with pytest.raises(SystemExit):
        ask(folder, "Say <spawn> and <|im_end|>", "--method", "fork")
    words = CODEC.with_control_words(["<spawn>", "<wait>", "<result>", "<join>", "<go>"])
    shot = [Message("user", "1 + 2"), Message("assistant", "<spawn>1<spawn>2<wait><result>1<result>2<go>3")]
    wanted = chat.prompt(words, [*shot, Message("user", "Say <spawn> and <|im_end|>")])
    assert seen["prompt"].tolist() == wanted
    count = lambda word: wanted.count(words.id(word))
    assert (count("<spawn>"), count("<|im_end|>"), count("<go>")) == (2, 3, 1)
    assert "Say <spawn> and <|im_end|>" in words.decode(wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["word " * 200], "its prompt has .* tokens; sizes.prompt = 96"),
        (["", "  "], "there is no question"),
        (["x", "--target", "3"], "belong to Countdown"),
        (["x", "--method", "beam"], "allowed are one, vote, oracle, fork, sequential, samples, spawn_join"),
        (["x", "--method", "oracle"], "chooses by the right answer, which nobody knows"),
        (["x", "--config", "configs/demo.py"], "its task is Countdown"),
        (["caf\udce9"], r"question: .* half of a character"),
        (["x", "--seed", str(2**32)], "seed is 4294967296; it must be a whole number of 0 .. 4294967295"),
    ],
)
def test_what_cannot_be_asked_ends_with_a_reason(folder, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        ask(folder, *arguments)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("bare", "the tokenizer has no chat template; give one"),
        ("failing", "failed on messages of user: division by zero"),
        ("silent", "question 1 .'x'.: the chat template makes no token of it"),
        (
            "larger",
            f"its embedding has {CODEC.size} rows, the tokenizer has {CODEC.size + 1} ids; take the tokenizer of this",
        ),
        ("nowhere", "nowhere: there is nothing at .*; give smollm2, a folder or a GGUF file"),
    ],
)
def test_models_that_cannot_be_asked_are_named(folder, model, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        ask(folder, "x", model=model)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_model_that_was_not_fetched_says_how(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(solve.NAMED, "smollm2", (tmp_path / "none.gguf", "python -m experiments.fetch_smollm2"))
    with pytest.raises(SystemExit):
        solve.main(["--model", "smollm2", "x"])
    assert "fetch it with `python -m experiments.fetch_smollm2`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        solve.main(["What is 6 times 7?"])
    assert (
        "'What is 6 times 7?' is not a whole number; to ask a question in language, give a --model"
        in capsys.readouterr().err
    )


def drawn(renderable, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(renderable)
    return console.file.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("cut", range(1, 5))
def test_threads_stand_side_by_side_without_broken_characters(cut, monkeypatch):
    said = [*CODEC.encode_text("one two three "), *CODEC.encode_text("𐍈")]
    assert len(said) - len(CODEC.encode_text("one two three ")) == 4  # a token a byte
    transcript, _ = build(Thread(("a",), (("b",), [Thread(("c",), (("d",),))] * 2, ("e",))))
    running = tuple(ThreadRecord(t.path, t.parent, Stop.RUNNING) for t in transcript.threads)
    log = transcript.log
    tokens = [[5] * 3, *[said[: len(said) - 4 + cut]] * 2]
    columns = {name: np.zeros(sum(map(len, tokens)), getattr(log, name).dtype) for name in log.__dataclass_fields__}
    columns["token"] = np.concatenate([np.array(t, np.int32) for t in tokens])
    columns["thread"] = np.repeat([0, 1, 2], [len(t) for t in tokens]).astype(np.int32)
    transcript = dataclasses.replace(transcript, threads=running, log=type(log)(**columns))
    console = Console(width=80, height=12, file=io.StringIO())
    lines = drawn(live.columns(transcript, CODEC, console, prompt=3), 80, 12)
    text = "\n".join(lines)
    assert "\ufffd" not in text and all(len(line) <= 80 for line in lines) and len(lines) <= 12
    side = [line for line in lines if line.count("one two three") == 2]
    assert len(side) == 1 and "thread 0.0" not in text and lines[0].count("thread") == 2
    assert ("𐍈" in text) == (cut == 4)
    ended = tuple(ThreadRecord(t.path, t.parent, Stop.LENGTH) for t in transcript.threads)
    finished = "\n".join(drawn(live.whole(dataclasses.replace(transcript, threads=ended), CODEC, 3), 80, 40))
    assert "thread 0 (length)" in finished and ("\ufffd" in finished) == (cut < 4)
