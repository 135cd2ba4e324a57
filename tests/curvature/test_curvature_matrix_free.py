"""Products without rows equal products with rows."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from whence.curvature import fit_fisher, fit_gauss_newton, matrix_free
from whence.curvature.linearized import LinearizedTrain
from whence.curvature.matrix_free import matrix_free_product, prefers_matrix_free
from whence.rng import torch_generator
from whence.testing.problems import PROBLEMS, classifier, linear_regression, mlp_regression

ROUNDING = 1e-12  # of the largest entry: float64 sums in another order
VMAPPED = sorted(set(PROBLEMS) - {"branching"})


def normal(name, *shape):
    return torch.randn(shape, generator=torch_generator(0, name), dtype=torch.float64)


def assert_equal_products(linear):
    factor = torch.cat([rows for _, rows in linear.factor_blocks()])
    directions = normal("directions", 5, linear.n_params)
    expected = directions @ factor.T @ factor
    found = matrix_free_product(linear, directions)
    assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))


@pytest.mark.parametrize("name", VMAPPED)
def test_products_equal_those_with_rows(name):
    problem = PROBLEMS[name]()
    assert_equal_products(LinearizedTrain.of(problem.task, problem.train))


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_of_fisher_matrices_too(fisher):
    problem = classifier()
    assert_equal_products(fit_fisher(problem.task, problem.train, fisher=fisher).linear)


def test_in_the_units_of_a_preconditioner_too():
    problem = classifier()
    linear = LinearizedTrain.of(problem.task, problem.train)
    assert_equal_products(replace(linear, scale=normal("scale", linear.n_params).abs() + 0.1))


def test_neither_examples_nor_directions_at_once_matter(monkeypatch):
    problem = mlp_regression()
    monkeypatch.setattr(matrix_free, "EXAMPLES", 5)
    monkeypatch.setattr(matrix_free, "DIRECTIONS", 2)
    assert_equal_products(LinearizedTrain.of(problem.task, problem.train))


def test_when_it_is_taken():
    def prefers(problem):
        return prefers_matrix_free(LinearizedTrain.of(problem.task, problem.train))

    assert not prefers(linear_regression())  # one row an example, and no more operations than a pass
    assert not prefers(PROBLEMS["conv"]())  # parameters are used at many positions
    assert not prefers(PROBLEMS["branching"]())  # it cannot be vmapped
    assert prefers(classifier_of(6))


def classifier_of(n_classes):
    from whence.data import Examples
    from whence.task import Task
    from whence.testing.problems import SmallProblem, mlp

    x, y = normal("x", 9, 3), torch.arange(9) % n_classes
    task = Task.classification(mlp(3, 5, n_classes))
    return SmallProblem(task, Examples((x, y)), Examples((x[:2], y[:2])))


def test_functions_of_the_curvature_are_the_same(monkeypatch):
    """The krylov form with and without rows, for every use it makes of its operator."""
    from whence.algebra import Damping, damped_inverse

    problem = classifier_of(6)
    rows = normal("rows", 3, problem.task.layout.n_params)
    free = fit_gauss_newton(problem.task, problem.train, form="krylov")
    assert prefers_matrix_free(free.linear)
    filter = free.resolve(damped_inverse(Damping.relative(0.1)))
    found = free.form.solve(filter, rows)
    monkeypatch.setattr("whence.curvature.krylov.prefers_matrix_free", lambda linear: False)
    stored = fit_gauss_newton(problem.task, problem.train, form="krylov")
    expected = stored.form.solve(filter, rows)
    assert_close(found, expected, rtol=0, atol=1e-7 * float(expected.abs().max()))  # Lanczos stops at 1e-8
    assert free.form.largest_eigenvalue == pytest.approx(stored.form.largest_eigenvalue, rel=1e-6)
