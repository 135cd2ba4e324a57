"""Damping and Steps: what they accept, how they are written down, what they refuse."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.algebra import Damping, Steps
from whence.errors import ConfigError, InputError, NumericalError

positive = st.floats(1e-12, 1e12)


@pytest.mark.parametrize("make", [Damping.absolute, Damping.relative, Damping.mean_square_gradient])
@given(value=positive)
def test_damping_survives_json(make, value):
    damping = make(value)
    assert Damping.from_dict(json.loads(json.dumps(damping.to_dict()))) == damping


def test_damping_resolves_in_its_unit():
    statistics = {"mean_eigenvalue": 4.0, "mean_square_gradient": 10.0}
    assert Damping.absolute(0.5).resolve() == 0.5
    assert Damping.absolute(0.5).resolve(**statistics) == 0.5
    assert Damping.relative(0.5).resolve(**statistics) == 2.0
    assert Damping.mean_square_gradient(0.5).resolve(**statistics) == 5.0


def test_damping_reads_well():
    assert str(Damping.absolute(0.001)) == "0.001"
    assert str(Damping.relative(0.1)) == "0.1 x mean eigenvalue"
    assert str(Damping.mean_square_gradient(1000)) == "1000 x mean squared gradient"


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_damping_refuses_what_cannot_damp(value):
    with pytest.raises(InputError, match="positive finite"):
        Damping.relative(value)


def test_damping_names_the_missing_statistic():
    with pytest.raises(InputError, match="needs `mean_eigenvalue`"):
        Damping.relative(0.1).resolve(mean_square_gradient=1.0)
    with pytest.raises(InputError, match="needs `mean_square_gradient`"):
        Damping.mean_square_gradient(0.1).resolve(mean_eigenvalue=1.0)


@pytest.mark.parametrize("found", [0.0, -2.0, float("nan"), float("inf")])
def test_damping_refuses_a_useless_statistic(found):
    with pytest.raises(NumericalError, match="positive finite `mean_eigenvalue`"):
        Damping.relative(0.1).resolve(mean_eigenvalue=found)


@pytest.mark.parametrize(
    "settings", [{}, {"value": 1.0}, {"value": "1", "unit": "absolute"}, {"value": 1.0, "unit": "furlong"}]
)
def test_damping_refuses_foreign_settings(settings):
    with pytest.raises(ConfigError, match="A damping is"):
        Damping.from_dict(settings)


def test_damping_refuses_an_unknown_unit():
    with pytest.raises(InputError, match="`unit` must be one of"):
        Damping(1.0, "furlong")


@given(
    lr=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=5),
    momentum=st.floats(0.1, 0.9),
    nesterov=st.booleans(),
    weight_decay=st.floats(0, 1),
)
def test_steps_survive_json(lr, momentum, nesterov, weight_decay):
    steps = Steps(tuple(lr), momentum, nesterov, weight_decay)
    assert Steps.from_dict(json.loads(json.dumps(steps.to_dict()))) == steps


def test_steps_facts():
    steps = Steps((0.1, 0.2, 0.4), momentum=0.5, weight_decay=0.01)
    assert (steps.n_steps, steps.max_lr, steps.constant) == (3, 0.4, False)
    assert steps.time == pytest.approx(1.4)
    assert steps.first(2) == Steps((0.1, 0.2), momentum=0.5, weight_decay=0.01)
    assert Steps.of(0.1, 3, weight_decay=0.1).constant
    assert not Steps.of(0.1, 3, momentum=0.1).constant
    assert Steps.of(0.1, 7).to_dict()["n_steps"] == 7
    assert Steps([0.1, 0.2]).lr == (0.1, 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": ()}, "got none"),
        ({"lr": (0.1, -0.1)}, "got -0.1"),
        ({"lr": (0.1, float("nan"))}, "got nan"),
        ({"lr": (0.0, 0.0)}, "only zeros"),
        ({"lr": (0.1,), "momentum": 1.0}, "`momentum` must be in"),
        ({"lr": (0.1,), "nesterov": True}, "needs a positive `momentum`"),
        ({"lr": (0.1,), "weight_decay": -1.0}, "`weight_decay` must be"),
    ],
)
def test_steps_refuse(arguments, message):
    with pytest.raises(InputError, match=message):
        Steps(**arguments)


def test_steps_refuse_more_than_the_run_has():
    with pytest.raises(InputError, match="at most the 3 steps"):
        Steps.of(0.1, 3).first(4)
    with pytest.raises(InputError, match="at least 1"):
        Steps.of(0.1, 3).first(0)
    with pytest.raises(InputError, match="`n_steps`"):
        Steps.of(0.1, 0)


@pytest.mark.parametrize("settings", [{"n_steps": 3}, {"lr": 0.1}, {"lr": 0.1, "n_steps": 2, "speed": 1}])
def test_steps_refuse_foreign_settings(settings):
    with pytest.raises(ConfigError):
        Steps.from_dict(settings)
