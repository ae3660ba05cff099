"""The scorer: a signal on hidden states whose weights are an argument of the compiled program, and its file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import allocating
from apr_jax.decode import Engine
from apr_jax.decode.needs import Needs
from apr_jax.decode.signals import BestMean, Scorer
from apr_jax.model import io, scorer
from apr_jax.protocols import Sequential
from test_engine import CONFIG, SIZES

WEIGHTS, HIDDEN = allocating.WEIGHTS, allocating.HIDDEN
OTHERS = scorer.create(3, CONFIG.width, HIDDEN)


@dataclasses.dataclass(frozen=True)
class Reading(Sequential):
    """Keeps the last two chances, and how sure the model was."""

    needs = Needs(signals=(BestMean(2), Scorer(HIDDEN)), recorded=True)

    def own_state(self):
        return jnp.zeros(3)

    def observe(self, shared, own, drawn):
        _, token, event = super().observe(shared, own, drawn)
        return jnp.array([own[1], drawn.signals[1], drawn.signals[0]]), token, event


@pytest.fixture(scope="module")
def engine():
    return Engine(allocating.model("float64"), Reading(allocating.END), SIZES["scarce rows"], scorer=WEIGHTS)


def test_the_signal_is_read_off_the_state_after_the_token_that_the_row_was_fed(engine):
    """With weights that are changed between two runs of one compiled program."""
    checked = 0
    for weights in (WEIGHTS, OTHERS):
        engine.set_scorer(weights)
        for found in engine.decode(allocating.problems()[:12], seed=allocating.SEED):
            prompt = tuple(allocating.problems()[found.problem].prompt.tolist())
            text = (*prompt, *found.generated(0).tolist())
            for place, told in zip((-2, -1), found.own[""][0][:2], strict=True):
                if len(text) - len(prompt) >= -place:
                    state = allocating.state_after(text[:place])
                    right = jax.nn.sigmoid(scorer.logit(weights, jnp.asarray(state)))
                    assert told == pytest.approx(float(right), abs=1e-6)
                    checked += 1
            logprobs = np.sort(allocating.reference_model.log_softmax(allocating.logits_after(text[:-1])))
            assert found.own[""][0][2] == pytest.approx(-logprobs[-2:].mean(), abs=1e-6)
    assert engine.traces == 1 and checked > 40


def test_weights_that_do_not_fit_are_refused(engine):
    with pytest.raises(ValueError, match=r"scorer has the tensors .*; for this model and protocol they must be"):
        engine.set_scorer(scorer.create(0, CONFIG.width, HIDDEN + 1))
    with pytest.raises(ValueError, match="scorer is missing; Reading reads a scorer, give its weights"):
        Engine(allocating.model("float64"), Reading(allocating.END), SIZES["scarce rows"])
    with pytest.raises(ValueError, match="scorer is given; Sequential reads no scorer, leave it out"):
        Engine(allocating.model("float64"), Sequential(allocating.END), SIZES["scarce rows"], scorer=WEIGHTS)
    with pytest.raises(ValueError, match=r"scorer.hidden is 0; at least 1 unit"):
        Scorer(0)

    class Two(Reading):
        needs = Needs(signals=(Scorer(2), Scorer(3)))

    with pytest.raises(ValueError, match=r"needs.signals has 2 scorers; an engine has the weights of one"):
        Engine(allocating.model("float64"), Two(allocating.END), SIZES["scarce rows"], scorer=WEIGHTS)


def test_files(tmp_path):
    scorer.save(tmp_path / "scorer.safetensors", WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, scorer.load(tmp_path / "scorer.safetensors"), WEIGHTS)
    io.save(tmp_path / "model.safetensors", allocating.model("float64"), allocating.model("float64").config)
    with pytest.raises(ValueError, match="has format 'apr_jax model 1'; this version reads 'apr_jax scorer 1'"):
        scorer.load(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="no model file at"):
        scorer.load(tmp_path / "nothing.safetensors")
    small = scorer.create(1, 4, 3)
    assert {name: leaf.shape for name, leaf in io.flatten(small).items()} == {
        name: leaf.shape for name, leaf in io.flatten(scorer.abstract(4, 3)).items()
    }
