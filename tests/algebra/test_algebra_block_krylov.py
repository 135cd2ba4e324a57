"""Block Krylov solutions of shifted systems against dense solves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.algebra import CallbackOperator, DenseOperator, FactorOperator, conjugate_gradient
from whence.algebra.block_krylov import block_krylov
from whence.errors import (
    ConvergenceError,
    InputError,
    NonFiniteError,
    NotPositiveDefiniteError,
    NumericalError,
    ShapeError,
)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues in a random basis."""
    s = torch.as_tensor(eigenvalues, dtype=torch.float64)
    q, _ = torch.linalg.qr(randn(seed, len(s), len(s)))
    return q @ torch.diag(s) @ q.T


class Counting:
    """On how many rows an operator was applied, call by call."""

    def __init__(self, matrix):
        self.rows = []
        self.operator = CallbackOperator(len(matrix), self.product, matrix.dtype)
        self.matrix = matrix

    def product(self, rows):
        self.rows.append(len(rows))
        return rows @ self.matrix


def assert_solves(matrix, rows, shifts, result, tolerance):
    """The error is at most |system^-1| times the residual, which is known up to the rounding of one product."""
    eps = torch.finfo(result.solutions.dtype).eps
    matrix, rows = matrix.double(), rows.double()
    assert bool(result.converged.all())
    assert bool((result.relative_residuals <= tolerance).all())
    for shift, found in zip(shifts, result.solutions.double(), strict=True):
        system = matrix + shift * torch.eye(len(matrix), dtype=torch.float64)
        error = (found - torch.linalg.solve(system, rows.T).T).norm(dim=1)
        rounding = len(matrix) * eps * torch.linalg.matrix_norm(system) * found.norm(dim=1)
        bound = torch.linalg.matrix_norm(torch.linalg.inv(system), ord=2) * (tolerance * rows.norm(dim=1) + rounding)
        assert bool((error <= bound).all()), (shift, error / bound)


def test_block_krylov_is_the_dense_solution_for_every_shift():
    c = with_spectrum(torch.logspace(-5, 0, 120))
    rows, shifts = randn(1, 6, 120), [0.1, 1e-3, 3.0, 0.01]
    counted = Counting(c)
    progress = []
    result = block_krylov(
        counted.operator,
        rows,
        shifts,
        tolerance=1e-8,
        progress=lambda step, residual: progress.append((step, residual)),
    )
    assert_solves(c, rows, shifts, result, 1e-8)
    assert len(counted.rows) == result.iterations + len(shifts)
    assert sum(counted.rows[: result.iterations]) < 120  # converged, not complete
    assert [step for step, _ in progress] == list(range(1, result.iterations + 1))
    assert progress[-1][1] <= 1e-8 < progress[-2][1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dim=st.integers(1, 15),
    rank=st.integers(1, 20),
    m=st.integers(1, 20),
    shifts=st.lists(st.floats(1e-3, 10), min_size=1, max_size=4),
)
def test_block_krylov_solves_random_systems(seed, dim, rank, m, shifts):
    a, rows = randn(seed, rank, dim), randn(seed + 1, m, dim)
    counted = Counting(a.T @ a)
    result = block_krylov(counted.operator, rows, shifts, tolerance=1e-10)
    assert_solves(a.T @ a, rows, shifts, result, 1e-10)
    assert sum(counted.rows[: result.iterations]) <= dim


def test_dependent_and_zero_rows_cost_nothing():
    c, independent = with_spectrum(torch.logspace(-3, 0, 60)), randn(1, 3, 60)
    mixed = torch.cat([independent, randn(2, 5, 3) @ independent, torch.zeros(2, 60).double(), 1e-9 * independent[:1]])
    rows = torch.cat([mixed, mixed])
    alone, together = Counting(c), Counting(c)
    one = block_krylov(alone.operator, independent, [0.01, 0.1], tolerance=1e-8)
    result = block_krylov(together.operator, rows, [0.01, 0.1], tolerance=1e-8)
    assert_solves(c, rows, [0.01, 0.1], result, 1e-8)
    assert max(together.rows[: result.iterations]) == 3
    # Mixed rows may need the last directions a little longer, or a step more, than those they are mixed of.
    assert sum(together.rows[: result.iterations]) <= sum(alone.rows[: one.iterations]) + 3
    zeros = rows.norm(dim=1) == 0
    assert not bool(result.solutions[:, zeros].any())
    assert not bool(result.relative_residuals[:, zeros].any())


