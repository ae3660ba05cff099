"""RoPE scaling in `config.json`: its forms, what may be left out, and what may not."""

import json

import numpy as np
import pytest

from apr_jax.model.config import ModelConfig
from apr_jax.model.rope import RopeScaling, frequencies
from apr_jax.pretrained import configuration
from test_pretrained import CONFIG, SCALINGS


def test_both_forms_of_rope_in_config_json():
    base = configuration.to_hf(CONFIG, 64) | {"max_position_embeddings": 32}
    for scaling in SCALINGS.values():
        old = configuration.from_hf(base | {"rope_theta": 5e5, "rope_scaling": scaling}, "old")
        new = configuration.from_hf(base | {"rope_parameters": {"rope_theta": 5e5, **scaling}}, "new")
        assert old == new and old.rope.kind == scaling["rope_type"] and old.rope_theta == 5e5
        assert configuration.from_hf(configuration.to_hf(old, 64), "again") == old
    yarn = configuration.from_hf(base | {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "no length")
    assert yarn.rope == RopeScaling("yarn", 2.0, 32)
    assert ModelConfig.from_dict(json.loads(json.dumps(old.to_dict()))) == old


YARN = {"rope_type": "yarn", "original_max_position_embeddings": 16}
LLAMA3 = SCALINGS["llama3"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, "'linear' is {}; factor must be given"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' is {}; factor must be given"),
        ({"rope_scaling": LLAMA3 | {"factor": None}}, "'llama3' is .*; factor must be given"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "; low_freq_factor must be given"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": None}}, "'yarn' is .*; factor must be given"),
        ({"rope_scaling": {"factor": 4.0}}, "{'factor': 4.0} without a rope_type"),
        ({"rope_parameters": {"full_attention": SCALINGS["linear"]}}, "without a rope_type"),
        ({"rope_scaling": YARN | {"factor": 4.0, "attention_factor": 0.0}}, "attention_factor 0"),
        ({"rope_scaling": SCALINGS["linear"], "rope_parameters": {"rope_type": "default"}}, "the one that is meant"),
    ],
)
def test_a_scaling_that_says_not_how_far_is_refused(fields, message):
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        configuration.from_hf(configuration.to_hf(CONFIG, 64) | fields, "config.json")


@pytest.mark.parametrize(
    "fields",
    [{"rope_scaling": YARN | {"factor": None}}, {"rope_parameters": YARN}]
    + [{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 16}],
)
def test_the_factor_of_yarn_follows_from_the_lengths(fields):
    base = configuration.to_hf(CONFIG, 64)
    assert configuration.from_hf(base | fields, "config.json").rope == RopeScaling("yarn", 4.0, 16)
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    if "rope_parameters" not in fields:  # there, a missing factor is an error, and null what the lengths say
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(base | fields)).model.rotary_emb
        wanted = frequencies(10000.0, 8, RopeScaling("yarn", 4.0, 16))
        np.testing.assert_allclose(theirs.inv_freq.numpy(), wanted, rtol=1e-5)
        assert theirs.attention_scaling == pytest.approx(RopeScaling("yarn", 4.0, 16).magnitude)


def test_frequencies_without_scaling_are_as_they_were():
    plain = 1e6 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_array_equal(frequencies(1e6, 128, RopeScaling()), plain)
    assert RopeScaling().magnitude == 1 and RopeScaling("yarn", 4.0, 16).magnitude == pytest.approx(1.1386294)
