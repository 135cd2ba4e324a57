"""Relative influence and the table of groups against dense sums."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from whence import Examples, Inputs, Task, attribute
from whence.errors import InputError, ShapeError
from whence.gradients import loss_gradients
from whence.task import GroupWeights
from whence.weights import (
    ContributionStream,
    contributions,
    gradient_norms,
    gradient_shards,
    group_table,
    learn_weights,
    norms_with,
    relative_to_norms,
)

F64 = torch.float64


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double().eval()
    x, y = torch.randn(30, 4, dtype=F64), torch.arange(30) % 3
    return Task.classification(model), Examples((x[:22], y[:22])), Examples((x[22:], y[22:]))


def norms_by_autograd(task, examples):
    found = []
    for i in range(len(examples)):
        batch = examples.batch([i])
        loss = task.loss(task.outputs(task.model, batch), batch).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, task.model.parameters())]).norm())
    return torch.stack(found)


def test_relative_scores_are_those_of_gradients_of_norm_one(problem):
    task, train, queries = problem
    norms = gradient_norms(task, train)
    assert_close(norms, norms_by_autograd(task, train))
    whole = replace(contributions(task, train, queries), unit="nats")
    found = relative_to_norms(whole, norms)
    assert_close(found.values, whole.values / norms[None, :, None])
    # Grad-Cos divides by the norm of the query as well, which no ranking sees.
    cosines = torch.as_tensor(attribute(task, train, queries, method="grad_cos").values)
    own = norms_by_autograd(task, queries)
    assert_close(torch.as_tensor(found.scores().values) / own[:, None], cosines)
    assert (found.unit, found.provenance["relative"]) == (None, True)
    assert (found.groups, found.train_ids, found.orientation) == (whole.groups, whole.train_ids, whole.orientation)


def moved(task, factor):
    """A checkpoint of the task's model."""
    return {name: factor * value for name, value in task.model.state_dict().items()}


def at_state(task, state):
    """The task with another state of its model."""
    model = copy.deepcopy(task.model)
    model.load_state_dict(state)
    return task.with_model(model)


@pytest.mark.parametrize("rates", [0.3, (0.3, 0.02, 0.1)], ids=["one rate", "three rates"])
def test_norms_at_checkpoints_are_those_of_all_their_gradients_in_one_row(problem, rates):
    task, train, queries = problem
    checkpoints = [moved(task, factor) for factor in (0.2, 3.0, 1.0)]
    each = [rates] * 3 if isinstance(rates, float) else rates
    rows = [
        rate**0.5 * torch.cat([g.double() for _, g in loss_gradients(at_state(task, state), train)])
        for rate, state in zip(each, checkpoints, strict=True)
    ]
    found = gradient_norms(task, train, checkpoints=checkpoints, learning_rates=rates)
    assert_close(found, torch.cat(rows, 1).norm(dim=1))
    # Products of these rows are the scores of TracIn, an example's with itself the square of its norm.
    options = {"checkpoints": checkpoints, "learning_rates": rates}
    own = torch.as_tensor(attribute(task, train, train, method="tracin", **options).values).diagonal()
    assert_close(own, found.square())
    assert_close(norms_with(Inputs(task, train, queries), {**options, "damping": 3}), found)


def test_norms_without_checkpoints_are_those_of_the_final_model(problem):
    task, train, queries = problem
    norms = gradient_norms(task, train)
    assert_close(norms_with(Inputs(task, train, queries), {"dim": 4}), norms)
    state = task.model.state_dict()
    assert_close(gradient_norms(task, train, checkpoints=[state], learning_rates=0.25), norms / 2)


def test_norms_refuse_what_tracin_refuses(problem):
    task, train, _ = problem
    state = task.model.state_dict()
    with pytest.raises(InputError, match="one number, or one for each of 2"):
        gradient_norms(task, train, checkpoints=[state, state], learning_rates=[0.1])
    with pytest.raises(InputError, match="one at least"):
        gradient_norms(task, train, checkpoints=[])


def test_groups_are_divided_by_the_norm_of_the_whole(problem):
    task, train, queries = problem
    whole = contributions(task, train, queries)
    found = relative_to_norms(whole, gradient_norms(task, train))
    shares = whole.values / whole.values.sum(2, keepdim=True)
    assert_close(found.values / found.values.sum(2, keepdim=True), shares)
    assert not torch.allclose(learn_weights(found, k=3).values, learn_weights(whole, k=3).values)


def test_streams_are_divided_alike(problem):
    task, train, queries = problem
    whole, norms = contributions(task, train, queries), gradient_norms(task, train)
    expected = relative_to_norms(whole, norms)
    stream = relative_to_norms(ContributionStream.of(whole, 5), norms)
    found = stream.collect()
    assert_close(found.values, expected.values, rtol=0, atol=0)
    assert found.provenance == expected.provenance
    assert_close(learn_weights(stream, k=3).values, learn_weights(expected, k=3).values)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_norms_of_shards_are_those_of_gradients(problem, tmp_path, dtype):
    task, train, _ = problem
    shards = gradient_shards(task, train, tmp_path / "g", dim=100, dtype=dtype)
    digits = {"float32": 1e-6, "float16": 1e-3}[dtype]
    assert_close(shards.norms(), gradient_norms(task, train), rtol=digits, atol=0)


def test_an_example_without_gradient_contributes_nothing(problem):
    whole = contributions(*problem)
    norms = torch.ones(22, dtype=F64)
    norms[3] = 0
    found = relative_to_norms(whole, norms)
    assert not bool(found.values[:, 3].any())
    assert_close(found.values[:, 4:], whole.values[:, 4:])


def test_norms_that_are_none_are_refused(problem):
    whole = contributions(*problem)
    with pytest.raises(ShapeError, match=r"\(n_train,\) = \(22,\); got \(21,\)"):
        relative_to_norms(whole, torch.ones(21))
    for bad in (-1.0, float("nan"), float("inf")):
        norms = torch.ones(22, dtype=F64)
        norms[5] = bad
        with pytest.raises(InputError, match="train example 5"):
            relative_to_norms(whole, norms)


@pytest.mark.parametrize("block", [None, 5, 22])
def test_the_table_of_groups_by_hand(problem, block):
    whole = contributions(*problem)
    weights = GroupWeights(torch.tensor([0.0, 2.0, 1.0, 1.0]), whole.groups, "given")
    found = group_table(whole if block is None else ContributionStream.of(whole, block), weights)
    centered = whole.values - whole.values.mean(1, keepdim=True)
    energy = torch.einsum("qij,qij->j", centered, centered)
    weighted = torch.einsum("qij,qij->j", centered * weights.values, centered * weights.values)
    assert list(found["group"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(found["parameters"]) == pytest.approx([24 / 51, 6 / 51, 18 / 51, 3 / 51])
    assert list(found["energy"]) == pytest.approx((energy / energy.sum()).tolist())
    assert list(found["weight"]) == [0.0, 2.0, 1.0, 1.0]
    assert list(found["weighted_energy"]) == pytest.approx((weighted / weighted.sum()).tolist())
    assert list(group_table(whole).columns) == ["group", "parameters", "energy"]


def test_a_table_without_sense_is_refused(problem):
    task, train, queries = problem
    whole = contributions(task, train, queries)
    other = GroupWeights.uniform(contributions(task, train, queries, groups="module").groups)
    with pytest.raises(InputError, match="other groups"):
        group_table(whole, other)
    constant = relative_to_norms(whole, torch.zeros(22))
    with pytest.raises(InputError, match="No group contributes"):
        group_table(constant)
