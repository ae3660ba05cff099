"""Exports of a transcript made by hand, with one fork and one join; all expected values are written out."""

import dataclasses
import json

import numpy as np
import pytest

from apr_jax import record
from apr_jax.evaluate import exports
from apr_jax.record import Log, Source, Stop, ThreadRecord, Transcript
from experiments import export_transcripts


def _transcript() -> Transcript:
    """The root is fed three tokens and forks; its child runs at clocks 3 and 4; the root is fed the join at 5."""
    clock = np.array([0, 1, 2, 5, -1, 3, 4, -1])
    source = np.array([Source.FED] * 4 + [Source.SAMPLED, Source.FED] + [Source.SAMPLED] * 2)
    thread = np.array([0] * 5 + [1] * 3)
    index = np.array([0, 1, 2, 3, -1, 0, 1, -1])
    predictor = np.array([-1, -1, -1, -1, 3, -1, 5, 6])
    depth = np.array([0, 0, 0, 2, 3, 0, 1, 2])
    chance = np.where(source == Source.SAMPLED, -0.5, np.nan)
    log = Log(np.arange(10, 18), thread, index, clock.copy(), clock, source, chance, chance, predictor, depth)
    threads = ThreadRecord((), -1, Stop.END), ThreadRecord((0,), 0, Stop.LENGTH)
    return Transcript(7, 2, Stop.END, threads, np.eye(2, dtype=bool), log, 4)


def test_perfetto(tmp_path):
    record.write(tmp_path / "transcripts_apr.jsonl", [_transcript()], lambda tokens: " ".join(map(str, tokens)))
    output = tmp_path / "trace.json"
    argv = [str(tmp_path), "--to", "perfetto", "--output", str(output)]
    assert export_transcripts.main(argv) == 0
    events = json.loads(output.read_text())["traceEvents"]
    names = [(e["name"], e["tid"], e["args"]) for e in events if e["ph"] == "M"]
    assert names == [
        ("process_name", 0, {"name": "transcripts_apr: problem 7, sample 2"}),
        ("thread_name", 0, {"name": "thread root: end", "never_fed": 1}),
        ("thread_name", 1, {"name": "thread 0: length", "never_fed": 1}),
    ]
    slices = [(e["tid"], e["name"], e["ts"], e["dur"], e["args"]["tokens"]) for e in events if e["ph"] == "X"]
    assert slices == [
        (0, "fed", 0, 3, [10, 11, 12]),
        (0, "fed", 5, 1, [13]),
        (1, "fed", 3, 1, [15]),
        (1, "generated", 4, 1, [16]),
    ]
    flows = [(e["name"], e["ph"], e["id"], e["tid"], e["ts"]) for e in events if e["ph"] in "sf"]
    assert flows == [
        ("fork", "s", "0.0", 0, 2),
        ("fork", "f", "0.0", 1, 3),
        ("join", "s", "0.1", 1, 4),
        ("join", "f", "0.1", 0, 5),
    ]


def test_refusals(tmp_path, capsys):
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    for folder, output, message in ((tmp_path, taken, "exists"), (tmp_path, tmp_path / "new", "holds no .jsonl")):
        with pytest.raises(SystemExit) as ended:
            export_transcripts.main([str(folder), "--to", "perfetto", "--output", str(output)])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert taken.read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_messages_and_rows(tmp_path):
    about = {"question": "7?", "answer": "9", "correct": True}
    record.write(tmp_path / "one.jsonl", [_transcript()], lambda tokens: " ".join(map(str, tokens)), [about])
    paths, decode = [tmp_path / "one.jsonl"], lambda tokens: " ".join(map(str, tokens))
    assert exports.write_messages(paths, tmp_path / "out.jsonl", decode) == 2
    root, child = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert root == {
        "problem": 7, "sample": 2, "thread": [], "stop": "end", **about,
        "messages": [{"role": "user", "content": "10 11 12 13"}, {"role": "assistant", "content": "14"}],
    }  # fmt: skip
    assert (child["thread"], child["stop"]) == ([0], "length")
    assert [message["content"] for message in child["messages"]] == ["15", "16 17"]
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    assert exports.write_parquet(paths, tmp_path / "out.parquet") == 1
    (found,) = pyarrow.read_table(tmp_path / "out.parquet").to_pylist()
    assert {name: found[name] for name in about} == about
    assert (found["critical_path"], found["generated"], found["fed"], found["stop"]) == (3, 3, 5, "end")
    assert found["log_token"] == list(range(10, 18)) and found["log_sampled"] == [False] * 4 + [True, False, True, True]
    assert [thread["text"] for thread in found["threads"]] == ["10 11 12 13 14", "15 16 17"]


def test_results_are_fed_by_a_tool():
    transcript = _transcript()
    log = dataclasses.replace(transcript.log, source=np.array([1, 0, 0, 1, 0, 1, 0, 0]))
    said = exports.conversations(dataclasses.replace(transcript, log=log), {}, lambda tokens: str(len(tokens)))
    assert [m["role"] for m in next(said)["messages"]] == ["user", "assistant", "tool", "assistant"]
