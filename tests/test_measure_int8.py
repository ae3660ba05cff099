"""The numbers of `experiments.measure_int8`, on a small random model, against NumPy."""

import dataclasses

import jax
import numpy as np
import pytest

import reference_model
from apr_jax.model import transformer
from experiments import measure_int8
from experiments.measure_int8 import MeasureInt8, Variant
from test_int8 import CONFIG, PROMPTS, model_of, plain_rounded_params

TEXTS = [PROMPTS[0], PROMPTS[2]]


def test_losses_are_those_of_plain_forward_passes():
    wide, narrow = (dataclasses.replace(CONFIG, dtype=d, param_dtype=d) for d in ("float32", "bfloat16"))
    cast = lambda config: transformer.Model(
        transformer.graph_of(config), jax.tree.map(lambda x: x.astype(config.dtype), model_of(CONFIG).params)
    )
    model = cast(wide)
    int8 = transformer.quantise(model)
    mixed = dataclasses.replace(narrow, int8_weights=True)
    known = {
        ("float32", False): model,
        ("bfloat16", False): cast(narrow),
        ("float32", True): int8,
        ("bfloat16", True): transformer.Model(transformer.graph_of(mixed), int8.params),
    }
    found = measure_int8.accuracy(known, TEXTS, lambda line: None)
    assert len(found) == 8 and found["float32"]["divergence"] == 0 and found["float32"]["same_best"] == 1

    def plain(params, text):
        tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        logits = reference_model.all_logits(tree, CONFIG, text, np.arange(len(text)))[:-1]
        return np.stack([reference_model.log_softmax(row) for row in logits])

    pairs = [(plain(model.params, t), plain(plain_rounded_params(model.params), t), t) for t in TEXTS]
    places = sum(len(t) - 1 for t in TEXTS)
    divergence = sum(np.sum(np.exp(a) * (a - b)) for a, b, _ in pairs) / places
    text = sum(b[np.arange(len(t) - 1), t[1:]].sum() for _, b, t in pairs)
    same = sum((a.argmax(1) == b.argmax(1)).sum() for a, b, _ in pairs) / places
    weights = found[str(Variant("float32", True))]
    assert divergence > 1e-6
    np.testing.assert_allclose(weights["divergence"], divergence, rtol=1e-2)
    np.testing.assert_allclose(weights["perplexity"], np.exp(-text / places), rtol=1e-4)
    assert weights["same_best"] == same
    for name, lost in found.items():
        assert (0 < lost["divergence"] < 1) == (name != "float32"), (name, lost)
    assert found[str(Variant("float32", False, True))]["divergence"] != weights["divergence"]


@pytest.mark.parametrize(("name", "value"), [("questions", 0), ("new", 0), ("prompt", 1), ("steps", 0), ("turns", -1)])
def test_wrong_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"--{name} {value}: at least"):
        MeasureInt8(**{name: value})


def test_a_model_that_is_missing_is_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        measure_int8.main(["--path", "nowhere.gguf"])
    assert stopped.value.code == 2 and "nowhere.gguf" in capsys.readouterr().err