def test_solved_rows_are_not_multiplied_any_more():
    c = with_spectrum(torch.logspace(-3, 0, 60))
    vectors = torch.linalg.eigh(c).eigenvectors.T
    rows = torch.cat([randn(1, 1, 60), vectors[:10]])  # the eigenvectors are solved after one product
    counted = Counting(c)
    result = block_krylov(counted.operator, rows, [0.01], tolerance=1e-8)
    assert_solves(c, rows, [0.01], result, 1e-8)
    assert counted.rows[: result.iterations] == [11] + [1] * (result.iterations - 1)


def test_solved_rows_do_not_add_up():
    c = with_spectrum(torch.logspace(-3, 0, 60))
    vectors = torch.linalg.eigh(c).eigenvectors.T
    # After one product 2e-7 along one direction is left of each of these: solved, though together they are 2e-6.
    rows = torch.cat([randn(1, 1, 60), (vectors[-1:] + 2e-7 * vectors[:1]).expand(100, -1)])
    counted = Counting(c)
    result = block_krylov(counted.operator, rows, [0.01], tolerance=1e-6)
    assert_solves(c, rows, [0.01], result, 1e-6)
    assert counted.rows[: result.iterations] == [2] + [1] * (result.iterations - 1)


def test_more_rows_than_dimensions_need_one_product():
    c, rows = with_spectrum(torch.linspace(0, 1, 12)), randn(1, 30, 12)
    counted = Counting(c)
    result = block_krylov(counted.operator, rows, [0.1, 1e-3], tolerance=1e-10)
    assert_solves(c, rows, [0.1, 1e-3], result, 1e-10)
    assert counted.rows == [12, 30, 30]


def test_no_rows_and_no_curvature():
    nothing = block_krylov(DenseOperator(torch.eye(4)), torch.zeros(0, 4), [0.1])
    assert nothing.solutions.shape == (1, 0, 4)
    assert block_krylov(DenseOperator(torch.eye(4)), torch.zeros(3, 4), [0.1]).iterations == 0
    rows = randn(0, 3, 4)
    flat = block_krylov(DenseOperator(torch.zeros(4, 4).double()), rows, [0.5])
    assert_close(flat.solutions[0], 2 * rows, rtol=1e-12, atol=1e-12)
    assert flat.iterations == 1


def test_rows_in_the_range_of_a_singular_operator_need_no_shift():
    a = randn(0, 4, 30)
    rows = randn(1, 2, 4) @ a
    result = block_krylov(FactorOperator(a), rows, [0.0], tolerance=1e-10)
    assert_close(result.solutions[0], rows @ torch.linalg.pinv(a.T @ a, rtol=1e-9), rtol=1e-6, atol=1e-8)


def test_order_of_rows_and_shifts_changes_nothing():
    c, rows = with_spectrum(torch.logspace(-4, 0, 80)), randn(1, 7, 80)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    one = block_krylov(DenseOperator(c), rows, [0.1, 1e-3], tolerance=1e-6)
    two = block_krylov(DenseOperator(c), rows[order], [1e-3, 0.1], tolerance=1e-6)
    # The same space: they differ by rounding, times the condition number 1000, and not by the tolerance.
    assert_close(one.solutions[:, order], two.solutions.flip(0), rtol=0.0, atol=1e-9 * float(one.solutions.norm()))
    assert one.iterations == two.iterations


def test_block_krylov_multiplies_fewer_rows_than_conjugate_gradients():
    spectrum = torch.arange(1, 401, dtype=torch.float64) ** -1.5
    c, rows = with_spectrum(spectrum), randn(1, 40, 400)
    block, single = Counting(c), Counting(c)
    result = block_krylov(block.operator, rows, [0.01, 0.1])
    conjugate_gradient(single.operator, rows, [0.01, 0.1])
    assert_solves(c, rows, [0.01, 0.1], result, 1e-5)
    assert sum(block.rows) < sum(single.rows)
    assert len(block.rows) < len(single.rows)


