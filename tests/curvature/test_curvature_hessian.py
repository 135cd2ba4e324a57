"""The Hessian of small models against `torch.func.hessian` of the mean loss."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from whence.algebra import Damping, damped_inverse
from whence.curvature import fit_gauss_newton, fit_hessian, hessian_matrix
from whence.data import Examples
from whence.errors import NotPositiveDefiniteError, UnsupportedError
from whence.task import Task

F64 = torch.float64
ROUNDING = {"rtol": 1e-11, "atol": 1e-13}  # products and sums of about a hundred terms of size 1


def network(n_outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, n_outputs)).double().eval()


def inputs(n: int) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


def problem(kind: str, n: int = 7) -> tuple[Task, Examples]:
    if kind == "regression":
        y = torch.randn(n, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
        return Task.regression(network(2)), Examples((inputs(n), y))
    n_classes = 2 if kind == "binary" else 4
    return Task.classification(network(n_classes)), Examples((inputs(n), torch.arange(n) % n_classes))


def mean_loss(kind: str, outputs: Tensor, target: Tensor) -> Tensor:
    if kind == "regression":
        return nn.functional.mse_loss(outputs, target)
    return nn.functional.cross_entropy(outputs, target)


def dense_hessian(kind: str, task: Task, train: Examples) -> Tensor:
    x, y = train.all()
    named = {name: p.detach() for name, p in task.model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in named.values()]

    def loss(flat: Tensor) -> Tensor:
        pieces = zip(named.items(), flat.split(sizes), strict=True)
        state = {name: piece.reshape(p.shape) for (name, p), piece in pieces}
        return mean_loss(kind, functional_call(task.model, state, x), y)

    return hessian(loss)(torch.cat([p.flatten() for p in named.values()]))


@pytest.mark.parametrize("kind", ["regression", "binary", "four"])
def test_it_is_the_hessian_of_the_mean_loss(kind):
    task, train = problem(kind)
    found = hessian_matrix(task, train)
    torch.testing.assert_close(found, dense_hessian(kind, task, train), **ROUNDING)
    assert torch.equal(found, found.T)
    assert float(torch.linalg.eigvalsh(found)[0]) < -1e-3  # the true one is indefinite here: Gauss-Newton is not


def test_frozen_parameters_stay_out():
    task, train = problem("regression")
    task.model[0].weight.requires_grad_(False)
    twin = Task.regression(task.model)
    torch.testing.assert_close(hessian_matrix(twin, train), dense_hessian("regression", twin, train), **ROUNDING)


@pytest.mark.parametrize(("batch", "vectors"), [(1, 1), (3, 5), (100, 100)])
def test_blocks_do_not_change_it(batch, vectors, monkeypatch):
    task, train = problem("four")
    wanted = hessian_matrix(task, train)
    monkeypatch.setattr("whence.curvature.hessian.BATCH", batch)
    monkeypatch.setattr("whence.curvature.hessian.VECTORS", vectors)
    torch.testing.assert_close(hessian_matrix(task, train), wanted, **ROUNDING)


@pytest.mark.parametrize("kind", ["regression", "four"])
def test_of_a_linear_model_it_is_gauss_newton(kind):
    n_outputs = {"regression": 2, "four": 4}[kind]
    build = {"regression": Task.regression, "four": Task.classification}[kind]
    task, train = build(nn.Linear(3, n_outputs).double().eval()), problem(kind)[1]
    factor = torch.cat([rows for _, rows in fit_gauss_newton(task, train).linear.factor_blocks()])
    torch.testing.assert_close(hessian_matrix(task, train), factor.T @ factor, **ROUNDING)


def test_an_indefinite_one_with_too_little_damping_is_refused_with_its_smallest_eigenvalue():
    task, train = problem("regression")
    spectrum = fit_hessian(task, train)
    smallest = float(torch.linalg.eigvalsh(dense_hessian("regression", task, train))[0])
    row = torch.ones(1, spectrum.dim, dtype=F64)
    with pytest.raises(NotPositiveDefiniteError, match="smallest eigenvalue of the curvature is " + f"{smallest:.4g}"):
        spectrum.apply(damped_inverse(Damping.absolute(-0.9 * smallest)), row)
    damping = -1.5 * smallest
    eye = torch.eye(spectrum.dim, dtype=F64)
    wanted = torch.linalg.solve(dense_hessian("regression", task, train) + damping * eye, row.T).T
    found = spectrum.apply(damped_inverse(Damping.absolute(damping)), row)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)  # condition number of about 100


def test_too_many_parameters_are_refused_before_any_product_and_others_are_named():
    model = nn.Linear(6000, 1).double().eval()
    train = Examples((torch.zeros(2, 6000, dtype=F64), torch.zeros(2, 1, dtype=F64)))
    with pytest.raises(UnsupportedError, match=r"6001 parameters .* 6000.*influence_gn"):
        hessian_matrix(Task.regression(model), train)
