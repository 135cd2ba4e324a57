"""Bands of eigenvalues: contributions that add up, and weights that are a filter."""

import pytest
import torch
from torch import nn

from whence import Damping, Examples, GroupWeights, Task, attribute
from whence.algebra import Horizon, Steps, damped_inverse
from whence.algebra.filters import Banded, banded
from whence.curvature import fit_kronecker
from whence.errors import InputError, NotPositiveDefiniteError, UnknownNameError
from whence.weights import band_contributions, banded_filter, contributions, learn_weights

F64 = torch.float64
BASE = damped_inverse(Damping.absolute(0.5)).resolve()


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double().eval()
    x, y = torch.randn(30, 4, dtype=F64), torch.arange(30) % 3
    return Task.classification(model), Examples((x[:22], y[:22])), Examples((x[22:], y[22:]))


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_bands_add_up_to_the_scores(problem, method):
    task, train, queries = problem
    parts = band_contributions(task, train, queries, method, n_bands=4)
    whole = attribute(task, train, queries, method=method)
    torch.testing.assert_close(parts.values.sum(2), torch.as_tensor(whole.values))
    assert sum(parts.groups.sizes) == task.layout.n_params
    assert len(parts.groups) == 4
    assert (parts.unit, parts.orientation) == (whole.unit, 1.0)


def test_each_band_is_its_part_of_the_dense_spectrum(problem):
    task, train, queries = problem
    parts = band_contributions(task, train, queries, n_bands=3, damping=Damping.absolute(0.01))
    curvature = fit_kronecker(task, train).to_dense()
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(fn(task.outputs(task.model, b), b).sum(), task.model.parameters())])  # noqa: E501
        for examples, fn in ((queries, task.measure), (train, task.loss))
        for b in (examples.batch([k]) for k in range(len(examples)))
    ]  # fmt: skip
    a, b = torch.stack(rows[: len(queries)]), torch.stack(rows[len(queries) :])
    values, vectors = torch.linalg.eigh(curvature)
    low, high = parts.provenance["edges"]
    # The basis of a Kronecker spectrum and that of `eigh` differ within equal eigenvalues only.
    for k, inside in enumerate([values < low, (values >= low) & (values < high), values >= high]):
        f = inside / (values + 0.01)
        expected = (a @ vectors * f) @ vectors.T @ b.T / len(train)
        torch.testing.assert_close(parts.values[:, :, k], expected, rtol=1e-7, atol=1e-9)
        assert parts.groups.sizes[k] == int(inside.sum())


def test_weights_of_bands_are_a_filter(problem):
    task, train, queries = problem
    parts = band_contributions(task, train, queries, n_bands=4)
    weights = learn_weights(parts, "nnls", k=3, holdout=0)
    base = damped_inverse(Damping.absolute(parts.provenance["base"]["damping"])).resolve()
    found = attribute(task, train, queries, method="ekfac", filter=banded_filter(weights, parts, base))
    torch.testing.assert_close(torch.as_tensor(found.values), torch.as_tensor(parts.scores(weights).values))
    with pytest.raises(InputError, match="other groups"):
        banded_filter(GroupWeights.uniform(contributions(task, train, queries).groups), parts, base)
    with pytest.raises(InputError, match="not of bands"):
        banded_filter(weights, contributions(task, train, queries), base)


def test_edges_can_be_given_and_bad_ones_are_refused(problem):
    task, train, queries = problem
    assert band_contributions(task, train, queries, edges=[0.1]).groups.names == ("below 0.1", "0.1 and more")
    assert band_contributions(task, train, queries, n_bands=1).groups.names == ("all eigenvalues",)
    for options, error in [
        ({"edges": [0.2, 0.1]}, InputError),
        ({"edges": [0.0]}, InputError),
        ({"n_bands": 0}, InputError),
        ({"method": "grad_dot"}, UnknownNameError),
    ]:
        with pytest.raises(error):
            band_contributions(task, train, queries, **options)


@pytest.mark.parametrize("base", [BASE, Horizon(Steps.of(0.1, 20))], ids=["damped", "horizon"])
def test_a_banded_filter_is_its_base_times_factors(base):
    f = banded([0.5, 2.0], [3.0, 0.0, 1.5], base)
    s = torch.tensor([-0.01, 0.0, 1e-12, 0.49, 0.5, 1.9, 2.0, 7.0], dtype=F64)
    factors = torch.tensor([3.0, 3, 3, 3, 0, 0, 1.5, 1.5], dtype=F64)
    torch.testing.assert_close(f(s), factors * base(s))
    assert f.at_zero() == pytest.approx(3 * base.at_zero())
    away = s[3:]
    torch.testing.assert_close(f.complement(away), (f.at_zero() - f(away)) / away)
    torch.testing.assert_close(f.complement(s[1:3]), 3 * base.complement(s[1:3]))
    assert f.describe()["edges"] == [0.5, 2.0]
    with pytest.raises(InputError, match="one factor more"):
        Banded((1.0,), (1.0,), base)


def test_a_banded_filter_refuses_what_its_base_refuses():
    with pytest.raises(NotPositiveDefiniteError):
        banded([1.0], [1.0, 2.0], BASE).check(-0.6, 2.0)
