"""Measures: what they are and which direction is better."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from whence.errors import InputError, UnknownNameError
from whence.task import MEASURES, CallableLoss, CrossEntropy, Measure, Pick, Task
from whence.task.measures import Margin
from whence.testing.problems import classifier, mlp

ROUNDING = {"rtol": 1e-10, "atol": 1e-12}
BETTER_WHEN_LOWER = {"loss": True, "log_probability": False, "margin": False, "logit": False}


def expected(name, z, y):
    log_p = F.log_softmax(z, 1).gather(1, y[:, None])[:, 0]
    return {
        "loss": -log_p,
        "log_probability": log_p,
        "margin": log_p - torch.log1p(-log_p.exp()),
        "logit": z.gather(1, y[:, None])[:, 0],
    }[name]


def test_every_measure_is_tested():
    assert BETTER_WHEN_LOWER.keys() == MEASURES.keys()


@pytest.mark.parametrize("name", MEASURES)
def test_values_and_orientation(name):
    problem = classifier(measure=name)
    batch = problem.queries.all()
    z = problem.task.outputs(problem.task.model, batch).detach()
    measure = problem.task.measure
    assert_close(measure(z, batch), expected(name, z, batch[1]), **ROUNDING)
    assert (measure.name, measure.lower_is_better) == (name, BETTER_WHEN_LOWER[name])
    assert measure.orientation == (1 if BETTER_WHEN_LOWER[name] else -1)


@pytest.mark.parametrize("name", MEASURES)
def test_orientation_agrees_with_what_is_better(name):
    """Raising the true logit makes every query better: the oriented measure must fall."""
    problem = classifier(measure=name)
    batch = problem.queries.all()
    z = problem.task.outputs(problem.task.model, batch).detach()
    better = z + F.one_hot(batch[1], 3)
    measure = problem.task.measure
    assert bool((measure.orientation * (measure(better, batch) - measure(z, batch)) < 0).all())


@pytest.mark.parametrize("lower, orientation", [(True, 1), (False, -1)])
def test_a_callable_measure_has_the_direction_it_was_given(lower, orientation):
    def largest(outputs, batch):
        return outputs.amax(1)

    task = Task.regression(mlp(3, 2), measure=largest, lower_is_better=lower)
    assert (task.measure.name, task.measure.orientation) == ("largest", orientation)
    assert_close(task.measure(torch.tensor([[1.0, 3.0]]), None), torch.tensor([3.0]))


def test_a_measure_object_is_taken_as_it_is():
    measure = Margin(Pick(1))
    assert isinstance(measure, Measure)
    assert Task.classification(mlp(3, 3), measure=measure).measure is measure


def test_a_callable_measure_without_direction_is_refused():
    with pytest.raises(InputError, match="`lower_is_better=True` or `False`"):
        Task.regression(mlp(3, 2), measure=lambda outputs, batch: outputs.sum(1))


@pytest.mark.parametrize("measure", ["margin", Margin(Pick(1))])
def test_a_direction_beside_a_measure_that_has_one_is_refused(measure):
    with pytest.raises(InputError, match="fixed for the measure 'margin'"):
        Task.classification(mlp(3, 3), measure=measure, lower_is_better=True)


@pytest.mark.parametrize("name", sorted(MEASURES.keys() - {"loss"}))
def test_measures_of_classifiers_are_refused_for_regression(name):
    with pytest.raises(InputError, match=f"'{name}' needs class labels and cross-entropy.*'mse'"):
        Task.regression(mlp(3, 2), measure=name)


def test_a_measure_of_classifiers_needs_a_target():
    with pytest.raises(InputError, match="'margin' needs class labels"):
        Task(mlp(3, 3), outputs=lambda m, b: m(b[0]), loss=CrossEntropy(Pick(1)), measure="margin")


def test_an_unknown_measure_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'margin'"):
        Task.classification(mlp(3, 3), measure="margins")


def test_a_loss_that_knows_its_hessian_takes_no_other():
    with pytest.raises(InputError, match="'cross_entropy' knows its own Hessian"):
        Task(mlp(3, 3), outputs=lambda m, b: m(b[0]), loss=CrossEntropy(Pick(1)), output_hessian=lambda o, b: o)
    own = Task(mlp(3, 3), outputs=lambda m, b: m(b[0]), loss=lambda o, b: o.sum(1), output_hessian=lambda o, b: o)
    assert isinstance(own.loss, CallableLoss)
    assert own.loss.has_hessian
