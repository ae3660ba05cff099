"""Random traces of both demonstrators, for property tests."""

import random

from hypothesis import strategies as st

from apr_jax.tasks.countdown import problems, search
from apr_jax.tasks.countdown.problems import PRESETS
from apr_jax.tasks.countdown.search import SearchConfig

METHODS = {"apr": search.apr, "sos": search.sos}


@st.composite
def traces(draw, methods=("apr", "sos")):
    """A problem, the method and its trace."""
    method = draw(st.sampled_from(methods))
    setting = PRESETS[draw(st.sampled_from(sorted(PRESETS)))]
    seed = draw(st.integers(0, 10**6))
    beam, sub_beam = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    config = SearchConfig(
        beam, sub_beam, draw(st.sampled_from((0.0, 0.5, 1.0))), draw(st.sampled_from(("shuffled", "canonical")))
    )
    problem = problems.generate(setting, seed, "train", 0)
    return problem, method, METHODS[method](problem, config, random.Random(seed)), config
