"""Parameters that a module uses itself: one row for each example, or another path where that is not what they are."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from whence.curvature import fit_kronecker
from whence.data import Examples
from whence.gradients import hook_coverage, loss_gradients, loss_products
from whence.gradients.route import route_of
from whence.rng import torch_generator
from whence.task import Task

ROUNDING = 1e-12  # of the largest entry: float64 sums of at most a few hundred products, in another order
LONG, D = 5, 4


def normal(name, *shape):
    return torch.randn(shape, generator=torch_generator(0, name), dtype=torch.float64)


def task_of(model):
    model = model.double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.4 * normal(name, *p.shape) + 0.1)
    return Task(model, outputs=lambda model, x: model(x).flatten(1), loss=mean_square)


def mean_square(outputs, batch):
    return outputs.square().mean(1)


def data(n=6, length=LONG):
    return Examples(normal("x", n, length, D))


def assert_same(task, examples):
    expected = torch.cat([rows for _, rows in loss_gradients(task, examples, path="loop")])
    assert all(bool(x.any()) for x in task.layout.unflatten(expected).values())
    found = {path: torch.cat([r for _, r in loss_gradients(task, examples, path=path)]) for path in ("auto", "hooks")}
    for rows in found.values():
        assert_close(rows, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
    directions = normal("directions", 3, task.layout.n_params)
    products = torch.cat([values for _, values in loss_products(task, examples, directions)], 1)
    bound = ROUNDING * float((directions.norm(dim=1)[:, None] * expected.norm(dim=1)).max())
    assert_close(products, directions @ expected.T, rtol=0, atol=bound)


class Vision(nn.Module):
    """A class token, joined, and a table of positions, added."""

    def __init__(self):
        super().__init__()
        self.token, self.places = nn.Parameter(torch.empty(1, 1, D)), nn.Parameter(torch.empty(1, LONG + 3, D))
        self.mix, self.head = nn.Linear(D, D), nn.Linear(D, 2)

    def joined(self, x):
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1)

    def placed(self, x):
        return x + self.places[:, : x.shape[1]]

    def forward(self, x):
        x = torch.tanh(self.mix(self.placed(self.joined(x))))
        return self.head(torch.tanh(x.mean(1) * x[:, 0]))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_token_and_a_table_of_positions(n):
    task, examples = task_of(Vision()), data(n)
    assert hook_coverage(task, examples).fallback == {}
    assert route_of(task, examples).path == "hooks"
    assert_same(task, examples)
    assert "forward" not in vars(task.model)
    assert all(type(p) is nn.Parameter for p in task.model._parameters.values())


def test_a_module_that_is_called_twice():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = Vision(), nn.Linear(2, D)

        def forward(self, x):
            return self.inner(self.last(self.inner(x))[:, None] + x)

    assert_same(task_of(Nested()), data())


def test_frozen_beside_tracked():
    model = Vision()
    model.places.requires_grad_(False)
    task = task_of(model)
    assert hook_coverage(task, data()).fallback == {}
    assert_same(task, data())


def test_they_have_the_diagonal_of_the_curvature():
    task, examples = task_of(Vision()), data()
    found = fit_kronecker(task, examples, fisher="empirical")
    assert set(found.diagonal) == {"token", "places"}
    rows = torch.cat([r for _, r in loss_gradients(task, examples, path="loop")])
    for name, x in task.layout.unflatten(rows).items():
        if name in found.diagonal:
            assert_close(found.diagonal[name], x.flatten(1).square().mean(0), rtol=1e-10, atol=1e-14)


class Repeats(Vision):
    """Counts on one row."""

    def joined(self, x):
        return torch.cat([self.token.repeat(len(x), 1, 1), x], 1)


class TakesTheFirst(Vision):
    """Looks at the first row alone, which then has the gradients of all."""

    def placed(self, x):
        return x + self.places[0, : x.shape[1]]


class Normalizes(Vision):
    """Divides by something of all rows."""

    def placed(self, x):
        return x + (self.places / self.places.norm())[:, : x.shape[1]]


@pytest.mark.parametrize(
    "make, fallback",
    [
        (Repeats, dict.fromkeys(("token", "places"), "the model does not run with one for each example")),
        (TakesTheFirst, {"places": "in its TakesTheFirst, the rows of an input are not in the order of the examples"}),
        (Normalizes, {"places": "in its Normalizes, the rows of an input are not in the order of the examples"}),
    ],
)
def test_other_uses_fall_back(make, fallback):
    task, examples = task_of(make()), data()
    assert hook_coverage(task, examples).fallback == fallback
    assert route_of(task, examples).path == "vmap"
    assert_same(task, examples)


def test_one_that_is_used_outside_its_module_falls_back():
    task = task_of(Vision())
    task = Task(task.model, outputs=lambda model, x: model(x) * model.token.sum(), loss=mean_square)
    assert hook_coverage(task, data()).fallback == {"token": "it is used outside the calls of its layer"}
    assert_same(task, data())


def test_other_shapes_have_no_rule():
    class Scaled(Vision):
        def __init__(self):
            super().__init__()
            self.scale, self.matrix = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(D, D))

        def placed(self, x):
            return super().placed(x) * self.scale @ self.matrix

    task = task_of(Scaled())
    assert hook_coverage(task, data()).fallback == dict.fromkeys(("scale", "matrix"), "Scaled has no rule")
    assert_same(task, data())


def test_a_use_that_the_first_examples_do_not_show_is_found_out():
    """The spot check against plain autograd, as for layers."""

    class Later(Vision):
        def placed(self, x):
            return x + self.places[:1, : x.shape[1]] if len(x) > 3 else super().placed(x)

    task, examples = task_of(Later()), data()
    assert route_of(task, examples).path == "hooks"
    found = torch.cat([r for _, r in loss_gradients(task, examples)])
    expected = torch.cat([r for _, r in loss_gradients(task, examples, path="loop")])
    assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
