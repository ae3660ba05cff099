"""From transcripts to labels: what carries loss, with which advantage, what is shared, repeated, masked and counted."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.decode.needs import Needs
from apr_jax.methods import Sampling
from apr_jax.model import transformer
from apr_jax.model.attention import masked_attention
from apr_jax.model.config import ModelConfig
from apr_jax.record import Log, Source, Stop, ThreadRecord, Transcript
from apr_jax.rl import batches, groups, kept
from apr_jax.rl.estimators import NAMED, Estimator, advantages, loss
from apr_jax.rl.groups import GroupConfig, gather
from apr_jax.rl.scoring import score
from small_runs import rl

DRAWN = Sampling(temperature=1.0)
SMALL = GroupConfig(length=24, threads=12, rows=6, masked=0.5)
F, S, H, R = Source.FED, Source.SAMPLED, Source.HANDED, Source.REWRITTEN


def record(problem, sample, threads, sees=(), stop=Stop.END, seed=0) -> Transcript:
    """A transcript by hand.

    Args:
        threads: (path, parent, follows, stop, sources): the last entry of a thread was never fed if it was sampled.
        sees: pairs (viewer, writer), beside every thread itself.
    """
    rng, columns, clock = np.random.default_rng((problem, sample, seed)), [], 0
    for number, (_, _, _, _, sources) in enumerate(threads):
        context = [i for i, entry in enumerate(columns) if (number, entry["thread"]) in sees and entry["index"] >= 0]
        position, clock = len(context), 1 + max((columns[i]["clock"] for i in context), default=-1)
        for index, source in enumerate(sources):
            fed = index < len(sources) - 1 or source not in (S, R)
            sampled = source in (S, R)
            logprob = -float(rng.exponential(0.4)) if sampled else np.nan
            columns.append(
                dict(
                    token=int(rng.integers(1, 30)),
                    thread=number,
                    index=index if fed else -1,
                    position=position + index if fed else -1,
                    clock=clock + index if fed else -1,
                    source=source,
                    logprob=logprob,
                    behaviour_logprob=logprob,
                    predictor=len(columns) - 1 if sampled else -1,
                    depth=0,
                )
            )
    log = Log(**{name: np.array([entry[name] for entry in columns]) for name in columns[0]})
    matrix = np.eye(len(threads), dtype=bool)
    for viewer, writer in sees:
        matrix[viewer, writer] = True
    records = tuple(ThreadRecord(path, parent, stop, 0, follows) for path, parent, follows, stop, _ in threads)
    return Transcript(problem, sample, stop, records, matrix, log, 0, version=4)


def forking(problem, sample, stop=Stop.END, children=(Stop.END, Stop.KILLED)) -> Transcript:
    """A root that samples, with isolated children; its last token is never fed, and one of them was rewritten."""
    return record(problem, sample, forking_threads(stop, children), stop=stop)


def forking_threads(stop=Stop.END, children=(Stop.END, Stop.KILLED)) -> list[tuple]:
    threads = [((), -1, -1, stop, [F, F, S, S, F, F, R, S])]
    # A handed token stands where the parent's last token was copied; the next is drawn from it.
    return [*threads, *(((i,), 0, -1, end, [F, F, H, *[S] * (i + 1), S]) for i, end in enumerate(children))]


def answers(problem=7, count=3, prompt=4, said=3, ends=None, stop=Stop.END) -> Transcript:
    """A root that reads a prompt, and answers of said, said + 1 ... sampled tokens, each fed the prompt's last token."""
    ends = ends or [Stop.END] * count
    threads = [((), -1, -1, stop, [F] * prompt)]
    threads += [((i,), 0, -1, ends[i], [F, *[S] * (said + i)]) for i in range(count)]
    return record(problem, 0, threads, {(i + 1, 0) for i in range(count)}, stop)


def beams(problem=3) -> Transcript:
    """Thread 1 goes on as 2 and as 3, thread 4 stands alone, thread 5 was dropped early; thread 6 is a probe of 2."""
    threads = [
        ((), -1, -1, Stop.END, [F, F]),
        ((0,), 0, -1, Stop.END, [F, S, S]),
        ((1,), 0, 1, Stop.END, [F, S, S, S]),
        ((2,), 0, 1, Stop.END, [F, S]),
        ((3,), 0, -1, Stop.END, [F, S, S, S, S]),
        ((4,), 0, -1, Stop.KILLED, [F, S]),
        ((5,), 0, 2, Stop.END, [F, F]),
    ]
    sees = {(i, 0) for i in range(1, 7)} | {(2, 1), (3, 1), (6, 1), (6, 2)}
    return record(problem, 0, threads, sees)


