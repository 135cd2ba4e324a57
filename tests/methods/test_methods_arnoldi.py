"""Influence on the largest eigenpairs, and with Fisher matrices, against dense eigen-decompositions."""

import itertools

import pytest
import torch
from torch import Tensor

from whence import Damping, Recipe, damped_inverse, first_order, flow
from whence import horizon as horizon_of
from whence.algebra import CallbackOperator, DenseOperator
from whence.algebra.ritz import leading_pairs
from whence.curvature.low_rank import hessian_operator
from whence.errors import InputError, NotPositiveDefiniteError, NumericalError, UnknownNameError
from whence.methods import Inputs, block_source
from whence.methods.arnoldi import ARNOLDI
from whence.methods.influence_fisher import INFLUENCE_FISHER
from whence.methods.influence_gn import INFLUENCE_GN
from whence.scores import ScoreMatrix

F64 = torch.float64
# Krylov spaces that are complete: rounding, times the condition numbers of about a hundred.
COMPLETE = 1e-9
ROUNDING = 1e-12


def scored(preset, problem, **options) -> ScoreMatrix:
    inputs = Inputs(*problem)
    return ScoreMatrix.from_blocks(block_source(preset, inputs, preset.compute(inputs, **options)))


def facts(scores: ScoreMatrix) -> dict:
    return scores.provenance["settings"]


