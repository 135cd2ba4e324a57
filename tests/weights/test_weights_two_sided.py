"""The two-sided objective: the lowest scores are signal as well."""

import math

import pytest
import torch
from torch.testing import assert_close

from whence.errors import InputError
from whence.task import ParameterGroups
from whence.weights import Contributions, ContributionStream, learn_weights, self_supervised_loss
from whence.weights import streamed as room
from whence.weights.objective import WeightProblem
from whence.weights.solvers.adamw import gram_loss, score_loss
from whence.weights.streamed import StreamedContributions

F64 = torch.float64
# Sums of some hundred float64 products in another order.
ROUNDED = {"rtol": 1e-10, "atol": 1e-13}


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch):
    """With as many as are usual, all examples of these small sets would be candidates."""
    monkeypatch.setattr(room, "KEPT", 4)
    monkeypatch.setattr(room, "LEAST_KEPT", 2)


def made(values):
    n_query, n_train, n_groups = values.shape
    names = tuple(f"g{j}" for j in range(n_groups))
    groups = ParameterGroups(names, tuple(range(n_groups)), (1,) * n_groups, names)
    return Contributions(values, groups, [f"q{q}" for q in range(n_query)], list(range(n_train)))


def drawn(n_query=8, n_train=120, n_groups=5, seed=0):
    """Heavy tails to both sides, of another size in each group, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(n_query, n_train, 1, generator=generator, dtype=F64) ** 3
    noise = torch.randn(n_query, n_train, n_groups, generator=generator, dtype=F64)
    gains, sizes = torch.linspace(0, 1, n_groups, dtype=F64), torch.logspace(1, -1, n_groups, dtype=F64)
    return (gains * truth + noise) * sizes + 0.5


def ends(scores, k):
    """Positions of the k largest and of the k smallest numbers, found by sorting."""
    order = scores.sort(descending=True).indices
    return order[:k], order[-k:]


def loss_of(weights, values, k, center):
    scores = values @ weights
    scores = scores - scores.mean(1, keepdim=True) * center
    ordered = scores.sort(1).values
    signal = (ordered[:, -k:].mean(1) - ordered[:, :k].mean(1)) / 2
    return float(-(signal / scores.square().sum(1).sqrt()).mean())


def test_the_loss_by_hand():
    scores = torch.tensor([[3.0, 0.0, 4.0, -2.0], [-1.0, 1.0, 1.0, -1.0]], dtype=F64)
    assert_close(self_supervised_loss(scores, 1, two_sided=True)[0], torch.tensor(-3 / math.sqrt(29), dtype=F64))
    # All energy on 2 k scores of one size: the bound -1 / sqrt(2 k).
    assert_close(self_supervised_loss(scores, 2, two_sided=True)[1], torch.tensor(-1 / 2, dtype=F64))
    assert_close(self_supervised_loss(-scores, 1, two_sided=True), self_supervised_loss(scores, 1, two_sided=True))


@pytest.mark.parametrize("center", [True, False])
def test_means_and_losses_by_hand(center):
    values = drawn()
    problem = WeightProblem(values, k=4, center=center, two_sided=True)
    x = torch.tensor([0.1, 0.0, 0.5, 0.3, 0.1], dtype=F64)
    rows = (values - values.mean(1, keepdim=True) * center) * problem.scale
    wanted, crossed = torch.empty(8, 5, dtype=F64), torch.empty(8, 5, dtype=F64)
    for q in range(8):
        first, last = ends(rows[q] @ x, 4)
        wanted[q] = (rows[q, first].mean(0) - rows[q, last].mean(0)) / 2
        for j in range(5):
            others = [o for o in range(5) if o != j]
            first, last = ends(rows[q][:, others] @ x[others], 4)
            crossed[q, j] = (rows[q, first, j].mean() - rows[q, last, j].mean()) / 2
    assert_close(problem.signal(x), wanted, **ROUNDED)
    assert_close(problem.signal(x, torch.tensor([5, 2])), wanted[[5, 2]], **ROUNDED)
    assert_close(problem.cross_means(x), crossed, **ROUNDED)
    weights = problem.weights(x)
    assert_close(problem.loss(weights), loss_of(weights, values, 4, center), **ROUNDED)
    every, x = torch.arange(8), x.requires_grad_()
    found = [fn(problem, x, every) for fn in (gram_loss, score_loss)]
    assert_close(found[0].detach(), torch.tensor(problem.loss(weights), dtype=F64), **ROUNDED)
    assert_close(*(torch.autograd.grad(loss, x)[0] for loss in found), **ROUNDED)


@pytest.mark.parametrize("solver", ["uniform", "rms", "nnls", "adamw", "one_factor"])
@pytest.mark.parametrize("center", [True, False])
def test_streamed_weights_are_those_of_contributions_in_memory(solver, center):
    found = made(drawn())
    options = {"k": 4, "center": center, "two_sided": True, **({"steps": 12} if solver == "adamw" else {})}
    expected = learn_weights(found, solver, **options)
    streamed = learn_weights(ContributionStream.of(found, 30), solver, **options)
    assert_close(streamed.values, expected.values, rtol=1e-7, atol=1e-9)
    assert expected.facts["two_sided"] is True
    for part in ("queries", "held_out"):
        assert streamed.facts[part]["loss"] == pytest.approx(expected.facts[part]["loss"], rel=1e-9)


@pytest.mark.parametrize("two_sided", [True, False])
def test_the_first_pass_finds_both_ends_of_weightings_known_before(two_sided, monkeypatch):
    monkeypatch.setattr(room, "REACH", 0.0)  # or large contributions of either sign would be kept
    stream = ContributionStream.of(made(drawn(n_train=300)), 30)
    source = StreamedContributions(stream, k=4, center=True, normalise="rms", two_sided=two_sided)
    problem = source.problem(list(range(8)))
    problem.loss(torch.ones(5, dtype=F64))
    if not two_sided:
        problem.signal(-problem.start())
    assert source.complete() == two_sided


@pytest.mark.parametrize("solver", ["nnls", "adamw", "cross_fitted"])
def test_contributions_of_the_other_sign_have_the_same_weights(solver):
    values = drawn()
    found, other = (learn_weights(made(v), solver, k=4, two_sided=True).values for v in (values, -values))
    assert_close(found, other, rtol=1e-6, atol=1e-9)
    one, opposite = (learn_weights(made(v), solver, k=4).values for v in (values, -values))
    assert float((one - opposite).abs().max()) > 0.01  # one-sided they differ


def test_the_closed_form_and_descent_meet():
    values = drawn(n_query=20, n_train=300)
    losses = {
        name: loss_of(learn_weights(made(values), name, k=5, holdout=0, two_sided=True).values, values, 5, True)
        for name in ("rms", "nnls", "adamw")
    }
    assert losses["nnls"] == pytest.approx(losses["adamw"], rel=0.01)
    assert losses["nnls"] < 1.01 * losses["rms"] < 0


@pytest.mark.parametrize("stream", [False, True])
def test_both_ends_need_their_own_examples(stream):
    found = made(drawn(n_train=20))
    source = ContributionStream.of(found) if stream else found
    with pytest.raises(InputError, match="no 11 and 11 different ones"):
        learn_weights(source, k=11, two_sided=True)
    assert learn_weights(source, k=10, two_sided=True).facts["k"] == 10
