"""Row-wise correlations against scipy, and where they do not exist."""

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.evaluation import METRICS, cosine, pearson, spearman


def rows(seed, ties=False):
    x = torch.randn(6, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (2 * x).round() if ties else x


@pytest.mark.parametrize("ties", [False, True])
def test_pearson_and_spearman_equal_scipy(ties):
    x, y = rows(0, ties), rows(1, ties)
    expected = [scipy.stats.pearsonr(a, b).statistic for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    assert_close(pearson(x, y), torch.tensor(expected, dtype=torch.float64))
    expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    assert_close(spearman(x, y), torch.tensor(expected, dtype=torch.float64))


def test_cosine_by_hand_and_broadcast():
    x, y = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    assert_close(cosine(x, y), torch.tensor([0.96, -1.0], dtype=torch.float64))
    assert_close(cosine(x, y.expand(5, 2, 2)), torch.tensor([0.96, -1.0], dtype=torch.float64).expand(5, 2))


@pytest.mark.parametrize("scale", [1e-8, 1e-30, 1e-200, 1e200])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_tiny_and_huge_rows_are_not_clamped(name, scale):
    x, y = rows(2), rows(3)
    assert_close(METRICS[name](x, y * scale, None), METRICS[name](x, y, None))


def test_undefined_correlations_are_nan():
    x = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [float("nan"), 1.0, 2.0]])
    y = torch.tensor([[1.0, 2.0, 4.0]])
    assert cosine(x, y).isnan().tolist() == [True, False, True]
    assert pearson(x, y).isnan().all()
    assert spearman(x, y).isnan().all()
    assert spearman(y, x).isnan().all()


@settings(deadline=None, max_examples=25)
@given(st.floats(0.01, 100), st.floats(-5, 5))
def test_what_each_metric_ignores(scale, offset):
    x, y = rows(4), rows(5)
    assert_close(cosine(x, scale * y), cosine(x, y))
    assert_close(pearson(x, scale * y + offset), pearson(x, y))
    assert_close(spearman(x, y.exp()), spearman(x, y))


def test_pearson_centers_among_sets_of_one_size():
    sizes = (1, 1, 1, 9, 9, 9)
    x = torch.tensor([[1.0, 2.0, 3.0, 101.0, 102.0, 103.0]])
    y = torch.tensor([[-1.0, 0.0, 1.0, 51.0, 50.0, 49.0]])
    assert_close(pearson(x, y, sizes), torch.zeros(1, dtype=torch.float64))  # +1 among singles, -1 among nines
    assert float(pearson(x, y)) > 0.99  # all of it the sizes
    assert abs(float(spearman(x, y, sizes))) < 1e-12
