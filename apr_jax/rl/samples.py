"""The samples of a step: questions are put, answered by the engine, graded and rewarded.

Axes: n trajectories.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from apr_jax.decode import Engine
from apr_jax.evaluate import methods, metrics
from apr_jax.record import Transcript
from apr_jax.rl import estimators, groups, measures, rewards
from apr_jax.rl.config import RlConfig
from apr_jax.rl.groups import Groups
from apr_jax.rl.rewards import Case
from apr_jax.rl.update import RlState
from apr_jax.tasks.task import grades
from apr_jax.tasks.timed import Failure
from apr_jax.tokenizer import TextCodec
from apr_jax.train.rows import order


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of a step.

    Attributes:
        groups: the trajectories to learn from.
        rewards: of the trajectories, [n].
        told: of each trajectory its `question`, `answer` (None: no valid one), whether it is `correct`, and `reward`.
        numbers: for reports, means over all trajectories that were drawn.
        position: in the sequence of questions, after those that were read.
        seconds: of decoding.
    """

    groups: Groups
    rewards: Float[np.ndarray, " n"]
    told: tuple[dict, ...]
    numbers: Mapping[str, float]
    position: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Some questions, answered; `told` as of `Samples`, `columns` has numbers by name, one for each trajectory."""

    groups: Groups
    rewards: np.ndarray
    told: tuple[dict, ...]
    columns: Mapping[str, np.ndarray]
    seconds: float


def seed_of(seed: int, step: int) -> int:
    """The seed of a step's draws, 32 bits: a question that is read again is answered by other draws."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws samples with engines, which must have the parameters already.

    Attributes:
        config: of the run.
        engine: that of the rollouts.
        evaluating: that of evaluations: the same, unless the rollouts hold several samples in a problem.
        codec: the tokenizer with the method's control words.
        questions: the questions to learn from.
    """

    config: RlConfig
    engine: Engine
    evaluating: Engine
    codec: TextCodec
    questions: Sequence

    def update(self, state: RlState) -> None:
        """Draw and evaluate with these parameters from now on."""
        for engine in {id(engine): engine for engine in (self.engine, self.evaluating)}.values():
            engine.update(state.params, int(state.updates))

    @property
    def traces(self) -> dict[str, int]:
        """How often the programs of the engines were traced."""
        return {"rollout": self.engine.traces, "evaluation": self.evaluating.traces}

    def draw(self, step: int, position: int, stop: Callable[[], bool]) -> Samples | None:
        """The samples of a step; None if `stop` returned True before all were there.

        Args:
            step: number of the step.
            position: in the sequence of questions.
            stop: called now and then.

        Raises:
            ValueError: see `groups.gather` and `rewards.total`.
            groups.NotFinite: the model gave NaN or infinity.
        """
        config, drawn, kept = self.config, [], []
        wanted, begin = config.prompts, position
        for _ in range(config.draws if config.estimator.dynamic else 1):
            numbers = order(position, wanted, len(self.questions), config.seed)
            draw = self._draw(numbers, position - begin, step, stop)
            if draw is None:
                return None
            drawn.append(draw)
            position += wanted
            kept.append(np.ones(len(draw.rewards), bool))
            if config.estimator.dynamic:
                kept[-1] = estimators.informative(draw.rewards, draw.groups.group)
                wanted -= len(np.unique(draw.groups.group[kept[-1]]))
            if not wanted:
                break
        found, values = self._kept(drawn, kept)
        told = [one for draw, stays in zip(drawn, kept, strict=True) for one in itertools.compress(draw.told, stays)]
        return Samples(found, values, tuple(told), _means(drawn), position, sum(draw.seconds for draw in drawn))

    def _kept(self, drawn: list[_Draw], kept: list[np.ndarray]) -> tuple[Groups, np.ndarray]:
        """The groups that stay, of all draws; later draws have higher numbers, so that the order stays too."""
        values = np.concatenate([draw.rewards[stays] for draw, stays in zip(drawn, kept, strict=True)])
        if len(drawn) == 1 and kept[0].all():
            return drawn[0].groups, values
        transcripts: list[Transcript] = []
        for draw, stays in zip(drawn, kept, strict=True):
            numbers = set(draw.groups.group[stays].tolist())
            transcripts += [one for one in draw.groups.transcripts if one.problem in numbers]
        # What the machine may have stopped was judged draw by draw.
        return groups.gather(transcripts, self.config.rollout.sampling, self.config.groups.judged), values

    def _draw(self, numbers: np.ndarray, first: int, step: int, stop: Callable) -> _Draw | None:
        """Answer questions, which are numbered from `first` on."""
        config = self.config
        questions = [self.questions[number] for number in numbers]
        asked = methods.requests(config.task, questions, config.drawn(), self.codec)
        problems = [
            dataclasses.replace(problem, id=first + problem.id, sample=sample)
            for problem in asked
            for sample in range(1 if config.grouped else config.samples)
        ]
        start = time.perf_counter()
        transcripts = list(self.engine.decode(problems, seed_of(config.seed, step), slice_steps=200, stop=stop))
        seconds = time.perf_counter() - start
        if len(transcripts) < len(problems):
            return None
        found = groups.gather(transcripts, config.rollout.sampling, config.groups)
        cases, told, failures = self._cases(found, questions, first)
        values, columns = np.zeros(len(cases)), collections.defaultdict(lambda: np.zeros(len(cases)))
        for group in np.unique(found.group):
            members = np.flatnonzero(found.group == group)
            values[members], parts = rewards.total(config.rewards, [cases[i] for i in members], step)
            for name, part in parts.items():
                columns[f"reward/{name}"][members] = part
        columns |= {
            "reward": values,
            "judge_failures": failures,
            **measures.columns(cases, config.rollout.method),
        }
        told = tuple(about | {"reward": float(value)} for about, value in zip(told, values, strict=True))
        return _Draw(found, values, told, columns, seconds)

    def _cases(self, found: Groups, questions: Sequence, first: int) -> tuple[list[Case], list[dict], np.ndarray]:
        """The graded trajectories, what was asked and answered, and whether the judge failed; an answer without valid format is
        wrong."""
        task, method = methods.put(self.config.task, self.config.rollout), self.config.rollout.method
        pairs, answered, told = [], [], []
        for number, each in enumerate(found.trajectories):
            said = method.said(found.transcripts[each.transcript], each.answer, self.codec)
            answer = task.answer(said, self.codec)
            told.append({"question": task.about(questions[each.group - first])["question"], "answer": answer})
            if answer is not None:
                pairs.append((questions[each.group - first], answer))
                answered.append(number)
        correct, failures = np.zeros(len(found.trajectories)), np.zeros(len(found.trajectories))
        for number, grade in zip(answered, grades(task, pairs), strict=True):
            failures[number] = isinstance(grade, Failure)
            correct[number] = grade is True
        alone = [found.alone(number) for number in range(len(correct))]
        cases = [Case(one, float(right), method.kinds(one)) for one, right in zip(alone, correct, strict=True)]
        told = [about | {"correct": bool(right)} for about, right in zip(told, correct, strict=True)]
        return cases, told, failures

    def evaluate(self, questions: Sequence) -> dict[str, float]:
        """Numbers of an evaluation on held-out questions; the accuracy is the mean over a question's answers.

        Raises:
            groups.NotFinite: the model gave NaN or infinity.
        """
        config = self.config.evaluated()
        task = methods.put(self.config.held_out, config)
        asked = methods.requests(self.config.held_out, questions, config, self.codec)
        found = sorted(self.evaluating.decode(asked, self.config.seed, slice_steps=200), key=lambda each: each.problem)
        groups.require_finite(found)
        answers = methods.read(task, questions, found, self.codec, config)
        right = [np.mean([each.candidate.correct for each in given] or [0.0]) for given in answers]
        measured = {
            name: float(column.mean())
            for name, column in measures.columns([Case(t, 0.0) for t in found], config.method).items()
        }
        return {f"held_out/{name}": value for name, value in {**measured, "accuracy": float(np.mean(right))}.items()}


def _means(drawn: list[_Draw]) -> dict[str, float]:
    """The means of columns over all draws; what a draw has no column for (an error that did not occur) is 0 in it."""
    total = sum(len(draw.rewards) for draw in drawn)
    names = dict.fromkeys(name for draw in drawn for name in draw.columns)
    means = {
        name: float(sum(draw.columns[name].sum() for draw in drawn if name in draw.columns)) / max(total, 1)
        for name in names
    }
    masked = sum(sum(draw.groups.masked.values()) for draw in drawn)
    prompts = sum(len({each.problem for each in draw.groups.transcripts}) for draw in drawn)
    sampled = sum(metrics.generated_tokens(each) for draw in drawn for each in draw.groups.transcripts)
    rate = sampled / max(sum(draw.seconds for draw in drawn), 1e-9)
    long, right = (np.concatenate([draw.columns[name] for draw in drawn]) for name in ("critical_path", "accuracy"))
    means |= {"longest": float(long.max(initial=0)), **measures.by_length(long, right)}
    means["width_entropy"] = metrics.entropy(width for draw in drawn for width in draw.columns["width"])
    return means | {"draws": len(drawn), "prompts": prompts, "masked": masked, "rollout_tokens_per_second": rate}