def truncated(matrix: Tensor, rank: int, f) -> Tensor:
    """sum_k u_k f(s_k) u_k^T over the `rank` eigenpairs of largest absolute value."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values.abs().argsort(descending=True)[:rank]
    return (vectors[:, kept] * f(values[kept])) @ vectors[:, kept].T


def symmetric(values: list[float], seed: int = 0) -> Tensor:
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64))
    return (q * torch.tensor(values, dtype=F64)) @ q.T


# --- eigenpairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_leading_pairs_are_those_of_the_dense_matrix_by_absolute_value(rank):
    values = [5.0, -4.0, 3.0, 0.5, -0.25, 0.1]
    matrix = symmetric(values)
    pairs = leading_pairs(DenseOperator(matrix), rank=rank, n_iterations=6)
    wanted = torch.tensor(values[:rank], dtype=F64)
    torch.testing.assert_close(pairs.values, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(rank, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(pairs.vectors @ matrix, wanted[:, None] * pairs.vectors, rtol=0, atol=1e-11)
    assert float(pairs.relative_residuals.max()) < 1e-10


def test_residuals_are_the_real_ones_and_bound_the_eigenvalues():
    values = [1.0 / (k + 1) for k in range(40)]
    matrix = symmetric(values)
    pairs = leading_pairs(DenseOperator(matrix), rank=6, n_iterations=8)
    found = (pairs.vectors @ matrix - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    torch.testing.assert_close(pairs.residuals, found, rtol=1e-8, atol=1e-12)
    assert float(pairs.residuals.max()) > 1e-3  # eight iterations are not enough for six pairs
    gaps = (pairs.values[:, None] - torch.tensor(values, dtype=F64)).abs().amin(1)
    assert bool((gaps <= pairs.residuals + 1e-12).all())
    torch.testing.assert_close(pairs.relative_residuals, found / pairs.values.abs(), rtol=1e-8, atol=1e-12)


def test_a_space_that_is_complete_gives_no_made_up_pairs():
    """Three distinct eigenvalues, one of them 0 many times over: three pairs, each found once."""
    matrix = symmetric([2.0, 2.0, 1.0] + [0.0] * 7)
    pairs = leading_pairs(DenseOperator(matrix), rank=8, n_iterations=8)
    assert pairs.values.tolist() == pytest.approx([2.0, 1.0, 0.0], abs=1e-12)
    assert float(pairs.values.min()) >= 0  # rounding of a singular matrix is no negative eigenvalue
    zero = leading_pairs(DenseOperator(torch.zeros(4, 4, dtype=F64)), rank=3, n_iterations=4)
    assert zero.values.tolist() == [0.0]
    assert zero.relative_residuals.tolist() == [0.0]


def test_the_seed_sets_the_start_and_iterations_are_capped():
    matrix = symmetric([1.0 / (k + 1) for k in range(30)])
    one, again, other = (leading_pairs(DenseOperator(matrix), rank=3, n_iterations=4, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.values, again.values)
    assert float((one.values - other.values).abs().max()) > 1e-6
    assert leading_pairs(DenseOperator(matrix), rank=3, n_iterations=500).n_iterations == 30


def test_what_leading_pairs_refuse():
    operator = DenseOperator(torch.eye(3, dtype=F64))
    with pytest.raises(InputError, match="`rank` must be at most `n_iterations`; got 4 pairs from 3"):
        leading_pairs(operator, rank=4, n_iterations=3)
    with pytest.raises(InputError, match="`rank` must be an integer of at least 1"):
        leading_pairs(operator, rank=0, n_iterations=3)
    broken = CallbackOperator(3, lambda rows: rows * float("nan"), F64)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        leading_pairs(broken, rank=1, n_iterations=2)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_the_hessian_operator_is_the_dense_hessian(kind, dense, assert_same, request):
    problem = request.getfixturevalue(kind)(hidden=4)
    assert_same(hessian_operator(problem.task, problem.train).to_dense(), dense(problem).hessian, ROUNDING)


# --- arnoldi ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_with_all_pairs_it_is_influence_gn(kind, assert_same, request):
    problem = request.getfixturevalue(kind)(hidden=4)
    found = scored(ARNOLDI, problem)
    assert_same(found.values, scored(INFLUENCE_GN, problem).values, COMPLETE)
    assert facts(found)["unconverged"] == 0
    assert facts(found)["damping"] == pytest.approx(facts(scored(INFLUENCE_GN, problem))["damping"], rel=1e-10)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_with_fewer_pairs_it_is_the_truncated_eigen_decomposition(rank, classification, dense, assert_same):
    problem = classification(hidden=4)
    parts, n = dense(problem), len(problem.train)
    found = scored(ARNOLDI, problem, rank=rank, damping=Damping.absolute(0.02))
    inverse = truncated(parts.gauss_newton, rank, lambda s: 1 / (s + 0.02))
    assert_same(found.values, parts.measures @ inverse @ parts.losses.T / n, COMPLETE)
    # What is dropped matters: the whole inverse differs.
    whole = torch.linalg.inv(parts.gauss_newton + 0.02 * torch.eye(len(parts.gauss_newton), dtype=F64))
    full = parts.measures @ whole @ parts.losses.T / n
    assert float((found.values - full).abs().max()) > 1e-3 * float(full.abs().max())
    values = torch.linalg.eigvalsh(parts.gauss_newton)
    assert facts(found)["rank"] == rank == len(facts(found)["ritz_residuals"])
    assert facts(found)["largest_eigenvalue"] == pytest.approx(float(values[-1]), rel=1e-10)
    assert facts(found)["smallest_kept_eigenvalue"] == pytest.approx(float(values[-rank]), rel=1e-8)
    assert (found.unit, facts(found)["curvature"], facts(found)["seed"]) == ("loss", "gauss_newton", 0)


FILTERS = {
    "damped inverse": (lambda p: damped_inverse(Damping.absolute(0.05)), lambda s: 1 / (s + 0.05)),
    "first order": (lambda p: first_order(0.7), lambda s: torch.full_like(s, 0.7)),
    "flow": (lambda p: flow(3.0), lambda s: (1 - torch.exp(-3.0 * s)) / s),
    "horizon": (
        lambda p: horizon_of(Recipe(lr=0.05, batch_size=len(p.train), epochs=20)),
        lambda s: (1 - (1 - 0.05 * s) ** 20) / s,
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_it_takes_every_filter(name, regression, dense, assert_same):
    problem = regression(hidden=4)
    make, f = FILTERS[name]
    parts, n = dense(problem), len(problem.train)
    found = scored(ARNOLDI, problem, rank=5, filter=make(problem))
    assert_same(found.values, parts.measures @ truncated(parts.gauss_newton, 5, f) @ parts.losses.T / n, COMPLETE)


@pytest.mark.parametrize("rank", [4, 21])
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_of_the_hessian_it_keeps_negative_eigenvalues_if_the_filter_takes_them(kind, rank, dense, assert_same, request):
    problem = request.getfixturevalue(kind)(hidden=4)
    parts, n = dense(problem), len(problem.train)
    smallest = float(torch.linalg.eigvalsh(parts.hessian)[0])
    assert smallest < -1e-3
    used = Damping.absolute(-1.5 * smallest)
    found = scored(ARNOLDI, problem, rank=rank, curvature="hessian", damping=used)
    inverse = truncated(parts.hessian, rank, lambda s: 1 / (s - 1.5 * smallest))
    assert_same(found.values, parts.measures @ inverse @ parts.losses.T / n, 1e-8)
    with pytest.raises(NotPositiveDefiniteError, match="smallest eigenvalue of the curvature is"):
        scored(ARNOLDI, problem, curvature="hessian", damping=Damping.absolute(-0.9 * smallest))
    taken = scored(ARNOLDI, problem, rank=rank, curvature="hessian", filter=flow(2.0))
    forward = truncated(parts.hessian, rank, lambda s: (1 - torch.exp(-2.0 * s)) / s)
    assert_same(taken.values, parts.measures @ forward @ parts.losses.T / n, 1e-8)


def test_pairs_that_did_not_converge_are_said(classification, dense):
    problem = classification(hidden=4)
    rough = scored(ARNOLDI, problem, rank=6, n_iterations=6)
    assert facts(rough)["n_iterations"] == 6
    assert facts(rough)["unconverged"] == sum(r > 1e-3 for r in facts(rough)["ritz_residuals"]) > 0
    assert facts(scored(ARNOLDI, problem, rank=2, n_iterations=20))["unconverged"] == 0


def test_orientation_and_queries_are_those_of_all_methods(classification, assert_same):
    loss, log_probability = classification(hidden=4), classification(hidden=4, measure="log_probability")
    one, two = (scored(ARNOLDI, problem, rank=5).values for problem in (loss, log_probability))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"curvature": "fisher"}, UnknownNameError, "Unknown curvature 'fisher'"),
        ({"curvature": "hessian"}, InputError, "needs `damping` or `filter`.*negative eigenvalues"),
        ({"curvature": "hessian", "damping": Damping.relative(0.1)}, InputError, "Damping.absolute"),
        ({"damping": 0.1}, InputError, "`damping` must be a `Damping`"),
        ({"damping": Damping.absolute(1.0), "filter": flow(1.0)}, InputError, "either `damping` or `filter`"),
        ({"rank": 5, "n_iterations": 4}, InputError, "5 pairs from 4 iterations"),
    ],
)
def test_what_arnoldi_refuses(options, error, message, regression):
    with pytest.raises(error, match=message):
        scored(ARNOLDI, regression(hidden=4), **options)


# --- Fisher matrices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_influence_with_the_empirical_fisher_is_the_dense_inverse(kind, dense, assert_same, request):
    problem = request.getfixturevalue(kind)(hidden=4)
    parts, n = dense(problem), len(problem.train)
    matrix = parts.losses.T @ parts.losses / n
    eye = torch.eye(len(matrix), dtype=F64)
    for options, shift in (
        ({}, 0.1 * float(matrix.trace()) / len(matrix)),
        ({"damping": Damping.absolute(0.03)}, 0.03),
        ({"filter": damped_inverse(Damping.mean_square_gradient(0.5))}, 0.5 * float(parts.losses.square().mean())),
    ):
        found = scored(INFLUENCE_FISHER, problem, **options)
        wanted = parts.measures @ torch.linalg.solve(matrix + shift * eye, parts.losses.T) / n
        assert_same(found.values, wanted, COMPLETE)
        assert facts(found)["damping"] == pytest.approx(shift, rel=1e-10)
    assert found.unit is None
    assert facts(found)["fisher"] == "empirical"


def test_more_samples_bring_it_to_influence_gn_and_seeds_together(classification):
    problem = classification(hidden=4)
    wanted = scored(INFLUENCE_GN, problem, damping=Damping.absolute(0.1)).values
    errors, agreements = [], []
    for n_samples in (1, 25, 625):
        options = {"fisher": "sampled", "n_samples": n_samples, "damping": Damping.absolute(0.1)}
        found = scored(INFLUENCE_FISHER, problem, n_seeds=2, **options)
        errors.append(float((found.values - wanted).norm() / wanted.norm()))
        agreements.append(facts(found)["seed_agreement"])
        assert facts(found)["seeds"] == [0, 1]
    # Each is 25 times the samples of the one before, so a fifth of its error but for chance.
    for coarse, fine in itertools.pairwise(errors):
        assert fine < coarse / 2
    assert agreements[0] < agreements[1] < agreements[2] < 1


def test_scores_are_the_mean_over_seeds_and_their_agreement_is_pearsons(classification, assert_same):
    problem = classification(hidden=4)
    options = {"fisher": "sampled", "n_samples": 1}
    each = [scored(INFLUENCE_FISHER, problem, seed=seed, **options).values for seed in (5, 6, 7)]
    found = scored(INFLUENCE_FISHER, problem, seed=5, n_seeds=3, **options)
    assert_same(found.values, torch.stack(each).mean(0), ROUNDING)
    pairs = itertools.combinations(each, 2)
    wanted = [float(torch.corrcoef(torch.stack([a, b]))[0, 1]) for x, y in pairs for a, b in zip(x, y, strict=True)]
    assert facts(found)["seed_agreement"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-10)
    assert "seed_agreement" not in facts(scored(INFLUENCE_FISHER, problem, **options))


def test_agreement_of_constant_scores_is_undefined(regression):
    problem = regression(hidden=4)
    with torch.no_grad():  # outputs that do not depend on any input, at the mean of nothing: no gradient differs
        for p in problem.task.model.parameters():
            p.zero_()
    x, y = problem.train.all()
    train = type(problem.train)((torch.zeros_like(x), torch.ones_like(y)))
    found = scored(INFLUENCE_FISHER, type(problem)(problem.task, train, problem.queries), fisher="sampled", n_seeds=2)
    assert facts(found)["seed_agreement"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_seeds": 2}, "Nothing is drawn for the empirical Fisher matrix; got n_seeds=2"),
        ({"n_samples": 2}, "one label an example"),
        ({"n_seeds": 0}, "`n_seeds` must be an integer of at least 1"),
        ({"fisher": "true"}, "Unknown Fisher matrix"),
        ({"damping": Damping.absolute(1.0), "filter": flow(1.0)}, "either `damping` or `filter`"),
    ],
)
def test_what_influence_fisher_refuses(options, message, regression):
    with pytest.raises(InputError, match=message):
        scored(INFLUENCE_FISHER, regression(), **options)
