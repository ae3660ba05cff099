"""Random programs have no finding in the simulator of the rules, and without a rule they soon do; `make simulate` runs more."""

import pytest
import rich.console

from simulate import SimulateConfig, simulate

QUIET = rich.console.Console(quiet=True)


def test_random_programs_have_no_finding():
    outcome = simulate(SimulateConfig(programs=120), QUIET)
    assert outcome.run > 60 and not outcome.found


@pytest.mark.parametrize("number", [28972, 43440, 45070, 77300, 85142])
def test_programs_that_once_had_a_finding_have_none(number):
    outcome = simulate(SimulateConfig(first=number, programs=1), QUIET)
    assert outcome.run == 1 and not outcome.found


@pytest.mark.parametrize("rule", ["goes on", "waited only", "ends last", "kill below"])
def test_without_a_rule_there_is_a_counterexample(rule):
    config = SimulateConfig(programs=300, without=(rule,), stop=1, seconds=0)
    assert len(simulate(config, QUIET).found) == 1
