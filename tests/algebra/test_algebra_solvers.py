"""Operators, conjugate gradients, Lanczos and the Neumann series against dense solves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.algebra import (
    CallbackOperator,
    DampedInverse,
    Damping,
    DenseOperator,
    FactorOperator,
    FirstOrder,
    Flow,
    Horizon,
    LanczosBasis,
    ShiftedOperator,
    Steps,
    apply_filter_dense,
    conjugate_gradient,
    damped_inverse,
    lanczos,
    largest_eigenvalue,
    neumann_series,
)
from whence.errors import (
    ConvergenceError,
    InputError,
    NonFiniteError,
    NotPositiveDefiniteError,
    NumericalError,
    ShapeError,
)

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues in a random basis."""
    s = torch.as_tensor(eigenvalues, dtype=torch.float64)
    q, _ = torch.linalg.qr(randn(seed, len(s), len(s)))
    return q @ torch.diag(s) @ q.T


class Counting:
    """How often and on how many rows an operator was applied."""

    def __init__(self, matrix):
        self.calls, self.rows = 0, 0
        self.operator = CallbackOperator(len(matrix), self.product, matrix.dtype)
        self.matrix = matrix

    def product(self, rows):
        self.calls += 1
        self.rows += len(rows)
        return rows @ self.matrix


def test_operators_are_the_matrix_they_stand_for():
    a = randn(0, 7, 300)
    c = a.T @ a
    for operator in (DenseOperator(c), FactorOperator(a), CallbackOperator(300, lambda rows: rows @ c, torch.float64)):
        assert_close(operator.to_dense(), c, **ROUNDING)
        assert_close(
            ShiftedOperator(operator, 0.5).to_dense(), c + 0.5 * torch.eye(300, dtype=torch.float64), **ROUNDING
        )
        assert (operator.dim, operator.dtype, operator.device.type) == (300, torch.float64, "cpu")
        assert operator.apply(a[:0]).shape == (0, 300)


def test_operators_refuse_what_does_not_fit():
    operator = DenseOperator(torch.eye(3))
    with pytest.raises(ShapeError, match=r"\(m, dim\)"):
        operator.apply(torch.ones(3))
    with pytest.raises(InputError, match="float32"):
        operator.apply(torch.ones(1, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="square"):
        DenseOperator(torch.ones(2, 3))
    with pytest.raises(ShapeError, match="n_rows, dim"):
        FactorOperator(torch.ones(3))
    with pytest.raises(ShapeError, match="callback"):
        CallbackOperator(3, lambda rows: rows[:, :2]).apply(torch.ones(1, 3))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 15), shifts=st.lists(st.floats(1e-3, 10), min_size=1, max_size=4))
