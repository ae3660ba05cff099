"""Tables, plots, the timeline page and the picture."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from apr_jax.evaluate import outcomes, report
from apr_jax.evaluate.machine import Machine
from apr_jax.evaluate.show import picture, plots, timeline
from apr_jax.record import Stop
from synthetic import Thread, build, countdown_tree, random_tree

HOSTILE = "</script><script>alert(1)</script><!-- <b>&amp;\"'\\ \u2028 __HEADING__ __DATA__"


def random_outcomes(seed: int, count: int = 60) -> list[outcomes.Outcome]:
    rng = np.random.default_rng(seed)
    costs = rng.integers(5, 900, (count, 2)).tolist()
    return [
        outcomes.Outcome(i, bool(rng.random() < 0.6), "a", path, 2 * path, 7, 3, True, 0.5, 0.25, context, "end")
        for i, (path, context) in enumerate(costs)
    ]


def entries() -> dict[str, dict]:
    apr = outcomes.summary(random_outcomes(0), wall_s=12.34, steps=1000, traces=1)
    apr |= {"makespan_4": 123.4, "makespan_16": 99.5}
    return {"apr": apr | {"accuracy": 0.755}, "best_of_n": apr | {"accuracy": 0.5, "accuracy_verifier": 0.9}}


def shown(table, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_rows_and_markdown():
    rows = report.rows(entries())
    assert [row[0] for row in rows] == ["APR (spawn and join)", "best-of-N", "best-of-N, by verifier (oracle)"]
    assert [row[1] for row in rows] == ["75.5%", "50.0%", "90.0%"]
    assert rows[1][2:] == rows[2][2:]
    lines = report.markdown(entries(), 60).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == len(report.COLUMNS) + 2 + 4
    assert (
        "| critical path | makespan (16) | makespan (4) | generated | acceleration ratio | parallel ratio |" in lines[0]
    )
    assert " | 99.5 | 123 | " in lines[2] and " | 50.0% | 25.0% | " in lines[2]
    brief = report.markdown(entries(), wide=False).splitlines()
    assert brief[0].split(" | ") == ["| method", *(heading for _, heading in report.COLUMNS[:-1]), "wall s |"]
    assert lines[2].startswith("| APR (spawn and join) | 75.5% |") and lines[2].endswith("| 12.3 |")
    assert "60 problems" in lines[-1]
    assert "a\\|b" in report.markdown({"a|b": entries()["apr"]})


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_the_terminal(width):
    text = shown(report.table(entries(), 60, width), width)
    assert "…" not in text
    assert all(heading in text for heading in ("accuracy", "critical", "generated", "context", "wall"))
    assert "75.5%" in text and "12.3" in text
    for heading in ("makespan", "acceleration", "parallel"):
        assert (heading in text.partition("60 problems")[0]) == (width == 120)
    assert ("in a terminal of 117 characters" in text) == (width == 80)


def test_machines_are_named_where_they_differ():
    """Entries of the same machine share a line; earlier summaries have none."""
    here = Machine("3.13.1", "0.10.2", "cpu", 1, "Some Processor", ("avx512f", "avx2"), "AVX-512", "XLA")
    there = dataclasses.replace(here, device="NVIDIA H100", devices=2, instructions=(), attention="XLA")
    entry = lambda *machines: {"machines": json.loads(json.dumps([dataclasses.asdict(one) for one in machines]))}
    first = (
        "Python 3.13.1, jax 0.10.2, device cpu, processor Some Processor (avx512f, avx2), "
        "attention by CPU kernels (AVX-512), products by XLA"
    )
    second = (
        "Python 3.13.1, jax 0.10.2, device 2 x NVIDIA H100, processor Some Processor, attention by XLA, products by XLA"
    )
    assert report.machines({"apr": entry(here), "mine": entry(here), "old": {}}) == [first]
    assert report.machines({"apr": entry(here), "mine": entry(here, there)}) == [
        f"APR (spawn and join), mine: {first}",
        f"mine: {second}",
    ]


def test_compare(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        outcomes.write_summary(tmp_path / name / "summary.json", 60, entries())
    found = report.compare([tmp_path / "first", tmp_path / "second" / "summary.json"])
    assert list(found) == ["first/apr", "first/best_of_n", "second/apr", "second/best_of_n"]
    assert report.title("first/apr") == "first: APR (spawn and join)"
    with pytest.raises(FileNotFoundError, match="third"):
        report.compare([tmp_path / "third"])
    with pytest.raises(ValueError, match="read already"):
        report.compare([tmp_path / "first", tmp_path / "first"])
    plots.plot_summary(tmp_path / "points.png", found)
    assert_picture(tmp_path / "points.png")


@pytest.mark.parametrize("field", outcomes.BUDGETS)
def test_curve_is_accuracy_within(field):
    rows = random_outcomes(1)
    budgets, within = plots.curve(rows, field)
    for budget in range(0, 1000, 7):
        reached = within[budgets <= budget]
        assert (reached[-1] if len(reached) else 0) == pytest.approx(outcomes.accuracy_within(rows, budget, field))


@pytest.mark.parametrize("field", outcomes.BUDGETS)
def test_plots(tmp_path, field):
    none = [dataclasses.replace(o, correct=False) for o in random_outcomes(3)]
    plots.plot_accuracy(
        tmp_path / "plot.png", {"apr": random_outcomes(1), "mine": random_outcomes(2), "bad": none}, field
    )
    assert_picture(tmp_path / "plot.png")
    with pytest.raises(ValueError, match="at least one problem"):
        plots.plot_accuracy(tmp_path / "plot.png", {"apr": []}, field)
    with pytest.raises(ValueError, match="'steps'"):
        plots.plot_accuracy(tmp_path / "plot.png", {"apr": none}, "steps")


def test_colours_belong_to_methods():
    names = [*report.TITLES, "mine", "yours"]
    colours = [plots.colour(name, names) for name in names]
    assert len(set(colours)) == len(names)
    assert plots.colour("apr", ["apr"]) == colours[0]


def assert_picture(path):
    image = imread(path)
    assert min(image.shape[:2]) > 200
    image = image[::5, ::5]
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10


class Checker(HTMLParser):
    """Balanced elements, and what stands in script elements."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self):
        super().__init__()
        self.open, self.scripts, self.elements = [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def checked(page: str) -> tuple[dict, Checker]:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(checker.scripts) == 2
    return json.loads(checker.scripts[0]), checker


def test_page_is_self_contained_and_well_formed():
    transcript, builder = build(countdown_tree())
    extra = {"question": "27 from 22, 26, 31, 53", "answer": "1+1=2", "correct": True}
    page = timeline.page([("apr", transcript, extra)], lambda _, token: builder.text(token), "Threads")
    data, checker = checked(page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    assert not [tag for tag, attributes in checker.elements if {"src", "href", "onclick"} & attributes.keys()]
    assert "<title>Threads</title>" in page and "<h1>Threads</h1>" in page
    assert "innerHTML" not in page and "eval(" not in page
    (problem,) = data["runs"]
    assert problem["counts"]["threads"] == 4
    assert [lane["name"] for lane in problem["lanes"]] == ["root", "0", "1", "2"]
    assert "".join(data["strings"][t] for t in problem["token"][:6]) == "<s>27:22"
    assert len({len(problem[name]) for name in ("token", "source", "logprob", "clock", "count")}) == 1


def test_page_opens_on_the_run_that_shows_most():
    alone, builder = build(Thread(("s",), (("a", "b"),)))
    forked, other = build(countdown_tree())
    items = [
        ("one", alone, {"question": "q", "answer": "a", "correct": True, "machine": "a machine"}),
        ("two", forked, {"question": "q", "answer": "a", "correct": False}),
        ("three", forked, {"question": "q", "answer": "a", "correct": True}),
    ]
    text = lambda method, token: (builder if method == "one" else other).text(token)
    data = checked(timeline.page(items, text))[0]
    assert data["open"] == 2 and [run["forked"] for run in data["runs"]] == [False, True, True]
    assert [run["machine"] for run in data["runs"]] == ["a machine", "", ""]
    assert checked(timeline.page(items[:1], text))[0]["open"] == 0


def test_the_script_asks_only_for_what_the_page_has():
    transcript, builder = build(countdown_tree())
    extra = {"question": "q", "answer": "a", "correct": True}
    data, checker = checked(timeline.page([("apr", transcript, extra)], lambda _, token: builder.text(token)))
    script, (run,) = checker.scripts[1], data["runs"]
    ids = {attributes["id"] for _, attributes in checker.elements if "id" in attributes}
    assert set(re.findall(r"\$\(\"([\w-]+)\"\)", script)) == ids - {"data"}
    assert set(re.findall(r"\bdata\.(\w+)", script)) == data.keys()
    asked = set(re.findall(r"\brun\.(\w+)|\bruns\[\d\]\.(\w+)", script))
    assert {name for names in asked for name in names if name} <= run.keys()
    assert set(re.findall(r"\bl\.(\w+)", script)) == run["lanes"][0].keys()


def test_page_escapes_hostile_text():
    transcript, _ = build(Thread((HOSTILE,), (("a", HOSTILE),)))
    extra = {"question": HOSTILE, "answer": HOSTILE, "correct": False}
    page = timeline.page([(HOSTILE, transcript, extra)], lambda method, token: f"{HOSTILE}{token}", HOSTILE)
    data, checker = checked(page)
    assert data["runs"][0]["question"] == data["runs"][0]["answer"] == HOSTILE
    assert data["strings"] == [HOSTILE + "0", HOSTILE + "1"]
    assert [tag for tag, _ in checker.elements].count("script") == 2
    assert "alert(1)</script>" not in page


def test_page_marks_stops_and_missing_values():
    transcript, builder = build(Thread(("s",), (("a", "b"),)), stop=Stop.LENGTH)
    logprob = np.array([np.nan, -np.inf, -0.12345], np.float32)
    transcript = dataclasses.replace(transcript, log=dataclasses.replace(transcript.log, logprob=logprob))
    extra = {"question": "q", "answer": None, "correct": False}
    (problem,) = checked(timeline.page([("apr", transcript, extra)], lambda _, token: builder.text(token)))[0]["runs"]
    assert problem["logprob"] == [None, None, -0.123]
    assert problem["stop"] == "length" and problem["answer"] is None
    assert checked(timeline.page([], lambda _, token: builder.text(token)))[0]["runs"] == []
    nothing, _ = build(Thread((), ()))
    (problem,) = checked(timeline.page([("apr", nothing, extra)], lambda _, token: builder.text(token)))[0]["runs"]
    assert problem["lanes"] == []
    with pytest.raises(ValueError, match="is empty"):
        picture.draw_timeline(nothing, "unused.png")
    with pytest.raises(KeyError, match="question"):
        timeline.page([("apr", transcript, {})], lambda _, token: builder.text(token))


def test_places_and_links_by_hand():
    """Root s p | a b, forks x | c d e and y z | f at clock 3, joins at 6 with b and the results at 7 and 8."""
    spec = Thread(
        ("s", "p"), (("a", "b"), [Thread(("x",), (tuple("cde"),)), Thread(("y", "z"), (("f",),))], ("g", "h"))
    )
    transcript, _ = build(spec)
    clock, count = timeline.places(transcript)
    assert clock.tolist() == [0, 1, 2, 3, 7, 8, 9, 10, 3, 4, 5, 6, 3, 4, 5]
    assert count.tolist() == [0, 0, 0, 1, 5, 5, 5, 6, 2, 2, 3, 4, 2, 2, 2]
    assert timeline.links(transcript) == ([(3, 8), (3, 12)], [(11, 4), (14, 4)])


def test_fork_before_anything_was_generated():
    spec = Thread(("s", "p"), ([Thread(("x",), (("c",),)), Thread(("y",), (("f",),))], ("g",)))
    transcript, builder = build(spec)
    assert timeline.links(transcript)[0] == [(1, 5), (1, 7)]
    extra = {"question": "q", "answer": None, "correct": False}
    checked(timeline.page([("apr", transcript, extra)], lambda _, token: builder.text(token)))


@pytest.mark.parametrize("seed", range(4))
def test_picture(tmp_path, seed):
    transcript, builder = build(countdown_tree() if seed == 0 else random_tree(np.random.default_rng(seed)), seed)
    picture.draw_timeline(transcript, tmp_path / "threads.png", builder.text, "27 from 22, 26, 31, 53")
    assert_picture(tmp_path / "threads.png")
    picture.draw_timeline(transcript, tmp_path / "bare.png")
    assert_picture(tmp_path / "bare.png")


def test_failures_of_judges_have_a_column_where_there_are_any():
    entry = {key: 1280.0 for key, _ in (*report.COLUMNS, *report.RATIOS)}
    entry |= {"accuracy": 0.5, "activation": 0.0, "threads": 3.0, "wall_s": 61.5, "accuracy_verifier": 0.6}
    failed = entry | {"judge_failures": 1200, "judge_failure_reasons": {"a\x1b[2Jb": 600, "c": 590, "d": 8, "e": 2}}
    console = Console(width=80, file=io.StringIO())
    console.print(report.table({"self_consistency": failed, "apr": entry}, 100, 80))
    lines = console.file.getvalue().splitlines()
    assert lines[0].rstrip().endswith("judge") and lines[1].rstrip().endswith("failed")
    assert any(line.rstrip().endswith(" 1,200") for line in lines) and any(
        line.rstrip().endswith(" 0") for line in lines
    )
    assert "judge failed |" in report.markdown({"apr": failed}) and "judge" not in report.markdown({"apr": entry})
    assert report.judge_failures({"apr": entry, "mine": failed}) == [
        "mine: the judge failed on 1,200 answers, which count as wrong: 600 x a [2Jb; 590 x c; 8 x d; 1 other reasons, see "
        "summary.json"
    ]


def test_errors_of_the_format_have_a_column_and_a_line_where_there_are_any():
    entry = {key: 1280.0 for key, _ in (*report.COLUMNS, *report.RATIOS)} | {"accuracy": 0.5, "activation": 0.0}
    broke = entry | {"format_errors": 1203, "format_error_kinds": {"no_outlines": 1200, "broken_off": 3}}
    assert "format errors |" in report.markdown({"npr": broke}) and "| 1,203 |" in report.markdown({"npr": broke})
    assert "format" not in report.markdown({"npr": entry}) + report.markdown({"npr": broke}, wide=False)
    assert report.format_errors({"npr": broke, "apr": entry}) == [
        "npr: 1,203 errors of the format: no outlines 1,200, broken off 3"
    ]
