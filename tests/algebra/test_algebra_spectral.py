"""Dual = primal = dense, for every filter, with rank-deficient C and vectors off its range; the exact look-ahead."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.algebra import (
    DampedInverse,
    Damping,
    DualSpectrum,
    FirstOrder,
    Flow,
    Horizon,
    PrimalSpectrum,
    Steps,
    apply_filter_dense,
    damped_inverse,
    exact_look_ahead_dense,
    look_ahead_kernel_recurrence,
    spectral,
)
from whence.errors import (
    InputError,
    NonFiniteError,
    NotPositiveDefiniteError,
    NumericalError,
    ShapeError,
)

# Rounding of a product of a few dozen terms, relative to the largest entry.
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}

FILTERS_USED = [
    FirstOrder(0.7),
    DampedInverse(0.01),
    Flow(30.0),
    Flow(30.0, 0.1),
    Horizon(Steps.of(0.2, 100)),
    Horizon(Steps.of(0.2, 100, weight_decay=0.05)),
    Horizon(Steps.of(0.1, 60, momentum=0.8)),
    Horizon(Steps.of(0.1, 60, momentum=0.8, nesterov=True)),
    Horizon(Steps(tuple(0.2 * (1 - t / 50) for t in range(50)))),
]


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rank_deficient_factor(seed=0, n_rows=9, dim=14, rank=6):
    """A with C = A^T A of rank 6: the Gram matrix is singular too. Largest eigenvalue about 3."""
    a = randn(seed, n_rows, rank) @ randn(seed + 1, rank, dim)
    return a / torch.linalg.matrix_norm(a, 2) * 3**0.5


@pytest.mark.parametrize("filter", FILTERS_USED, ids=lambda f: f.name)
def test_dual_is_primal_is_dense(filter):
    a = rank_deficient_factor()
    x, y = randn(2, 4, 14), randn(3, 5, 14)  # mostly off the range of C
    curvature = a.T @ a
    want = apply_filter_dense(curvature, filter, x) @ y.T
    dual = DualSpectrum.from_gram(a @ a.T, dim=14)
    primal = PrimalSpectrum.from_matrix(curvature)
    assert_close(dual.bilinear(filter, x @ y.T, a @ x.T, a @ y.T), want, **ROUNDING)
    assert_close(primal.bilinear(filter, x, y), want, **ROUNDING)
    assert_close(primal.apply(filter, x), apply_filter_dense(curvature, filter, x), **ROUNDING)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n_rows=st.integers(1, 12), dim=st.integers(1, 12))
def test_dual_is_primal_for_any_shape(seed, n_rows, dim):
    a = randn(seed, n_rows, dim) / (n_rows + dim) ** 0.5
    x, y = randn(seed + 1, 2, dim), randn(seed + 2, 3, dim)
    for filter in (DampedInverse(0.1), Flow(5.0), Horizon(Steps.of(0.05, 40))):
        dual = DualSpectrum.from_gram(a @ a.T, dim).bilinear(filter, x @ y.T, a @ x.T, a @ y.T)
        assert_close(dual, PrimalSpectrum.from_matrix(a.T @ a).bilinear(filter, x, y), **ROUNDING)


def test_long_horizon_is_the_pseudo_inverse_on_the_range_and_lr_t_off_it():
    a, x = rank_deficient_factor(), randn(2, 4, 14)
    filter = Horizon(Steps.of(0.5, 10**5))
    off_range = x - x @ torch.linalg.pinv(a, rtol=1e-10) @ a
    want = x @ torch.linalg.pinv(a.T @ a, rtol=1e-10) @ x.T + 0.5e5 * off_range @ off_range.T
    dual = DualSpectrum.from_gram(a @ a.T, 14).bilinear(filter, x @ x.T, a @ x.T, a @ x.T)
    assert_close(dual, want, rtol=1e-9, atol=1e-9 * 0.5e5)
    assert_close(PrimalSpectrum.from_matrix(a.T @ a).bilinear(filter, x, x), want, rtol=1e-9, atol=1e-9 * 0.5e5)


def test_rounding_of_a_singular_float32_matrix_does_not_grow():
    """Its zero eigenvalues come out near -1e-7; over a time of 1e9 they would grow by exp(100)."""
    a, x = rank_deficient_factor(), randn(2, 4, 14)
    single = a.float()
    off_range = x - x @ torch.linalg.pinv(a, rtol=1e-10) @ a
    filter = Flow(1e9)
    assert float(torch.linalg.eigvalsh((single @ single.T).double())[0]) < -1e-9
    dual = DualSpectrum.from_gram(single @ single.T, 14).bilinear(filter, x @ x.T, a @ x.T, a @ x.T)
    primal = PrimalSpectrum.from_matrix(single.T @ single)
    assert float(primal.eigenvalues[0]) == 0
    # Eigenvectors of the two float32 matrices are off by 1e-6, and small positive eigenvalues do end some directions.
    limit = 1.01 * 1e9 * x.square().sum(1)
    assert bool((dual.diagonal().abs() <= limit).all())
    assert bool((primal.bilinear(filter, x, x).diagonal().abs() <= limit).all())
    assert off_range.norm() > 1


def test_mean_eigenvalue_counts_all_directions_and_resolves_relative_damping():
    a = rank_deficient_factor()
    mean = float((a**2).sum()) / 14
    dual, primal = DualSpectrum.from_gram(a @ a.T, 14), PrimalSpectrum.from_matrix(a.T @ a)
    assert dual.mean_eigenvalue == pytest.approx(mean)
    assert primal.mean_eigenvalue == pytest.approx(mean)
    x = randn(2, 4, 14)
    relative, absolute = damped_inverse(Damping.relative(0.1)), DampedInverse(0.1 * mean)
    want = apply_filter_dense(a.T @ a, absolute, x) @ x.T
    assert_close(dual.bilinear(relative, x @ x.T, a @ x.T, a @ x.T), want, **ROUNDING)
    assert_close(primal.bilinear(relative, x, x), want, **ROUNDING)
    with pytest.raises(InputError, match="mean_square_gradient"):
        primal.apply(damped_inverse(Damping.mean_square_gradient(1.0)), x)


def test_primal_takes_an_indefinite_matrix():
    m = randn(0, 6, 6)
    hessian = (m + m.T) / 10
    x = randn(1, 3, 6)
    s_min = float(torch.linalg.eigvalsh(hessian)[0])
    assert s_min < -0.1
    primal = PrimalSpectrum.from_matrix(hessian)
    for filter in (DampedInverse(1.0), Flow(3.0), Horizon(Steps.of(0.3, 10)), Horizon(Steps.of(0.3, 10, momentum=0.5))):
        assert_close(primal.apply(filter, x), apply_filter_dense(hessian, filter, x), **ROUNDING)
    with pytest.raises(NotPositiveDefiniteError, match="smallest eigenvalue"):
        primal.apply(DampedInverse(-s_min / 2), x)


@pytest.mark.parametrize(
    "steps",
    [
        Steps.of(0.2, 40),
        Steps.of(0.2, 40, weight_decay=0.1),
        Steps.of(0.1, 30, momentum=0.8),
        Steps.of(0.1, 30, momentum=0.8, nesterov=True, weight_decay=0.1),
        Steps(tuple(0.3 * (1 - t / 25) for t in range(25))),
    ],
)
def test_look_ahead_rows_are_the_double_sum_and_the_run(steps):
    a = rank_deficient_factor(n_rows=10)
    curvature = a.T @ a
    queries, g, start = randn(4, 3, 14), randn(5, 14), randn(6, 5, 14)
    dual, primal = DualSpectrum.from_gram(a @ a.T, 14), PrimalSpectrum.from_matrix(curvature)
    s, u = torch.linalg.eigh(curvature)
    kernel = look_ahead_kernel_recurrence(s, s, steps)
    au = a @ u
    want = torch.einsum("qa,ab,ra,rb,b->qr", queries @ u, kernel, au, au, u.T @ g)
    rows = dual.look_ahead_rows(steps, a @ queries.T, a @ g)
    assert_close(rows, want, **ROUNDING)
    assert_close(primal.look_ahead_rows(steps, queries, g, a), want, **ROUNDING)
    assert_close(primal.look_ahead_rows(steps, queries, g, a[2:4]), want[:, 2:4], **ROUNDING)
    factor = dual.look_ahead_factor(steps, a @ g)
    assert_close((queries @ a.T) @ dual.vectors @ factor.T, want, **ROUNDING)
    # Five examples of two rows each, against the run that lets both the model and the gradients move.
    first = primal.bilinear(Horizon(steps), queries, start)
    moved = exact_look_ahead_dense(list(a.split(2)), start, g, steps)
    assert_close(first - rows.reshape(3, 5, 2).sum(-1), queries @ moved.T, **ROUNDING)


def test_blocks_of_rows_share_one_kernel(monkeypatch):
    a, steps, seen = rank_deficient_factor(n_rows=10), Steps.of(0.2, 40), []
    queries, g = randn(4, 3, 14), randn(5, 14)
    primal = PrimalSpectrum.from_matrix(a.T @ a)
    want = primal.look_ahead_rows(steps, queries, g, a)
    real = spectral.look_ahead_kernel
    monkeypatch.setattr(spectral, "look_ahead_kernel", lambda *given: seen.append(given) or real(*given))
    found = list(primal.look_ahead_blocks(steps, queries, g, a.split(4)))
    assert [block.shape for block in found] == [(3, 4), (3, 4), (3, 2)]
    assert_close(torch.cat(found, 1), want, **ROUNDING)
    assert len(seen) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_look_ahead_is_autograd_through_linear_regression(momentum):
    """-d theta_T / d w_i for the weight w_i / n of example i, through every step of the run."""
    n, dim, lr, n_steps = 6, 8, 0.1, 25
    inputs, targets, theta_0 = randn(0, n, dim) / dim**0.5, randn(1, n), randn(2, dim)
    weights = torch.ones(n, dtype=torch.float64, requires_grad=True)
    theta, buffer = theta_0, torch.zeros_like(theta_0)
    for _ in range(n_steps):
        buffer = momentum * buffer + inputs.T @ (weights * (inputs @ theta - targets)) / n
        theta = theta - lr * buffer
    query = randn(3, dim)
    want = -torch.autograd.grad(query @ theta, weights)[0]

    steps = Steps.of(lr, n_steps, momentum=momentum)
    a, residuals = inputs / n**0.5, inputs @ theta_0 - targets
    start, g = residuals[:, None] * inputs / n, inputs.T @ residuals / n
    dual = DualSpectrum.from_gram(a @ a.T, dim)
    q = query[None]
    first = dual.bilinear(Horizon(steps), q @ start.T, a @ q.T, a @ start.T)
    assert_close((first - dual.look_ahead_rows(steps, a @ q.T, a @ g))[0], want, **ROUNDING)


def test_spectra_refuse_steps_that_diverge():
    a = rank_deficient_factor()
    x = randn(1, 2, 14)
    steps = Steps.of(1.0, 10)  # largest eigenvalue 3
    dual, primal = DualSpectrum.from_gram(a @ a.T, 14), PrimalSpectrum.from_matrix(a.T @ a)
    for attempt in (
        lambda: dual.bilinear(Horizon(steps), x @ x.T, a @ x.T, a @ x.T),
        lambda: dual.look_ahead_rows(steps, a @ x.T, a @ x[0]),
        lambda: primal.apply(Horizon(steps), x),
        lambda: primal.look_ahead_rows(steps, x, x[0], a),
    ):
        with pytest.raises(NumericalError, match=r"lr below 0\.66"):
            attempt()


def test_spectra_refuse_bad_matrices():
    good = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ShapeError, match="square"):
        DualSpectrum.from_gram(good[:2], 5)
    with pytest.raises(InputError, match="empty"):
        PrimalSpectrum.from_matrix(good[:0, :0])
    with pytest.raises(NonFiniteError):
        PrimalSpectrum.from_matrix(good / 0)
    with pytest.raises(InputError, match="symmetric"):
        PrimalSpectrum.from_matrix(good + torch.ones(3, 3).triu(1))
    with pytest.raises(NotPositiveDefiniteError, match="PrimalSpectrum"):
        DualSpectrum.from_gram(-good, 5)
    with pytest.raises(InputError, match="`dim`"):
        DualSpectrum.from_gram(good, 0)


def test_spectra_name_the_wrong_shape():
    dual, primal = DualSpectrum.from_gram(torch.eye(3), 5), PrimalSpectrum.from_matrix(torch.eye(5))
    with pytest.raises(ShapeError, match=r"`ax` must be A X\^T"):
        dual.bilinear(FirstOrder(), torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="`inner`"):
        dual.bilinear(FirstOrder(), torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="`rows`"):
        primal.apply(FirstOrder(), torch.zeros(5))


def test_zero_curvature_is_first_order():
    """No curvature at all: every direction is flat, and a horizon is lr * T."""
    x = randn(0, 2, 5)
    zero = torch.zeros(3, 2, dtype=torch.float64)
    dual = DualSpectrum.from_gram(torch.zeros(3, 3), 5)
    assert_close(dual.bilinear(Horizon(Steps.of(0.1, 30)), x @ x.T, zero, zero), 3 * x @ x.T, **ROUNDING)
    with pytest.raises(NumericalError, match="mean_eigenvalue"):
        dual.bilinear(damped_inverse(Damping.relative(0.1)), x @ x.T, zero, zero)
