"""What a caller gives is checked before anything is decoded, and named where it is wrong."""

import dataclasses

import jax
import numpy as np
import pytest

from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.decode.problem import check
from apr_jax.decode.program import fit
from apr_jax.model import io, transformer
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import Samples, Sequential, SpawnJoin
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tokenizer import Tokenizer
from benchmarks.scripted import Scripted

SIZES = Sizes(problems=1, lanes=1, rows=1, threads=4, slots=64, log=64, prompt=80, attention_block=64)
GOOD = Problem(id=3, prompt=np.array([1, 2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(temperature=np.nan), "problem 3: temperature is nan"),
        (dict(temperature=np.inf), "problem 3: temperature is inf"),
        (dict(temperature=-0.5), "problem 3: temperature is -0.5"),
        (dict(top_p=np.nan), "problem 3: top_p is nan; it must be above 0"),
        (dict(top_p=1e-50), "top_p is 1e-50"),
        (dict(top_p=0.0), "top_p is 0.0"),
        (dict(top_k=2**31), "problem 3: top_k is 2147483648; it must be a whole number of 0 .. 2147483647"),
        (dict(top_k=-1), "top_k is -1"),
        (dict(top_k=1.5), "top_k is 1.5; it must be a whole number"),
        (dict(max_tokens=2**31), "max_tokens is 2147483648"),
        (dict(max_tokens=0), "max_tokens is 0; it must be a whole number of 1 .."),
        (dict(child_max_tokens=2**40), "child_max_tokens is 1099511627776"),
        (dict(id=2**31), "id is 2147483648; it must be a whole number of -2147483648 .. 2147483647"),
        (dict(sample=-(2**31) - 1), "sample is -2147483649"),
        (dict(prompt=np.array([1.0, 2.0])), "prompt of float64; token ids are whole numbers"),
        (dict(prompt=np.array([], np.int32)), "at least one token id"),
        (dict(prompt=np.array([1, 16])), "token ids 1 .. 16; allowed are 0 .. 15"),
        (dict(prompt=np.ones(81, np.int32)), "sizes.prompt = 80 holds 80"),
        (dict(prompt=np.ones(70, np.int32)), "sizes.slots = 64 holds 64"),
        (dict(prompt=np.ones(64, np.int32)), "sizes.log = 64 holds 63"),
    ],
)
def test_a_problem_is_checked(change, message):
    check(GOOD, 16, SIZES)
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(GOOD, **change), 16, SIZES)


def test_numbers_of_numpy_are_numbers():
    check(Problem(id=np.int64(2), prompt=np.array([1]), top_k=np.int32(3), max_tokens=np.uint8(4)), 16, SIZES)


@pytest.mark.parametrize("seed", [2**32, -1, 0.5])
def test_a_seed_is_checked(seed, unchecked):
    config = ModelConfig(vocabulary=16, width=16, layers=1, heads=1, kv_heads=1, head_dim=16, ffn=16, dtype="float32")
    engine = Engine(transformer.init(config, jax.random.key(0)), Sequential(end=1), SIZES)
    with pytest.raises(ValueError, match="seed is "):
        next(engine.decode([GOOD], seed=seed))


@pytest.mark.parametrize("rows", [1, 3])
def test_the_coldest_temperatures_are_greedy(rows):
    """Divided by 1e-8, what two fusions round differently made the draw: other tokens came, and other ones with other rows."""
    words = Tokenizer.from_file(SHIPPED / "compact.model")
    prompt = np.array(words.encode("<s>27:22,26,31,53<go>"))
    sizes = Sizes(problems=rows, lanes=1, rows=rows, threads=2, slots=512, log=512, queue=8, outbox=8)
    engine = Engine(io.load(SHIPPED / "sos.safetensors"), Sequential(end=words.id("<end>")), sizes)
    temperatures = [0.0, 1e-30, 1e-8, 2e-8, 2e-5, 1e-4]
    problems = [Problem(i, prompt, temperature=t, max_tokens=60) for i, t in enumerate(temperatures)]
    found = {t.problem: t for t in engine.decode(problems)}
    for number, temperature in enumerate(temperatures):
        np.testing.assert_array_equal(found[number].log.token, found[0].log.token, str(temperature))


@pytest.mark.parametrize(
    ("protocol", "sizes", "message"),
    [
        (
            Samples(count=8, end=1),
            dict(threads=4),
            "sizes.threads = 4: Samples opens 9 threads, so at least 9 are needed",
        ),
        (
            Samples(count=8, end=1),
            dict(threads=9, slots=128, page_size=16),
            "sizes.slots = 128: .* at least 144 are needed",
        ),
        (
            Samples(count=8, end=1),
            dict(threads=9, log=128, log_page_size=16),
            "sizes.log = 128: .* at least 144 are needed",
        ),
        (SpawnJoin(2, 3, 4, 5, 6, 7), dict(threads=1), "sizes.threads = 1: SpawnJoin opens 2 threads"),
        (Scripted(most=3), dict(threads=4), "sizes.threads = 4: Scripted opens 5 threads"),
    ],
)
def test_sizes_in_which_a_method_cannot_work_are_refused(protocol, sizes, message):
    """They used to decode, and every problem ended with no answer."""
    with pytest.raises(ValueError, match=message):
        fit(protocol, Sizes(**{"attention_block": 64} | sizes))