def test_block_krylov_in_single_precision():
    c = with_spectrum(torch.arange(1, 201, dtype=torch.float64) ** -1.5).float()
    rows = randn(1, 20, 200).float()
    rows[5] = rows[4] * (1 + 1e-6)
    result = block_krylov(DenseOperator(c), rows, [0.1, 0.01], tolerance=1e-4)
    assert result.solutions.dtype == torch.float32
    assert result.relative_residuals.dtype == torch.float64
    assert_solves(c, rows, [0.1, 0.01], result, 1e-4)
    with pytest.raises(ConvergenceError, match="float64 rows and operator"):
        block_krylov(DenseOperator(c), rows, [1e-3], tolerance=1e-9)


def test_rounding_of_the_products_is_corrected():
    c, rows = with_spectrum(torch.linspace(0, 1, 8)), randn(1, 8, 8)
    products = []

    def rounded_first(x):
        products.append(len(x))
        return x @ c * (1.0001 if len(products) == 1 else 1.0)

    result = block_krylov(CallbackOperator(8, rounded_first, torch.float64), rows, [0.1], tolerance=1e-6)
    assert_solves(c, rows, [0.1], result, 1e-6)
    assert result.iterations == 1


def test_block_krylov_says_when_the_basis_is_full():
    c, rows = with_spectrum(torch.logspace(-6, 0, 80)), randn(1, 4, 80)
    with pytest.raises(ConvergenceError, match=r"4 of 4 systems.*10 basis vectors.*`conjugate_gradient`.*`max_basis`"):
        block_krylov(DenseOperator(c), rows, [1e-5], max_basis=10)
    counted = Counting(c)
    result = block_krylov(counted.operator, rows, [1e-5, 1e6], max_basis=10, allow_unconverged=True)
    assert counted.rows == [4, 4, 2, 4, 4]
    assert result.iterations == 3
    assert result.converged.tolist() == [[False] * 4, [True] * 4]
    want = (rows - result.solutions[0] @ c - 1e-5 * result.solutions[0]).norm(dim=1) / rows.norm(dim=1)
    assert_close(result.relative_residuals[0], want, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("max_basis", [2, 4, 9])
def test_estimated_residuals_are_the_true_ones(max_basis):
    c, rows = with_spectrum(torch.linspace(0, 1, 80)), randn(1, 4, 80)
    estimated = []
    result = block_krylov(
        DenseOperator(c),
        rows,
        [1.0, 0.1],
        max_basis=max_basis,
        allow_unconverged=True,
        progress=lambda _, residual: estimated.append(residual),
    )
    # float64 and a condition number of 10: nothing but rounding is between them.
    assert estimated[-1] == pytest.approx(float(result.relative_residuals.max()), rel=1e-9)


def test_block_krylov_refuses_what_it_cannot_solve():
    indefinite = DenseOperator(with_spectrum([-1.0, 0.5, 2.0]))
    rows = randn(0, 2, 3)
    with pytest.raises(NotPositiveDefiniteError, match=r"curvature -0\..*shift 0.1 included.*damping"):
        block_krylov(indefinite, rows, [5.0, 0.1])
    assert_solves(indefinite.matrix, rows, [1.5], block_krylov(indefinite, rows, [1.5]), 1e-5)
    with pytest.raises(InputError, match="`shifts`"):
        block_krylov(indefinite, rows, [])
    with pytest.raises(InputError, match="`max_basis`"):
        block_krylov(indefinite, rows, [2.0], max_basis=0)
    with pytest.raises(NonFiniteError, match="row 1"):
        block_krylov(indefinite, torch.tensor([[0.0] * 3, [float("nan")] * 3]).double(), [2.0])
    with pytest.raises(NumericalError, match="NaN or infinite"):
        block_krylov(CallbackOperator(3, lambda x: x / 0, torch.float64), rows, [2.0])
    with pytest.raises(ShapeError, match="right-hand sides"):
        block_krylov(indefinite, rows[0], [2.0])
