"""DataInf against the mean of inverses that it stands for, and against its formula in loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from whence import Damping
from whence.data import Examples
from whence.errors import InputError
from whence.methods.datainf import DATAINF, datainf
from whence.methods.inputs import Inputs
from whence.methods.scoring import block_source
from whence.scores import ScoreMatrix
from whence.task import GroupWeights, ParameterGroups, Task

F64 = torch.float64
REORDERED = 1e-11  # the same sums in another order
SOLVED = 1e-9  # a dense inverse there, Sherman-Morrison here; damping a hundredth of the squared norms
SINGLE = 2e-5  # float32 gradients, in differences that lose a digit


def scores(problem, weights=None, **options):
    inputs = Inputs(*problem)
    inputs = inputs if weights is None else inputs.weighted(weights)
    return ScoreMatrix.from_blocks(block_source(DATAINF, inputs, datainf(inputs, **options)))


def tensors_of(task, rows):
    """The piece of each parameter tensor, weights and biases apart."""
    return rows.split([p.numel() for p in task.model.parameters()], dim=1)


def by_loops(problem, parts, share):
    """The published formula, example by example and tensor by tensor."""
    n, sign = len(problem.train), problem.task.measure.orientation
    found = torch.zeros(len(problem.queries), n, dtype=F64)
    pairs = zip(tensors_of(problem.task, parts.measures), tensors_of(problem.task, parts.losses), strict=True)
    for measures, losses in pairs:
        damping = sum(float(g.square().mean()) for g in losses) / n * share
        for q, v in enumerate(measures):
            for k, g_k in enumerate(losses):
                total = float(v @ g_k)
                for g in losses:
                    total -= float(v @ g) * float(g @ g_k) / (damping + float(g @ g)) / n
                found[q, k] += sign / n * total / damping
    return found


def mean_of_inverses(problem, parts, dampings):
    """What the closed form stands for, with dense matrices."""
    n = len(problem.train)
    found = torch.zeros(len(problem.queries), n, dtype=F64)
    pairs = zip(tensors_of(problem.task, parts.measures), tensors_of(problem.task, parts.losses), strict=True)
    for (measures, losses), damping in zip(pairs, dampings, strict=True):
        eye = torch.eye(losses.shape[1], dtype=F64)
        mean = sum(torch.linalg.inv(torch.outer(g, g) + damping * eye) for g in losses) / n
        found += problem.task.measure.orientation / n * measures @ mean @ losses.T
    return found


@pytest.mark.parametrize("c", [10.0, 1.0, 0.1, 0.01])
@pytest.mark.parametrize("measure", ["loss", "margin"])
def test_it_is_the_published_formula(c, measure, classification, dense, assert_same):
    problem = classification(hidden=4, measure=measure)
    found = scores(problem, damping=Damping.mean_square_gradient(1 / c))
    assert_same(found.values, by_loops(problem, dense(problem), 1 / c), REORDERED)


def test_the_default_is_a_tenth_of_the_mean_squared_gradient(regression, dense, assert_same):
    problem = regression(hidden=4, n_outputs=2)
    found = scores(problem)
    assert_same(found.values, by_loops(problem, dense(problem), 0.1), REORDERED)
    assert_same(scores(problem, damping=Damping.relative(0.1)).values, found.values, REORDERED)
    assert found.unit is None
    facts = found.provenance["settings"]
    assert facts["damping"] == {"value": 0.1, "unit": "mean_square_gradient"}
    pieces = tensors_of(problem.task, dense(problem).losses)
    assert list(facts["resolved_damping"]) == [name for name, _ in problem.task.model.named_parameters()]
    for number, piece in zip(facts["resolved_damping"].values(), pieces, strict=True):
        assert number == pytest.approx(0.1 * float(piece.square().mean()), rel=1e-12)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_it_is_the_mean_of_dense_inverses(kind, dense, assert_same, request):
    problem = request.getfixturevalue(kind)(hidden=4)
    wanted = mean_of_inverses(problem, dense(problem), [0.05] * 4)
    assert_same(scores(problem, damping=Damping.absolute(0.05)).values, wanted, SOLVED)


def test_of_one_train_example_and_one_tensor_it_is_influence(regression, dense, assert_same):
    """Then the mean of inverses is the inverse of the mean: the damped inverse of the empirical Fisher matrix."""
    problem = regression(n_train=1, bias=False)
    parts = dense(problem)
    fisher = parts.losses.T @ parts.losses + 0.3 * torch.eye(3, dtype=F64)
    wanted = parts.measures @ torch.linalg.solve(fisher, parts.losses.T)
    assert_same(scores(problem, damping=Damping.absolute(0.3)).values, wanted, SOLVED)


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.integers(0, 5))
def test_self_influence_lies_between_influence_and_grad_dot(regression, dense, exponent, seed):
    """(C + lam)^-1 <= mean of inverses <= 1 / lam, with C the empirical Fisher matrix of each tensor."""
    problem = regression(hidden=2, seed=seed)
    problem = type(problem)(problem.task, problem.train, problem.train)
    damping, n = 10.0**exponent, len(problem.train)
    own = scores(problem, damping=Damping.absolute(damping)).values.diagonal()
    least = torch.zeros(n, dtype=F64)
    for losses in tensors_of(problem.task, dense(problem).losses):
        inverse = torch.linalg.inv(losses.T @ losses / n + damping * torch.eye(losses.shape[1], dtype=F64))
        least += (losses @ inverse * losses).sum(1) / n
    most = dense(problem).losses.square().sum(1) / (n * damping)
    assert bool((own >= least * (1 - SOLVED)).all())
    assert bool((own <= most * (1 + SOLVED)).all())


def test_a_large_damping_gives_grad_dot(classification, dense, assert_same):
    problem = classification(hidden=4)
    parts, damping = dense(problem), 1e9
    wanted = parts.measures @ parts.losses.T / (len(problem.train) * damping)
    assert_same(scores(problem, damping=Damping.absolute(damping)).values, wanted, 1e-7)  # |b|^2 / damping


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(12)))
def test_permuting_train_examples_permutes_columns(regression, order):
    problem = regression(hidden=3)
    other = type(problem)(problem.task, problem.train.subset(order), problem.queries)
    found, wanted = scores(other).values, scores(problem).values[:, order]
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=REORDERED * float(wanted.abs().max()))


# --- passes and blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_blocks_and_memory_do_not_matter(kept, classification, monkeypatch, assert_same):
    problem = classification(hidden=4)
    wanted = scores(problem).values
    from whence.methods import datainf as module

    passes = []

    def small(task, examples, **options):
        passes.append(len(examples))
        yield from original(task, examples, memory=4 * 8 * 31 * 5, **options)

    original = module.loss_gradients
    monkeypatch.setattr(module, "loss_gradients", small)
    if not kept:
        monkeypatch.setattr(module, "KEPT", 0)
    assert_same(scores(problem).values, wanted, REORDERED)
    assert len(passes) == (1 if kept else 3)


def test_queries_together_are_queries_one_at_a_time(classification, assert_same):
    problem = classification(hidden=4)
    together = scores(problem).values
    for q in range(len(problem.queries)):
        alone = type(problem)(problem.task, problem.train, problem.queries.subset([q]))
        assert_same(scores(alone).values, together[q : q + 1], REORDERED)


def test_float32_models_are_close_to_float64_ones(classification, assert_same):
    problem = classification(hidden=4)
    wanted = scores(problem).values
    task = Task.classification(problem.task.model.float())
    found = scores((task, *(rows.to(dtype=torch.float32) for rows in (problem.train, problem.queries)))).values
    assert found.dtype == F64
    assert_same(found, wanted, SINGLE)


def test_group_weights_act_on_the_query(regression, dense, assert_same):
    problem = regression(hidden=4)
    layout = problem.task.layout
    groups = ParameterGroups.of(layout, "tensor")
    weights = GroupWeights(torch.tensor([0.0, 0.0, 1.0, 3.0], dtype=F64), groups)
    parts = dense(problem)
    changed = type(parts)(
        parts.measures * weights.of_parameter(layout), parts.losses, parts.gauss_newton, parts.hessian
    )
    found = scores(problem, weights)
    assert_same(found.values, by_loops(problem, changed, 0.1), REORDERED)
    assert found.unit is None
    (block,) = datainf(Inputs(*problem).by_group(groups)).blocks()
    assert_same(block.values.reshape(4, 4, 12).sum(1), scores(problem).values, REORDERED)


# --- bad input --------------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """The second layer is multiplied by zero: its gradients are zero."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.used, self.unused = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()

    def forward(self, x):
        return self.used(x) + 0.0 * self.unused(x)


