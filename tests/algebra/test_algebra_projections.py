"""Random projections: inner products kept in expectation, one matrix whatever the splitting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.algebra import projections
from whence.algebra.projections import PROJECTIONS, Projection
from whence.errors import InputError, ShapeError, UnknownNameError

EXACT = 1e-12  # sums of a few thousand products in another order
KINDS = sorted(PROJECTIONS)
# Sides that need several tiles of each kind once `small_tiles` is used.
N_PARAMS, DIM = 23, 12
UNIT_ROUNDING = 2.0**-24  # of float32


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(projections, "TILE_PARAMS", 5)
    monkeypatch.setattr(projections, "TILE_DIM", 4)
    monkeypatch.setattr(projections, "SPARSE_TILE_PARAMS", 5)


def products_by_seed(x, y, dim, kind, seeds):
    """<P^T x, P^T y> for each seed."""
    both = torch.stack([x, y])
    found = torch.stack([Projection(len(x), dim, s, kind).project(both) for s in range(seeds)])
    return (found[:, 0] * found[:, 1]).sum(1)


def stated_variance(x, y, dim, kind):
    wide = float((x @ x) * (y @ y) + (x @ y) ** 2)
    return (wide if kind == "normal" else wide - 2 * float((x**2 * y**2).sum())) / dim


@pytest.mark.parametrize("dim", [7, 8])  # one and four entries in a row of the sparse matrix
@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_unbiased_with_the_stated_variance(kind, dim):
    x, y = randn(0, 2, 30)
    seeds = 800
    products = products_by_seed(x, y, dim, kind, seeds)
    variance = stated_variance(x, y, dim, kind)
    # Five standard errors of the mean. The variance of products of kurtosis 5 has a standard error of 7 %.
    assert abs(float(products.mean() - x @ y)) < 5 * (variance / seeds) ** 0.5
    assert float(products.var()) == pytest.approx(variance, rel=0.35)


STRUCTURED = {
    "same index modulo dim": lambda n, dim: (torch.arange(n) % dim == 3).double(),
    "same index modulo a range": lambda n, dim: (torch.arange(n) % (dim // 4) == 1).double(),
    "constant": lambda n, dim: torch.ones(n, dtype=torch.float64),
    "neighbors": lambda n, dim: ((torch.arange(n) >= 40) & (torch.arange(n) < 50)).double(),
    "two far entries": lambda n, dim: ((torch.arange(n) == 0) | (torch.arange(n) == n - 1)).double(),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_patterns_do_not_meet_in_one_column(name, monkeypatch):
    """If all entries of x met in one column, the variance would be `dim` times the stated one."""
    monkeypatch.setattr(projections, "SPARSE_TILE_PARAMS", 200)
    n_params, dim, seeds = 320, 16, 300
    x = STRUCTURED[name](n_params, dim)
    products = products_by_seed(x, x, dim, "sparse", seeds)
    variance = stated_variance(x, x, dim, "sparse")
    assert abs(float(products.mean() - x @ x)) < 5 * (variance / seeds) ** 0.5
    # Squared norms have kurtosis up to 15: a standard error of 22 %.
    assert float(products.var()) == pytest.approx(variance, rel=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_entries_are_uncorrelated_across_tiles(kind, small_tiles):
    """Two tiles with one stream would show: P^T P and P P^T would leave the identity by whole tiles."""
    seeds = 250
    dense = torch.stack([Projection(N_PARAMS, DIM, s, kind).to_dense() for s in range(seeds)])
    flat = dense.flatten(1) * DIM**0.5
    covariance = flat.T @ flat / seeds
    # 76,176 estimates with standard error 1 / sqrt(seeds), the diagonal of normal and sparse ones sqrt(2) times that.
    assert float((covariance - torch.eye(len(covariance))).abs().max()) < 7.0 / seeds**0.5
    assert float(flat.mean(0).abs().max()) < 6.0 / seeds**0.5


def test_signs_are_signs():
    dense = Projection(40, 16, 3, "rademacher").to_dense()
    assert_close(dense.abs(), torch.full((40, 16), 0.25, dtype=torch.float64), rtol=0.0, atol=0.0)
    assert 0 < int((dense > 0).sum()) < dense.numel()


@pytest.mark.parametrize(("dim", "n_entries"), [(16, 4), (9, 3), (10, 2), (7, 1), (4, 4), (1, 1)])
def test_a_sparse_row_has_one_sign_in_each_range(dim, n_entries, small_tiles):
    dense = Projection(40, dim, 3, "sparse").to_dense()
    ranges = dense.reshape(40, n_entries, dim // n_entries)
    assert bool(((ranges != 0).sum(-1) == 1).all())
    size = torch.full((40, n_entries), n_entries**-0.5, dtype=torch.float64)
    assert_close(ranges.abs().sum(-1), size, rtol=EXACT, atol=0.0)
    assert 0 < int((dense > 0).sum()) < 40 * n_entries


@pytest.mark.parametrize("dim", [4 * 2**16, 4 * 2**16 + 4])
def test_a_sparse_matrix_of_very_many_columns(dim):
    """Places are drawn in 16 bits as long as a range has that many columns."""
    found = Projection(3, dim, 0, "sparse").project(torch.eye(3, dtype=torch.float64))
    assert_close(found.square().sum(1), torch.ones(3, dtype=torch.float64), rtol=EXACT, atol=0.0)
    assert int((found != 0).sum()) == 12
    assert int(found.nonzero()[:, 1].max()) >= 3 * dim // 4


def test_a_large_sparse_matrix_is_not_kept_and_the_same(monkeypatch):
    rows = randn(1, 7, N_PARAMS)
    kept = Projection(N_PARAMS, DIM, 5)
    wanted = kept.project(rows)
    assert "_kept" in kept._matrix.__dict__
    monkeypatch.setattr(projections, "KEPT_PARAMS", N_PARAMS - 1)
    drawn = Projection(N_PARAMS, DIM, 5)
    assert torch.equal(drawn.project(rows), wanted)
    assert "_kept" not in drawn._matrix.__dict__


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**62), cut=st.integers(1, 36), kind=st.sampled_from(KINDS))
def test_splitting_rows_changes_nothing(seed, cut, kind):
    rows = randn(1, 37, N_PARAMS)  # more than the sparse kind takes at a time
    projection = Projection(N_PARAMS, DIM, seed, kind)
    whole = projection.project(rows)
    assert_close(torch.cat([projection.project(part) for part in rows.split(cut)]), whole, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_project_and_lift_are_products_with_one_matrix(kind, small_tiles):
    projection = Projection(N_PARAMS, DIM, 5, kind)
    dense, rows, codes = projection.to_dense(), randn(1, 3, N_PARAMS), randn(2, 4, DIM)
    assert dense.shape == (N_PARAMS, DIM)
    assert_close(projection.project(rows), rows @ dense, rtol=EXACT, atol=EXACT)
    assert_close(projection.lift(codes), codes @ dense.T, rtol=EXACT, atol=EXACT)
    assert_close(projection.lift(torch.eye(DIM)), dense.T, rtol=EXACT, atol=EXACT)
    # <P^T x, c> = <x, P c>
    assert_close(projection.project(rows) @ codes.T, rows @ projection.lift(codes).T, rtol=EXACT, atol=EXACT)
    # P is linear.
    assert_close(
        projection.project(2 * rows[:1] - rows[1:2])[0], (2 * rows[0] - rows[1]) @ dense, rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize(("kind", "seam"), [("rademacher", 4096), ("normal", 4096), ("sparse", 16_384)])
def test_tiles_of_the_real_size_meet(kind, seam):
    dim = projections.TILE_DIM + 4
    projection = Projection(seam + 3, dim, 1, kind)
    # Rows that see one parameter each, on both sides of the seam.
    units = torch.zeros(4, seam + 3, dtype=torch.float64)
    units[range(4), [0, seam - 1, seam, seam + 2]] = 1.0
    found = projection.project(units)
    if kind == "rademacher":
        assert_close(found.abs(), torch.full_like(found, dim**-0.5), rtol=EXACT, atol=0.0)
    gram = found @ found.T
    # Products of two rows have a standard error of 1 / sqrt(dim), squared norms of normal ones sqrt(2) times that.
    assert float((gram - torch.eye(4)).abs().max()) < 5 / dim**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    first = Projection(N_PARAMS, DIM, 7, kind).to_dense()
    torch.manual_seed(0)  # no global state
    assert torch.equal(first, Projection(N_PARAMS, DIM, 7, kind).to_dense())
    assert not torch.equal(first, Projection(N_PARAMS, DIM, 8, kind).to_dense())


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_rows_lose_roundings_only(kind):
    n_params = 64
    rows = randn(0, 20, n_params).float()
    projection = Projection(n_params, 8, kind=kind)
    found, exact = projection.project(rows), projection.project(rows.double())
    assert found.dtype == torch.float64
    # Sums of at most 64 terms, each with one rounding of the entry, the product and the addition.
    bound = (n_params + 2) * UNIT_ROUNDING * rows.double().abs() @ projection.to_dense().abs()
    assert bool(((found - exact).abs() <= bound).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_projected_in_float32(kind, dtype):
    rows = randn(0, 3, N_PARAMS).to(dtype)
    projection = Projection(N_PARAMS, DIM, kind=kind)
    assert torch.equal(projection.project(rows), projection.project(rows.float()))


def test_rows_that_need_a_gradient_and_rows_that_are_views():
    wide = randn(0, 2 * N_PARAMS, 5).requires_grad_()
    projection = Projection(N_PARAMS, DIM)
    found = projection.project(wide[::2].T)
    assert not found.requires_grad
    assert_close(found, wide.detach()[::2].T @ projection.to_dense(), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_give_no_rows(kind):
    assert Projection(N_PARAMS, DIM, kind=kind).project(torch.ones(0, N_PARAMS)).shape == (0, DIM)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"n_params": 0}, InputError, "`n_params` must be an integer of at least 1"),
        ({"dim": 2.0}, InputError, "`dim` must be an integer of at least 1"),
        ({"seed": -1}, InputError, "`seed` must be an integer of at least 0"),
        ({"kind": "gaussian"}, UnknownNameError, "Known: normal, rademacher, sparse"),
    ],
)
def test_bad_fields_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        Projection(**{"n_params": 3, "dim": 2, **fields})


def test_rows_of_another_length_are_refused():
    with pytest.raises(ShapeError, match=r"`rows` must be .* \(\*, 3\); got \(2, 4\)"):
        Projection(3, 2).project(torch.ones(2, 4))
    with pytest.raises(ShapeError, match=r"`codes` must be .* \(\*, 2\); got \(2, 3\)"):
        Projection(3, 2).lift(torch.ones(2, 3))
