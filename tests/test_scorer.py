"""The scorer: weights that do not fit, and its file. What it reads is tested with the methods that it serves."""

import dataclasses

import jax
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


@dataclasses.dataclass(frozen=True)
class Reading(Sequential):
    """One thread that has a scorer."""

    needs = Needs(signals=(BestMean(2), Scorer(HIDDEN)))


def test_weights_that_do_not_fit_are_refused():
    engine = Engine(allocating.model("float64"), Reading(allocating.END), SIZES["scarce rows"], scorer=WEIGHTS)
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