@pytest.mark.parametrize("damping", [None, Damping.relative(1.0), Damping.absolute(0.1)])
def test_a_tensor_without_gradient_takes_no_part(damping, regression, assert_same):
    problem = regression()
    task = Task.regression(Gated().eval())
    alone = Task.regression(task.model.used)
    found = scores((task, problem.train, problem.queries), damping=damping)
    assert_same(found.values, scores((alone, problem.train, problem.queries), damping=damping).values, REORDERED)
    resolved = found.provenance["settings"]["resolved_damping"]
    assert [name for name, value in resolved.items() if value is None] == ["unused.weight", "unused.bias"]


@pytest.mark.parametrize("damping", [None, Damping.absolute(0.1)])
def test_perfectly_fitted_examples_score_zero(damping, regression):
    problem = regression()
    x, y = problem.train.all()
    with torch.no_grad():
        fitted = problem.task.model(x)
    some = torch.where(torch.arange(len(x))[:, None] < 3, fitted, y)
    values = scores((problem.task, Examples((x, some)), problem.queries), damping=damping).values
    assert bool((values[:, :3] == 0).all())
    assert bool((values[:, 3:] != 0).all())
    everything = scores((problem.task, Examples((x, fitted)), problem.queries), damping=damping).values
    assert torch.equal(everything, torch.zeros_like(everything))


def test_gradients_whose_squares_are_tiny_are_not_lost(regression, assert_same):
    """float32 gradients of 1e-25 have squares that float32 cannot hold."""
    problem = regression()
    model = nn.Linear(3, 1, bias=False).eval()
    x, y = (part.float() for part in problem.train.all())
    queries = Examples(tuple(part.float() for part in problem.queries.all()))
    small = Task(
        model,
        outputs=lambda m, b: m(b[0]),
        loss=lambda o, b: 1e-25 * (o - b[1]).square().mean(1),
        measure="loss",
    )
    values = scores((small, Examples((x, y)), queries)).values
    assert bool(values.isfinite().all())
    usual = scores((Task.regression(model), Examples((x, y)), queries)).values
    assert_same(values, usual, 1e-4)  # no power of the scale is left: v b / lam


@pytest.mark.parametrize("damping", [0.1, 10, "relative", math.nan])
def test_a_damping_without_unit_is_refused_before_any_work(damping, regression, monkeypatch):
    def never(*_, **__):
        raise AssertionError("work was started")

    inputs = Inputs(*regression())
    monkeypatch.setattr("whence.methods.datainf.loss_gradients", never)
    monkeypatch.setattr("whence.methods.inputs.measure_gradients", never)
    with pytest.raises(InputError, match=r"`damping` must be a `Damping`.*Damping.absolute"):
        datainf(inputs, damping=damping)
