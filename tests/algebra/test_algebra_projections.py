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
N_PARAMS, DIM = 23, 11


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(projections, "TILE_PARAMS", 5)
    monkeypatch.setattr(projections, "TILE_DIM", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_unbiased_with_the_stated_variance(kind):
    x, y = randn(0, 2, 30)
    dim, seeds = 8, 1500
    found = torch.stack([Projection(30, dim, s, kind).project(torch.stack([x, y])) for s in range(seeds)])
    products = (found[:, 0] * found[:, 1]).sum(1)
    variance = float((x @ x) * (y @ y) + (x @ y) ** 2)
    if kind == "rademacher":
        variance -= 2 * float((x**2 * y**2).sum())
    variance /= dim
    # Five standard errors of the mean. The variance of products of kurtosis 5 has a standard error of 5 %.
    assert abs(float(products.mean() - x @ y)) < 5 * (variance / seeds) ** 0.5
    assert float(products.var()) == pytest.approx(variance, rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_entries_are_uncorrelated_across_tiles(kind, small_tiles):
    """Two tiles with one stream would show: P^T P and P P^T would leave the identity by whole tiles."""
    seeds = 500
    dense = torch.stack([Projection(N_PARAMS, DIM, s, kind).to_dense() for s in range(seeds)])
    flat = dense.flatten(1) * DIM**0.5
    covariance = flat.T @ flat / seeds
    # 64,009 estimates with standard error 1 / sqrt(seeds), the diagonal of normal ones sqrt(2) times that.
    assert float((covariance - torch.eye(len(covariance))).abs().max()) < 7.0 / seeds**0.5
    assert float(flat.mean(0).abs().max()) < 6.0 / seeds**0.5


def test_signs_are_signs():
    dense = Projection(40, 16, 3).to_dense()
    assert_close(dense.abs(), torch.full((40, 16), 0.25, dtype=torch.float64), rtol=0.0, atol=0.0)
    assert 0 < int((dense > 0).sum()) < dense.numel()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**62), cut=st.integers(1, 6), kind=st.sampled_from(KINDS))
def test_splitting_rows_changes_nothing(seed, cut, kind):
    rows = randn(1, 7, N_PARAMS)
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
    # <P^T x, c> = <x, P c>
    assert_close(projection.project(rows) @ codes.T, rows @ projection.lift(codes).T, rtol=EXACT, atol=EXACT)
    # P is linear.
    assert_close(
        projection.project(2 * rows[:1] - rows[1:2])[0], (2 * rows[0] - rows[1]) @ dense, rtol=EXACT, atol=EXACT
    )


def test_tiles_of_the_real_size_meet():
    n_params, dim = projections.TILE_PARAMS + 3, projections.TILE_DIM + 2
    projection = Projection(n_params, dim, 1)
    # Rows that see one parameter each, on both sides of the seam.
    units = torch.zeros(4, n_params, dtype=torch.float64)
    units[range(4), [0, projections.TILE_PARAMS - 1, projections.TILE_PARAMS, n_params - 1]] = 1.0
    found = projection.project(units)
    assert_close(found.abs(), torch.full_like(found, dim**-0.5), rtol=EXACT, atol=0.0)
    gram = found @ found.T
    assert float((gram - torch.eye(4)).abs().max()) < 5 / dim**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    first = Projection(N_PARAMS, DIM, 7, kind).to_dense()
    torch.manual_seed(0)  # no global state
    assert torch.equal(first, Projection(N_PARAMS, DIM, 7, kind).to_dense())
    assert not torch.equal(first, Projection(N_PARAMS, DIM, 8, kind).to_dense())


def test_single_precision_rows_are_projected_in_float64():
    rows = randn(0, 2, N_PARAMS).float()
    found = Projection(N_PARAMS, DIM).project(rows)
    assert found.dtype == torch.float64
    assert torch.equal(found, Projection(N_PARAMS, DIM).project(rows.double()))


def test_no_rows_give_no_rows():
    assert Projection(N_PARAMS, DIM).project(torch.ones(0, N_PARAMS)).shape == (0, DIM)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"n_params": 0}, InputError, "`n_params` must be an integer of at least 1"),
        ({"dim": 2.0}, InputError, "`dim` must be an integer of at least 1"),
        ({"seed": -1}, InputError, "`seed` must be an integer of at least 0"),
        ({"kind": "gaussian"}, UnknownNameError, "Known: normal, rademacher"),
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