def test_conjugate_gradients_solve_every_shift(seed, dim, shifts):
    a = randn(seed, max(1, dim // 2), dim)
    rows = randn(seed + 1, 3, dim)
    result = conjugate_gradient(FactorOperator(a), rows, shifts, tolerance=1e-10)
    for shift, found, residuals in zip(shifts, result.solutions, result.relative_residuals, strict=True):
        system = a.T @ a + shift * torch.eye(dim, dtype=torch.float64)
        want = torch.linalg.solve(system, rows.T).T
        # The error is at most the condition number times the residual.
        assert_close(found, want, rtol=0.0, atol=float(1e-10 * torch.linalg.cond(system) * want.norm()))
        true = (rows - found @ system).norm(dim=1) / rows.norm(dim=1)
        # Both are rounded like the product `found @ system`, whose terms are this much larger than `rows`.
        size = float(torch.linalg.matrix_norm(system, ord=2) * (found.norm(dim=1) / rows.norm(dim=1)).max())
        assert_close(residuals, true, rtol=1e-3, atol=10 * torch.finfo(torch.float64).eps * size)
    assert bool(result.converged.all())


def test_conjugate_gradients_share_one_application_and_drop_solved_rows():
    c = with_spectrum(torch.logspace(-3, 0, 40))
    rows = randn(1, 5, 40)
    rows[1] = 0
    rows[2] = torch.linalg.eigh(c).eigenvectors[:, 3]  # solved after one step
    counted = Counting(c)
    progress = []
    result = conjugate_gradient(
        counted.operator,
        rows,
        [0.1, 0.001, 0.01],
        tolerance=1e-8,
        progress=lambda iteration, residual: progress.append((iteration, residual)),
    )
    assert counted.calls == result.iterations + 3
    assert counted.rows < 4 * result.iterations + 3 * 5
    assert [iteration for iteration, _ in progress] == list(range(1, result.iterations + 1))
    assert progress[-1][1] <= 1e-8
    assert torch.equal(result.solutions[:, 1], torch.zeros(3, 40, dtype=torch.float64))
    assert torch.equal(result.relative_residuals[:, 1], torch.zeros(3, dtype=torch.float64))
    alone = conjugate_gradient(DenseOperator(c), rows[3:4], [0.01], tolerance=1e-8)
    assert_close(result.solutions[2, 3], alone.solutions[0, 0], rtol=1e-6, atol=1e-6)


def test_order_of_shifts_changes_nothing():
    c, rows = with_spectrum(torch.logspace(-4, 0, 30)), randn(1, 3, 30)
    one = conjugate_gradient(DenseOperator(c), rows, [0.1, 1e-3])
    two = conjugate_gradient(DenseOperator(c), rows, [1e-3, 0.1])
    assert torch.equal(one.solutions.flip(0), two.solutions)
    assert one.iterations == two.iterations


def test_conjugate_gradients_say_when_they_stop_short():
    c = with_spectrum(torch.logspace(-6, 0, 50))
    rows = randn(1, 2, 50)
    with pytest.raises(ConvergenceError, match=r"2 of 2 systems.*after 3 iterations.*max_iterations"):
        conjugate_gradient(DenseOperator(c), rows, [0.0], max_iterations=3)
    result = conjugate_gradient(DenseOperator(c), rows, [0.0, 10.0], max_iterations=6, allow_unconverged=True)
    assert result.converged.tolist() == [[False, False], [True, True]]
    assert result.iterations == 6


def test_conjugate_gradients_notice_that_float32_cannot_reach_the_tolerance():
    c = with_spectrum(torch.logspace(-6, 0, 50)).float()
    with pytest.raises(ConvergenceError, match="above the tolerance"):
        conjugate_gradient(DenseOperator(c), randn(1, 2, 50).float(), [1e-6], tolerance=1e-9)
    result = conjugate_gradient(DenseOperator(c), randn(1, 2, 50).float(), [0.1], tolerance=1e-5)
    assert result.solutions.dtype == torch.float32


def test_conjugate_gradients_refuse_what_they_cannot_solve():
    indefinite = DenseOperator(with_spectrum([-1.0, 0.5, 2.0]))
    rows = randn(0, 2, 3)
    with pytest.raises(NotPositiveDefiniteError, match="damping above"):
        conjugate_gradient(indefinite, rows, [0.1])
    assert bool(conjugate_gradient(indefinite, rows, [1.5]).converged.all())
    with pytest.raises(InputError, match="`shifts`"):
        conjugate_gradient(indefinite, rows, [])
    with pytest.raises(NonFiniteError, match="row 1"):
        conjugate_gradient(indefinite, torch.tensor([[0.0] * 3, [float("nan")] * 3]).double(), [2.0])
    with pytest.raises(NumericalError, match="NaN or infinite"):
        conjugate_gradient(CallbackOperator(3, lambda x: x / 0, torch.float64), rows, [2.0])
    with pytest.raises(ShapeError, match="right-hand sides"):
        conjugate_gradient(indefinite, rows[0], [2.0])


LANCZOS_FILTERS = [FirstOrder(0.7), DampedInverse(0.05), Flow(20.0, 0.01), Horizon(Steps.of(0.3, 60))]
LANCZOS_FILTERS += [Horizon(Steps.of(0.1, 40, momentum=0.8))]


def test_lanczos_is_dense():
    c = with_spectrum(torch.cat([torch.zeros(30), torch.logspace(-3, 0.5, 50)]))
    rows = randn(1, 4, 80)
    rows[2] = 0
    result = lanczos(DenseOperator(c), rows, LANCZOS_FILTERS, tolerance=1e-9)
    assert result.steps < 80
    assert bool(result.converged.all())
    for filter, found in zip(LANCZOS_FILTERS, result.solutions, strict=True):
        want = apply_filter_dense(c, filter, rows)
        assert float((found - want).norm() / want.norm()) < 1e-8, filter
    assert torch.equal(result.solutions[:, 2], torch.zeros(5, 80, dtype=torch.float64))
    assert torch.equal(result.estimated_error[:, 2], torch.zeros(5, dtype=torch.float64))


def test_lanczos_stops_in_an_invariant_subspace():
    c = with_spectrum([0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0])  # four distinct eigenvalues
    vectors = torch.linalg.eigh(c).eigenvectors
    rows = torch.stack([vectors[:, 0], vectors[:, 2] + vectors[:, 7], randn(1, 10)])
    basis = LanczosBasis(DenseOperator(c), rows)
    basis.extend(10)
    assert basis.complete.all()
    assert torch.linalg.vector_norm(basis.basis, dim=-1).round().sum(0).tolist()[1:] == [2, 4]
    for filter in LANCZOS_FILTERS:
        assert_close(basis.apply(filter), apply_filter_dense(c, filter, rows), rtol=1e-9, atol=1e-9)
    values = basis.ritz()[0]
    assert float(values.min()) > -1e-12
    assert float(values.max()) < 3 + 1e-12


def test_lanczos_basis_is_orthonormal_and_tridiagonalises():
    c = with_spectrum(torch.logspace(-12, 0, 60))  # without re-orthogonalisation this loses orthogonality
    basis = LanczosBasis(DenseOperator(c), randn(1, 3, 60))
    basis.extend(7)
    basis.extend(50)
    assert basis.steps == 57
    for row in range(3):
        q = basis.basis[:, row]
        assert_close(q @ q.T, torch.eye(57, dtype=torch.float64), rtol=0.0, atol=1e-12)
        off = basis.betas[:-1, row]
        want = torch.diag(basis.alphas[:, row]) + torch.diag(off, 1) + torch.diag(off, -1)
        assert_close(q @ c @ q.T, want, rtol=0.0, atol=1e-12)


def test_ritz_vectors_rebuild_filtered_rows():
    c, rows = with_spectrum(torch.linspace(0, 2, 30)), randn(1, 3, 30)
    basis = LanczosBasis(DenseOperator(c), rows)
    basis.extend(12)
    values, coefficients, rotation = basis.ritz()
    assert values.shape == coefficients.shape == (3, 12)
    filter = Flow(3.0)
    ritz_vectors = torch.einsum("kmd,mkj->mjd", basis.basis, rotation)
    rebuilt = torch.einsum("mj,mjd->md", filter(values) * coefficients, ritz_vectors)
    assert_close(rebuilt, basis.apply(filter), **ROUNDING)
    start = torch.einsum("mj,mjd->md", coefficients, ritz_vectors)
    assert_close(start, rows, **ROUNDING)


def test_lanczos_says_when_it_stops_short_or_is_refused():
    c = with_spectrum(torch.logspace(-6, 0, 60))
    rows = randn(1, 2, 60)
    with pytest.raises(ConvergenceError, match=r"after 9 steps \(limit 9\)"):
        lanczos(DenseOperator(c), rows, [DampedInverse(1e-6)], max_steps=9)
    result = lanczos(DenseOperator(c), rows, [DampedInverse(1e-6), Flow(1.0)], max_steps=24, allow_unconverged=True)
    assert result.converged.tolist() == [[False, False], [True, True]]
    with pytest.raises(NumericalError, match="diverges"):
        lanczos(DenseOperator(c), rows, [Horizon(Steps.of(3.0, 100))])
    with pytest.raises(NotPositiveDefiniteError, match="smallest eigenvalue"):
        lanczos(DenseOperator(with_spectrum([-1.0, 0.5, 2.0])), randn(0, 1, 3), [DampedInverse(0.5)])
    with pytest.raises(NumericalError, match="NaN or infinite"):
        lanczos(CallbackOperator(60, lambda x: x / 0, torch.float64), rows, [Flow(1.0)])


def test_lanczos_is_not_fooled_by_a_pause():
    """A weak start along a flat direction is found late and then filtered up: after 8 steps 10 % is still missing."""
    c = with_spectrum(torch.cat([torch.tensor([1e-6]), torch.linspace(1, 1.3, 79)]))
    vectors = torch.linalg.eigh(c).eigenvectors
    row = (vectors[:, 1:].sum(1) / 79**0.5 + 1e-7 * vectors[:, 0])[None]
    filter = DampedInverse(1e-7)
    want = apply_filter_dense(c, filter, row)
    found = lanczos(DenseOperator(c), row, [filter], tolerance=1e-4).solutions[0]
    assert float((found - want).norm() / want.norm()) < 1e-4


def test_lanczos_refuses_bad_requests():
    operator, rows = DenseOperator(torch.eye(3, dtype=torch.float64)), randn(0, 1, 3)
    with pytest.raises(InputError, match="`filters`"):
        lanczos(operator, rows, [])
    with pytest.raises(InputError, match="needs `mean_eigenvalue`"):
        lanczos(operator, rows, [damped_inverse(Damping.relative(0.1))])
    basis = LanczosBasis(operator, rows)
    with pytest.raises(InputError, match="empty"):
        basis.ritz()
    with pytest.raises(InputError, match="at most dim = 3"):
        basis.extend(4)


def test_lanczos_in_float32():
    c, rows = with_spectrum(torch.logspace(-3, 0, 50)), randn(1, 3, 50)
    result = lanczos(DenseOperator(c.float()), rows.float(), [DampedInverse(0.01)], tolerance=1e-5)
    want = apply_filter_dense(c, DampedInverse(0.01), rows)
    assert result.solutions.dtype == torch.float32
    assert float((result.solutions[0] - want).norm() / want.norm()) < 1e-4


def test_largest_eigenvalue():
    c = with_spectrum(torch.linspace(-5.0, 3.0, 200))
    found = largest_eigenvalue(DenseOperator(c), steps=60, seed=1)
    assert 3.0 * 0.999 < found <= 3.0 + 1e-12
    assert found == largest_eigenvalue(DenseOperator(c), steps=60, seed=1)
    assert largest_eigenvalue(DenseOperator(with_spectrum([0.1, 0.2, 7.0]))) == pytest.approx(7.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), terms=st.integers(1, 60))
def test_neumann_series_is_a_horizon(seed, terms):
    a, rows = randn(seed, 4, 7) / 4, randn(seed + 1, 2, 7)
    lr = 1 / float(torch.linalg.matrix_norm(a, 2)) ** 2
    found = neumann_series(FactorOperator(a), rows, lr, terms)
    want = apply_filter_dense(a.T @ a, Horizon(Steps.of(lr, terms)), rows)
    assert_close(found, want, rtol=1e-10, atol=1e-10 * lr * terms)


def test_neumann_series_applies_the_operator_once_less_than_it_has_terms_and_refuses_to_overflow():
    counted = Counting(with_spectrum([0.5, 1.0]))
    neumann_series(counted.operator, randn(0, 1, 2), 0.1, 8)
    assert counted.calls == 7
    with pytest.raises(NumericalError, match="overflowed"):
        neumann_series(counted.operator, randn(0, 1, 2), 100.0, 500)
    with pytest.raises(InputError):
        neumann_series(counted.operator, randn(0, 1, 2), 0.1, 0)
