"""Fresh parameters: by each module's own rule, from the seed alone, without a trace elsewhere."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from whence.errors import InputError
from whence.gold import reinitialized, retrain
from whence.task import Task
from whence.testing.problems import PROBLEMS, ScaledNet, TiedNet, mlp_regression
from whence.training import Recipe

EXACTLY = {"rtol": 0, "atol": 0}


def task_of(model):
    return Task.regression(model.double().eval())


def equal(first, second):
    assert first.keys() == second.keys()
    return {name: torch.equal(first[name], second[name]) for name in first}


def test_the_same_seed_repeats_and_others_differ():
    initialize = reinitialized(mlp_regression().task)
    first = initialize(0)
    assert_close(initialize(0), first, **EXACTLY)
    assert not any(equal(initialize(1), first).values())
    assert_close(reinitialized(mlp_regression(seed=5).task)(0), first, **EXACTLY)  # whatever the model was trained to


def test_the_rule_is_that_of_a_fresh_model():
    """`nn.Linear` draws its parameters when it is made: the same stream, module by module."""
    found = reinitialized(mlp_regression().task)(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        fresh = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        again = copy.deepcopy(fresh)
        torch.manual_seed(3)
        for module in (again[0], again[2]):
            module.reset_parameters()
    assert_close(found, again.state_dict(), **EXACTLY)
    bound = {"0.weight": 3**-0.5, "0.bias": 3**-0.5, "2.weight": 5**-0.5, "2.bias": 5**-0.5}
    for name, x in found.items():
        assert 0.3 * bound[name] < float(x.abs().max()) <= bound[name]
        assert x.dtype == torch.float64


def test_global_random_numbers_and_the_model_are_left_alone():
    task = mlp_regression().task
    before = copy.deepcopy(task.model.state_dict())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = reinitialized(task)(7)
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(task.model.state_dict(), before, **EXACTLY)
    torch.manual_seed(123)  # nor do they decide anything
    assert_close(reinitialized(task)(7), first, **EXACTLY)
    for x in first.values():
        x.add_(1.0)  # a state of its own: changing it changes no other
    assert_close(task.model.state_dict(), before, **EXACTLY)


def test_running_statistics_start_again():
    task = PROBLEMS["batch_norm"]().task
    state = reinitialized(task)(0)
    assert state["norm.running_mean"].tolist() == [0.0] * 5
    assert state["norm.running_var"].tolist() == [1.0] * 5
    assert state["norm.weight"].tolist() == [1.0] * 5


def test_tied_weights_stay_tied():
    task = task_of(TiedNet(3))
    state = reinitialized(task)(0)
    assert torch.equal(state["encoder.weight"], state["decoder.weight"])
    assert not torch.equal(state["encoder.weight"], task.model.encoder.weight)


class Scaled(nn.Module):
    """A parameter of its own, without a rule for it."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.scale * self.linear(x)


class Reset(Scaled):
    def reset_parameters(self):
        nn.init.normal_(self.scale)


def test_modules_without_a_rule_are_refused_by_name():
    message = r"cannot be initialised anew: there is no `reset_parameters`. Pass `initialize=`"
    with pytest.raises(InputError, match="^Scaled " + message):
        reinitialized(task_of(Scaled()))
    with pytest.raises(InputError, match=r"^1\.0 " + message):
        reinitialized(task_of(nn.Sequential(nn.Linear(3, 3), nn.Sequential(Scaled()))))
    with pytest.raises(InputError, match=r"^ScaledNet "):
        reinitialized(Task.regression(ScaledNet(3, 2).eval()))


def test_parameters_that_are_not_trained_need_no_rule_and_own_rules_are_used():
    frozen = Scaled()
    frozen.scale.requires_grad_(False)
    assert reinitialized(task_of(frozen))(0)["scale"].tolist() == [1.0, 1.0]
    states = [reinitialized(task_of(Reset()))(seed) for seed in (0, 1)]
    assert not any(equal(*states).values())


def test_each_seed_of_a_retraining_starts_from_its_own_parameters():
    small = mlp_regression()
    recipe = Recipe(lr=1e-300, batch_size=14, epochs=1)  # does not move: what is measured is the start
    initialize = reinitialized(small.task)
    kept = [range(14), range(7)]
    found = retrain(
        small.task, small.train, small.queries, recipe, kept=kept, seeds=[0, 4], initialize=initialize, engine="loop"
    ).measures
    batch = small.queries.all()
    for s, seed in enumerate((0, 4)):
        model = copy.deepcopy(small.task.model)
        model.load_state_dict(initialize(seed))
        wanted = small.task.measure(model(batch[0]), batch).detach()
        # One pass in another batch shape; the step of 1e-300 is lost in the rounding of the parameters.
        assert_close(found[s, 0], wanted.expand(2, -1), rtol=1e-12, atol=1e-14)
