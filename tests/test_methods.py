"""Methods are checked where they are configured: numbers by their fields, and samples that would all be the same."""

import dataclasses
import importlib
from pathlib import Path

import pytest

import forking
from apr_jax import settings
from apr_jax.decode import Progress, Stop
from apr_jax.evaluate import methods, report
from apr_jax.evaluate.kept import Kept
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Majority, Selector
from apr_jax.methods import Samples, Sampling, Sequential, SpawnJoin
from apr_jax.pretrained.tokenizer import load
from apr_jax.tasks.countdown import solver as search
from apr_jax.tasks.countdown.problems import Problem
from configs import demo

ROOT = Path(__file__).parents[1]
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("part", "field", "values", "message"),
    [
        (Sampling, "temperature", (NAN, INFINITE, -0.1, 1e39), r"temperature is .*; it must be 0 \(greedy\) or more"),
        (Sampling, "top_p", (NAN, INFINITE, 0.0, -0.5, 1.1, 1e-50), "top_p is .*; it must be above 0 .* and at most 1"),
        (Sampling, "top_k", (-1, 2**31, 2.0, True), "top_k is .*; it must be a whole number of 0 .. 2147483647"),
        (
            Sampling,
            "max_tokens",
            (0, -3, 2**31, 2**70, NAN),
            "max_tokens is .*; it must be a whole number of 1 .. 2147483647",
        ),
        (
            Sampling,
            "child_max_tokens",
            (-1, 2**31),
            "child_max_tokens is .*; it must be a whole number of 0 .. 2147483647",
        ),
        (Samples, "count", (0, 2**31), "samples.count is .*; it must be a whole number of 1 .. 2147483647"),
        (SpawnJoin, "together", (-1, 2**31), "spawn_join.together is .*; it must be a whole number of 0 .. 2147483647"),
        (
            SpawnJoin,
            "max_depth",
            (0, 2**31),
            "spawn_join.max_depth is .*; it must be a whole number of 1 .. 2147483647",
        ),
    ],
)
def test_numbers_are_refused_by_field(part, field, values, message):
    for value in values:
        with pytest.raises(ValueError, match=message):
            part(**{field: value})


@pytest.mark.parametrize("gain", [NAN, INFINITE, 0.0, -1.0])
def test_gains_are_refused(gain):
    with pytest.raises(ValueError, match=f"gain is {gain}; it must be above 0 and finite"):
        SpawnJoin(gain=gain)


def test_every_choice_of_a_protocol_can_be_configured():
    """Whatever fields the protocol has beside the ids of its words."""
    words = load(demo.config().tokenizer)
    for method in (Sequential(), Samples(5), SpawnJoin(context="live", returns="stitch", together=3)):
        protocol = method.protocol(words)
        assert type(protocol).__name__ == type(method).__name__
        for field in dataclasses.fields(protocol):
            given = getattr(method, field.name)
            assert getattr(protocol, field.name) == (words.id(given) if str(given).startswith("<") else given)


def test_choices_that_do_not_go_together_are_refused_where_they_are_configured():
    with pytest.raises(ValueError, match="spawn_join.together is 2; only live threads run together"):
        SpawnJoin(together=2)
    with pytest.raises(ValueError, match="spawn_join.max_depth is 2; live children do not fork"):
        SpawnJoin(max_depth=2, context="live")
    with pytest.raises(ValueError, match="add is True; samples has no control words to add"):
        Samples(4, add=True)


@dataclasses.dataclass(frozen=True)
class Told(Selector):
    """A rule of one's own that knows the truth."""

    place: int = 0
    oracle = True

    def choose(self, candidates):
        return self.place


def test_a_rule_of_ones_own_is_reported_under_its_name_and_as_the_oracle_that_it_is():
    config = demo.config()
    words, rollout = load(config.tokenizer), config.methods["sequential"].rollout
    question = Problem((22, 26, 31, 53), 27)
    transcript = forking.played({(): words.encode("<end>")}, forking.Sequential(end=words.id("<end>")), [1])
    progress = Progress(1, 1, 1, 1, 1, 1, 1.0, 1.0, (1,))
    found = methods.judged(config.task, [question], Kept({0: transcript}, progress, 1), words, rollout)
    entry = methods.evaluate(MethodConfig(rollout, also=(Told(), Majority())), found).entry
    assert entry["accuracy_told"] == entry["accuracy_majority"] == 0
    assert [row[0] for row in report.rows({"x": entry})] == ["x", "x, by told (oracle)", "x, by majority"]
    with pytest.raises(ValueError, match="also: the rules are called told, told; each needs a name of its own"):
        MethodConfig(rollout, also=(Told(0), Told(1)))