def whole(estimator, transcripts, rewards, config=SMALL):
    found = gather(transcripts, DRAWN, config)
    tree = found.tree() if estimator.tree != "none" else ()
    credit = advantages(estimator, np.array(rewards, float), found.group, *tree)
    return found, batches.pack(found, credit, estimator, config)


def by_entry(batch) -> dict:
    """(transcript's problem, sample, path, how many-th entry of its thread) -> the label's fields, where there is weight."""
    found = {}
    for row, place in np.argwhere(batch.labels.weight > 0):
        transcript = batch.transcripts[batch.origin.transcript[row, place]]
        entry = int(batch.origin.label_entry[row, place])
        thread = int(transcript.log.thread[entry])
        number = entry - int(np.flatnonzero(transcript.log.thread == thread)[0])
        key = (transcript.problem, transcript.sample, transcript.threads[thread].path, number)
        assert key not in found, "a sampled token is a label once"
        assert batch.rows.label[row, place] == transcript.log.token[entry]
        found[key] = jax.tree.map(lambda x, at=(row, place): x[at], batch.labels)
        assert found[key].engine == np.float32(transcript.log.behaviour_logprob[entry])
    return found


def test_only_sampled_tokens_carry_loss():
    """Unfed ones included; those that were fed, handed or rewritten never, whatever the stops of their threads."""
    made = [
        forking(1, 0),
        forking(1, 1, Stop.LENGTH),
        forking(1, 2, Stop.SHARED),
        forking(1, 3, children=(Stop.MALFORMED,)),
    ]
    found, batch = whole(NAMED["p_grpo"], made, [1, 0, 0, 0])
    labels = by_entry(batch)
    expected = {
        (1, sample, path, number)
        for sample, transcript in enumerate(found.transcripts)
        for thread, each in enumerate(transcript.threads)
        for path in [each.path]
        for number, source in enumerate(transcript.log.source[transcript.log.thread == thread])
        if source == S
    }
    assert set(labels) == expected and (1, 0, (), 7) in expected and (1, 0, (), 6) not in expected
    assert {(1, 0, (1,), n) for n in (3, 4, 5)} <= set(labels), "a killed thread keeps its tokens"
    for (_, sample, _, _), label in labels.items():
        assert label.advantage == pytest.approx([3 / 4, -1 / 4, -1 / 4, -1 / 4][sample])
        assert (label.weight, label.temperature, label.trajectory) == (1, 1, sample)
    assert batch.counts.labels == len(expected) == batch.denominator
    assert (batch.counts.samples, batch.counts.groups, batch.counts.silent_groups) == (4, 1, 0)
    # The draw that a rule rewrote stands in the rows, for the gate, without weight.
    assert ((batch.rows.label >= 0) & (batch.labels.weight == 0)).sum() == 4


def test_rows_have_one_shape():
    for count in (1, 3):
        made = [forking(problem, sample) for problem in range(count) for sample in range(2)]
        _, batch = whole(NAMED["p_grpo"], made, [1, 0] * count)
        assert batch.rows.token.shape == batch.labels.weight.shape == (6, 24)
        assert batch.rows.sees.shape == (6, 12, 12)
    assert (batch.rows.owner[-1] == -1).all() and not batch.labels.weight[-1].any()


