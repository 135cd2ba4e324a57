"""Inner products and cosines."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.algebra import pairwise, pairwise_cosine
from whence.errors import ShapeError


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 20), block_dim=st.integers(1, 25))
def test_blocks_do_not_change_products(seed, dim, block_dim):
    x, y = randn(seed, 3, dim), randn(seed + 1, 4, dim)
    want = torch.einsum("md,kd->mk", x.double(), y.double())
    assert_close(pairwise(x, y), want, rtol=1e-13, atol=1e-13)
    assert_close(pairwise(x, y, block_dim=block_dim), want, rtol=1e-13, atol=1e-13)


def test_products_are_accumulated_in_float64():
    """1e8 + 1 - 1e8 is 0 in float32."""
    x, y = torch.tensor([[1e8, 1.0, -1e8]]), torch.ones(1, 3)
    assert pairwise(x, y).item() == 1.0


def test_cosine_of_a_zero_row_is_undefined_and_of_a_short_row_is_not():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-30, 4e-30]])
    cosines = pairwise_cosine(x, torch.tensor([[1.0, 0.0]]))
    assert_close(cosines[[0, 2], 0], torch.tensor([0.6, 0.6]).double(), rtol=1e-6, atol=0.0)
    assert cosines[1].isnan().all()


def test_shapes_are_named():
    with pytest.raises(ShapeError, match="`x_rows`"):
        pairwise(torch.ones(3), torch.ones(2, 3))
    with pytest.raises(ShapeError, match="`y_rows`"):
        pairwise(torch.ones(2, 3), torch.ones(2, 4))