def test_samples_that_would_be_copies_are_refused():
    """Of self-consistency and best-of-N alike, which read samples; one sample may be greedy, and so may other methods."""
    with pytest.raises(
        ValueError, match="temperature is 0: the 4 samples of each question would be copies of one answer"
    ):
        RolloutConfig(Samples(), "none")
    with pytest.raises(ValueError, match="top_k is 1: the 3 samples"):
        RolloutConfig(Samples(3), "none", Sampling(temperature=1.0, top_k=1))
    with pytest.raises(ValueError, match="temperature is 1e-40: the 3 samples"):
        RolloutConfig(Samples(3), "none", Sampling(temperature=1e-40))
    for method in ("self_consistency", "best_of_n"):
        with pytest.raises(ValueError, match="temperature is 0: the 3 samples"):
            dataclasses.replace(demo.config().methods[method].rollout, sampling=Sampling())
    RolloutConfig(Samples(1), "none")
    RolloutConfig(SpawnJoin(), "none")


def test_methods_are_changed_from_the_command_line(capsys):
    options = ["method.context", "shared", "method.max-depth", "2", "sampling.temperature", "0.5"]
    prefixed = lambda options: [f"--methods.apr.rollout.{o}" if i % 2 == 0 else o for i, o in enumerate(options)]
    config = settings.parse(prefixed(options), "configs/demo.py")
    assert config.methods["apr"].rollout.method == SpawnJoin(context="shared", max_depth=2)
    assert config.methods["apr"].rollout.sampling == Sampling(temperature=0.5, max_tokens=320)
    assert config.methods["sequential"] == demo.config().methods["sequential"]
    assert "methods.apr.rollout.method.class " in settings.describe(config)
    for wrong, nearest in (("temperature", "sampling.temperature"), ("method.contxt", "method.context")):
        with pytest.raises(SystemExit):
            settings.parse(prefixed([wrong, "1"]), "configs/demo.py")
        assert f"--methods.apr.rollout.{nearest}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**32}, "seed is 4294967296; it must be a whole number of 0 .. 4294967295"),
        ({"seed": -1}, "seed is -1; it must be"),
        ({"shown": 0}, "shown is 0; it must be at least 1"),
    ],
)
def test_evaluations_check_their_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(demo.config(), **options)


def test_a_method_that_does_not_fit_its_sizes_is_refused_before_anything_is_decoded():
    config = demo.config()
    rollout = config.methods["self_consistency"].rollout
    small = dataclasses.replace(rollout, method=Samples(8), sizes=dataclasses.replace(rollout.sizes, threads=4))
    with pytest.raises(ValueError, match="sizes.threads = 4: Samples opens 9 threads, so at least 9 are needed"):
        methods.requests(config.task, [], small, load(config.tokenizer))


def test_nothing_is_an_answer_where_the_model_gave_nan():
    """Best-of-N would choose by a mean log-probability that is not a number."""
    config = demo.config()
    words = load(config.tokenizer)
    question = Problem((22, 26, 31, 53), 27)
    steps = search.solve(question.nums, question.target)
    said = words.encode(f"<goal><join>{';'.join(steps)}<end>")
    transcript = forking.played({(): said}, forking.Sequential(end=words.id("<end>")), words.encode("<s>27<go>"))
    for stop, answered in ((Stop.END, True), (Stop.NOT_FINITE, False)):
        ended = dataclasses.replace(transcript, stop=stop)
        ((answer,),) = methods.read(config.task, [question], [ended], words, config.methods["sequential"].rollout)
        assert (answer.candidate.answer is not None) == answered == answer.candidate.correct


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda path: path.stem)
def test_rollouts_of_every_configuration_can_be_told_apart(path):
    """Methods of one rollout share its transcripts: a rollout is a key."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    made = module.config() if hasattr(module, "config") else None
    rollouts = [method.rollout for method in getattr(made, "methods", {}).values()]
    assert all(hash(rollout) == hash(dataclasses.replace(rollout)) for rollout in rollouts)
    assert all(dataclasses.replace(rollout, checkpoint="another") not in rollouts for rollout in rollouts)