def test_the_order_of_arrival_does_not_matter():
    made = [forking(problem, sample) for problem in (2, 0, 1) for sample in (1, 0)]
    made = [dataclasses.replace(each, version=number) for number, each in enumerate(made)]
    one, other = gather(made, DRAWN, SMALL), gather(made[::-1], DRAWN, SMALL)
    assert [(t.problem, t.sample) for t in one.transcripts] == [(p, s) for p in range(3) for s in range(2)]
    assert [t.version for t in one.transcripts] == [t.version for t in other.transcripts] == [3, 2, 5, 4, 1, 0]
    rewards = np.array([1.0, 0, 0.5, 0, 0, 2])
    a, b = (
        batches.pack(each, advantages(NAMED["p_grpo"], rewards, each.group), NAMED["p_grpo"], SMALL)
        for each in (one, other)
    )
    for x, y in zip(jax.tree.leaves((a.rows, a.labels)), jax.tree.leaves((b.rows, b.labels)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert {label.version for key, label in by_entry(a).items() if key[:2] == (2, 1)} == {0}


ANSWER = dataclasses.replace(SMALL, each="answer")


def test_kept_groups_give_the_same_batch(tmp_path):
    config = dataclasses.replace(
        rl(tmp_path), keep_every=3, keep_last=2, micro_rows=3, groups=ANSWER, estimator=NAMED["treerl"]
    )
    Path(config.workdir).mkdir()
    ones = lambda count, value: np.full(count, value, np.float32)
    made = [
        dataclasses.replace(
            each,
            version=number,
            sampling={
                name: ones(len(each.threads), value)
                for name, value in {"temperature": 1, "top_k": 0, "top_p": 1, "budget": 9 + number}.items()
            },
        )
        for number, each in enumerate([answers(7), beams(3), answers(8, 2, stop=Stop.POOL_FULL)])
    ]
    found = gather(made, config.rollout.sampling, config.groups)
    rewards = np.random.default_rng(0).normal(size=len(found.trajectories))
    assert len(rewards) == 3 + 4 + 2
    for step in range(1, 8):
        kept.write(config, step, found, rewards + step, str)
    names = sorted(path.name for path in (tmp_path / "run/rollouts").iterdir())
    assert names == [f"step_00000{step}.{end}" for step in (3, 6, 7) for end in ("jsonl", "npz")]
    again, values = kept.read(config, 6)
    np.testing.assert_array_equal(values, rewards + 6)
    assert [(t.version, *np.unique(t.sampling["budget"])) for t in again.transcripts] == [(1, 10), (0, 9), (2, 11)]
    one, other = kept.batch(config, found, rewards + 6), kept.batch(config, again, values)
    assert one.labels.advantage.any() and (one.denominator, one.counts) == (other.denominator, other.counts)
    for x, y in zip(jax.tree.leaves((one.rows, one.labels)), jax.tree.leaves((other.rows, other.labels)), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes()
    with pytest.raises(ValueError, match="step 4 is not kept in .*; kept are 3, 6, 7"):
        kept.read(config, 4)


def test_a_short_prompt_is_repeated_and_a_long_one_shared():
    made = [answers()]
    _, repeated = whole(NAMED["p_grpo"], made, [1, 0, 0], ANSWER)
    assert len(repeated.transcripts) == 3 and repeated.counts.packed.entries == 3 * 4 + 3 + 4 + 5
    _, shared = whole(NAMED["p_grpo"], made, [1, 0, 0], dataclasses.replace(ANSWER, share_from=4))
    assert len(shared.transcripts) == 1 and shared.counts.packed.entries == 4 + 3 + 4 + 5
    # Rows of 12 entries hold the prompt with 3 and 4 fed entries, and once more with 5.
    _, two = whole(NAMED["p_grpo"], made, [1, 0, 0], dataclasses.replace(ANSWER, share_from=4, length=12))
    assert len(two.transcripts) == 2 and two.counts.packed.entries == 2 * 4 + 3 + 4 + 5
    _, few = whole(NAMED["p_grpo"], made, [1, 0, 0], dataclasses.replace(ANSWER, share_from=4, threads=2))
    assert len(few.transcripts) == 3
    fields = [
        {
            key: (float(label.advantage), int(label.trajectory), float(label.weight))
            for key, label in by_entry(batch).items()
        }
        for batch in (repeated, shared, two, few)
    ]
    assert fields[0] == fields[1] == fields[2] == fields[3] and len(fields[0]) == 3 + 4 + 5


def test_a_sampled_prefix_carries_the_sum():
    """Trajectories 1-2, 1-3, 4, 5 with advantages 3/4, -1/4, -1/4, -1/4; the probe is none."""
    made = [beams()]
    found, batch = whole(NAMED["p_grpo"], made, [1, 0, 0, 0], ANSWER)
    assert [each.answer for each in found.trajectories] == [2, 3, 4, 5]
    assert [np.flatnonzero(each.threads).tolist() for each in found.trajectories] == [
        [0, 1, 2],
        [0, 1, 3],
        [0, 4],
        [0, 5],
    ]
    labels = by_entry(batch)
    told = {
        path: {float(label.advantage) for key, label in labels.items() if key[2] == path}
        for path in [(i,) for i in range(5)]
    }
    assert told == {(0,): {0.5}, (1,): {0.75}, (2,): {-0.25}, (3,): {-0.25}, (4,): {-0.25}}
    assert batch.counts.labels == len(labels) == 2 + 3 + 1 + 4 + 1
    assert len(batch.transcripts) == 3, "those with a common sampled prefix stay together"
    assert found.alone(1).tokens(2).tolist() == made[0].tokens(3).tolist()
    assert [t.path for t in found.alone(1).threads] == [(), (0,), (2,)]


def test_weights_of_means_over_trajectories():
    """Weight times advantage is the sum of A / |o| over those that hold a label."""
    _, batch = whole(dataclasses.replace(NAMED["grpo"], scale="nothing"), [beams()], [1, 0, 0, 0], ANSWER)
    given = {key[2]: float(label.advantage * label.weight) for key, label in by_entry(batch).items()}
    lengths = [5, 3, 4, 1]
    a = [0.75, -0.25, -0.25, -0.25]
    assert given == pytest.approx(
        {(0,): a[0] / 5 + a[1] / 3, (1,): a[0] / 5, (2,): a[1] / 3, (3,): a[2] / 4, (4,): a[3]}, rel=1e-6
    )
    assert batch.denominator == len(lengths)


def test_trees_come_from_the_threads():
    found = gather([beams()], DRAWN, ANSWER)
    holds, parent = found.tree()
    assert holds.astype(int).tolist() == [
        [0, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [0] * 4,
    ]
    assert parent.tolist() == [-1, -1, 1, 1, -1, -1, -1]
    _, batch = whole(NAMED["treerl"], [beams()], [1, 0, 0, 0], ANSWER)
    given = {key[2]: float(label.advantage) for key, label in by_entry(batch).items()}
    # V: root 1/4; thread 1 1/2; leaves 1, 0, 0, 0. Both leaves give thread 1 (1/4 + 1/4) / sqrt(2).
    expected = {(0,): 2 * 0.5 / np.sqrt(2), (1,): 0.75 + 0.5, (2,): -0.25 - 0.5, (3,): -0.5, (4,): -0.5}
    assert given == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="estimator.tree is 'treepo' and groups.each 'transcript'"):
        whole(NAMED["treepo"], [beams()], [1])
    with pytest.raises(ValueError, match="estimator.ratio is 'trajectory'; trajectories 0 and 1 share sampled tokens"):
        whole(NAMED["gspo"], [beams()], [1, 0, 0, 0], ANSWER)


def test_a_sample_alone_numbers_its_threads_anew():
    """Thread 3 goes on from thread 2; thread 1 is another sample, which alone becomes the root."""
    threads = [((), -1, -1, Stop.END, [F, F])]
    threads += [((i,), 0, 2 * (i == 2) or -1, Stop.END, [F, S, S]) for i in range(3)]
    made = record(3, 0, threads, {(1, 0), (2, 0), (3, 0), (3, 2)})
    found = gather([dataclasses.replace(made, own={"mark": np.arange(4)})], DRAWN, ANSWER)
    alone = [found.alone(number) for number in range(2)]
    assert [[thread.follows for thread in each.threads] for each in alone] == [[-1], [-1, -1, 1]]
    assert [each.own["mark"].tolist() for each in alone] == [[1], [0, 2, 3]]
    (root,), log = alone[0].threads, alone[0].log
    assert (root.path, root.parent, alone[0].sees.tolist(), alone[0].peak_context) == ((), -1, [[True]], 4)
    assert (log.thread.tolist(), log.index.tolist()) == ([0] * 5, [0, 1, 2, 3, -1])
    assert log.predictor.tolist() == [-1, -1, -1, 2, 3]


def test_what_the_machine_stopped_is_masked_and_counted():
    made = [forking(1, sample) for sample in range(3)] + [forking(1, 3, Stop.POOL_FULL)]
    found, batch = whole(NAMED["p_grpo"], made, [1, 0, 0])
    assert found.masked == {"pool_full": 1} and batch.counts.masked == 1
    assert {key[1] for key in by_entry(batch)} == {0, 1, 2}
    advantage = {key[1]: float(label.advantage) for key, label in by_entry(batch).items()}
    assert advantage == pytest.approx({0: 2 / 3, 1: -1 / 3, 2: -1 / 3}), "it is not in the baseline either"
    message = r"groups.masked is 0.01; the machine stopped 1 of 4 samples \(1 pool_full\): raise sizes.slots"
    with pytest.raises(ValueError, match=message):
        gather(made, DRAWN, dataclasses.replace(SMALL, masked=0.01))
    for stop in (Stop.LOG_FULL, Stop.THREADS_FULL, Stop.MESSAGES_FULL, Stop.LANES_FULL):
        assert not gather([forking(1, 0, stop)], DRAWN, dataclasses.replace(SMALL, masked=1.0)).trajectories


def test_one_full_pool_spares_the_answers_that_had_ended():
    made = answers(count=4, ends=[Stop.END, Stop.POOL_FULL, Stop.LENGTH, Stop.KILLED], stop=Stop.POOL_FULL)
    found, batch = whole(NAMED["p_grpo"], [made], [1, 0], dataclasses.replace(ANSWER, share_from=1))
    assert [each.answer for each in found.trajectories] == [1, 3] and found.masked == {"pool_full": 2}
    assert {key[2] for key in by_entry(batch)} == {(0,), (2,)}
    first = gather([answers(count=2, ends=[Stop.END, Stop.KILLED])], DRAWN, ANSWER)
    assert len(first.trajectories) == 2, "what a decision killed stays: never winners only"


def test_groups_of_one_reward_are_counted_and_not_packed():
    made = [forking(problem, sample) for problem in range(2) for sample in range(2)]
    _, batch = whole(NAMED["dapo"], made, [1, 0, 1, 1])
    assert (batch.counts.groups, batch.counts.silent_groups) == (2, 1)
    assert {key[0] for key in by_entry(batch)} == {0}
    assert batch.counts.silent_labels == batch.counts.labels / 2 and batch.denominator == batch.counts.labels
    _, kept = whole(dataclasses.replace(NAMED["dapo"], entropy=0.01), made, [1, 0, 1, 1])
    assert {key[0] for key in by_entry(kept)} == {0, 1} and kept.counts.silent_labels == 0
    assert kept.denominator == batch.denominator
    _, nothing = whole(NAMED["dapo"], made, [1, 1, 1, 1])
    assert not nothing.labels.weight.any() and nothing.rows.token.shape == (6, 24)


def test_what_finds_no_room_is_an_error_above_a_share():
    made = [forking(problem, sample) for problem in range(3) for sample in range(2)]
    tight = dataclasses.replace(SMALL, rows=2, left_out=0.1)
    message = r"groups.left_out is 0.1; .* of 48 labels find no room in 2 rows of 24 entries and 12 threads"
    with pytest.raises(ValueError, match=message):
        whole(NAMED["p_grpo"], made, [1, 0] * 3, tight)
    _, batch = whole(NAMED["p_grpo"], made, [1, 0] * 3, dataclasses.replace(tight, left_out=0.9))
    assert batch.counts.packed.no_room > 0 and batch.denominator == batch.counts.labels == 48
    assert batch.counts.packed.left_out == 54 - batch.counts.packed.labels  # 6 of them were rewritten


@pytest.mark.parametrize(
    ("sampling", "needs", "message"),
    [
        (Sampling(temperature=0.0), Needs(), "temperature is 0, greedy"),
        (Sampling(temperature=1.0, top_k=40), Needs(), "top_k is 40; .* leave it at 0"),
        (Sampling(temperature=1.0, top_p=0.9), Needs(), "top_p is 0.9; .* leave it at 1.0"),
        (DRAWN, Needs(adjusts=True), "needs.adjusts is True: the protocol bans tokens or penalises them"),
        (DRAWN, Needs(together=4), "needs.together is 4"),
    ],
)
def test_distributions_that_training_does_not_compute_are_refused(sampling, needs, message):
    with pytest.raises(ValueError, match=message):
        groups.refuse(sampling, needs)
    groups.refuse(Sampling(temperature=0.6), Needs(live=True))


def test_transcripts_that_cannot_be_trained_on_are_refused():
    fine = forking(1, 0)
    quieter = dataclasses.replace(fine.log, behaviour_logprob=fine.log.behaviour_logprob * 0.5)
    # Thread 2 was drawn otherwise. What thread 3 would have been drawn with does not matter: it says nothing.
    threads = [*forking_threads(), ((2,), 0, -1, Stop.DROPPED, [F])]
    other = {"temperature": np.float32([1, 1, 0.5, 9]), "top_k": np.zeros(4, int), "top_p": np.ones(4, np.float32)}
    mixed = dataclasses.replace(record(1, 0, threads), sampling=other)
    cases = {
        r"thread \(1,\) was drawn with temperature 0.5, and sampling.temperature is 1": [mixed],
        "the version of the parameters that drew it is not known": [dataclasses.replace(fine, version=None)],
        "Outlined changed the logits": [dataclasses.replace(fine, adjusts={"protocol": "Outlined", "penalty": 1.02})],
        "two are sample 0 of problem 1": [fine, fine],
        "its threads ran together": [dataclasses.replace(fine, together=True)],
        "it was cut off while it ran": [dataclasses.replace(fine, stop=Stop.RUNNING)],
        "they differ if it was drawn with truncation": [dataclasses.replace(fine, log=quieter)],
    }
    for message, made in cases.items():
        with pytest.raises(ValueError, match=message):
            gather(made, DRAWN, SMALL)
    with pytest.raises(FloatingPointError, match="problem 1, sample 0: the model gave NaN"):
        gather([dataclasses.replace(fine, stop=Stop.NOT_FINITE)], DRAWN, SMALL)
    with pytest.raises(ValueError, match="its root generates tokens"):
        gather([fine], DRAWN, ANSWER)
    even = dataclasses.replace(mixed, sampling=other | {"temperature": np.float32([1, 1, 1, 9])})
    assert len(gather([even], DRAWN, SMALL).trajectories) == 1
    assert gather([dataclasses.replace(fine, log=quieter)], Sampling(temperature=0.7), SMALL).temperature == 0.7


CONFIG = ModelConfig(vocabulary=30, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16)


def causal(q, k, v, cache):
    return masked_attention(q, k, v, jnp.tril(jnp.ones((1, q.shape[1], q.shape[1]), bool))), cache


def test_the_gradient_is_that_of_one_sequence_after_the_other():
    """Beams and samples, packed, against a plain causal forward pass over each prompt and answer, the sums written out."""
    model = transformer.init(CONFIG, jax.random.key(0))
    bonus, temperature = 0.05, 0.8
    estimator = Estimator(mean="trajectories", entropy=bonus, engine_cap=1.0)
    found = gather([beams(3), answers(7)], Sampling(temperature=temperature), ANSWER)
    credit = advantages(estimator, np.array([1, 0, 0, 0, 0.5, 0, 1]), found.group)
    lengths = [5, 3, 4, 1, 3, 4, 5]

    @jax.jit
    def packed(params, rows, labels, total):
        scores = score(model.graph, params, rows, labels.temperature, chunk=16)
        return loss(estimator, scores.logprob, scores.entropy, labels, total)[0]

    def plain(params):
        total = 0.0
        for number, each in enumerate(found.trajectories):
            log = found.transcripts[each.transcript].log
            fed = np.flatnonzero(each.threads[log.thread] & (log.index >= 0))
            tokens, positions = (jnp.array(field[fed])[None] for field in (log.token, log.position))
            x, _ = transformer.hidden(model.graph, params, tokens, positions, causal, (None,))
            logprobs = jax.nn.log_softmax(transformer.logits(model.graph, params, x)[0] / temperature)
            for entry in np.flatnonzero(each.threads[log.thread] & (log.source == S)):
                row = logprobs[np.flatnonzero(fed == log.predictor[entry])[0]]
                new = row[log.token[entry]]
                fixed = jax.lax.stop_gradient(new)
                gain = jnp.exp(new - fixed) * jnp.exp(fixed) * credit[number, 0]  # the factor is pi_old / 1
                # Entropy counts once, with the mean of the weights, where trajectories 0 and 1 share a token.
                once = (1 / 5 + 1 / 3) / 4 if number < 2 and log.thread[entry] == 1 else 1 / lengths[number]
                total -= gain / lengths[number] - bonus * once * (jnp.exp(row) * row).sum()
        return total / len(lengths)

    b, db = jax.jit(jax.value_and_grad(plain))(model.params)
    for share_from in (64, 1):
        config = dataclasses.replace(ANSWER, share_from=share_from)
        batch = batches.pack(found, credit, estimator, config)
        assert len(batch.transcripts) == (6 if share_from == 64 else 2)
        labels = dataclasses.replace(batch.labels, engine=np.zeros_like(batch.labels.engine))
        a, da = jax.value_and_grad(packed)(model.params, batch.rows, labels, batch.denominator)
        np.testing.assert_allclose(a, b, rtol=1e-5)
        for x, y in zip(jax.tree.leaves(da), jax.tree.leaves(db), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-6)
