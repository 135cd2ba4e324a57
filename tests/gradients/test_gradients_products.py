"""Products without rows equal products with rows; and a model that is not what its first examples say is found out."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from whence.data import Examples
from whence.errors import NonFiniteError
from whence.gradients import gradient_products, loss_gradients, loss_products, measure_gradients, pairs, products, route
from whence.gradients.route import choose_path, route_of, to_check
from whence.rng import torch_generator
from whence.task import Task
from whence.testing.problems import PROBLEMS, mlp

ROUNDING = 1e-12  # of |row| |direction|: float64 sums of at most a few thousand products, in another order


def directions_for(task, m=3, dtype=torch.float64):
    return torch.randn(m, task.layout.n_params, generator=torch_generator(0, "directions"), dtype=dtype)


def rows_by_loop(task, examples):
    return torch.cat([rows for _, rows in loss_gradients(task, examples, path="loop")])


def products_of(task, examples, directions, **options):
    return torch.cat([found for _, found in loss_products(task, examples, directions, **options)], 1)


def assert_equal_products(task, examples, **options):
    directions = directions_for(task)
    rows = rows_by_loop(task, examples)
    found = products_of(task, examples, directions, **options)
    assert found.dtype == torch.float64
    bound = ROUNDING * float((directions.norm(dim=1)[:, None] * rows.norm(dim=1)).max())
    assert_close(found, directions @ rows.T, rtol=0, atol=bound)


@pytest.mark.parametrize("name", PROBLEMS)
def test_products_equal_those_with_rows(name):
    problem = PROBLEMS[name]()
    assert_equal_products(problem.task, problem.train)


@pytest.mark.parametrize("name", PROBLEMS)
def test_directions_that_are_zero_in_whole_layers_have_the_same_products(name):
    problem = PROBLEMS[name]()
    layout = problem.task.layout
    of_tensor = torch.arange(len(layout.sizes)).repeat_interleave(torch.tensor(layout.sizes))
    masks = of_tensor == torch.arange(len(layout.sizes) + 1)[:, None]  # the last one keeps nothing
    directions = (directions_for(problem.task)[:, None] * masks).flatten(0, 1)
    rows = rows_by_loop(problem.task, problem.train)
    found = products_of(problem.task, problem.train, directions)
    bound = ROUNDING * float((directions.norm(dim=1)[:, None] * rows.norm(dim=1)).max())
    assert_close(found, directions @ rows.T, rtol=0, atol=bound)


def test_a_layer_is_multiplied_with_the_directions_that_are_not_zero_in_it(monkeypatch):
    problem = PROBLEMS["mlp"]()
    seen = []
    product = products.product_of_layer
    monkeypatch.setattr(
        products, "product_of_layer", lambda g, own: seen.append(len(next(iter(own.values())))) or product(g, own)
    )
    directions = directions_for(problem.task, m=4)
    first = problem.task.layout.sizes[0]
    directions[1:, :first] = 0  # one direction has something in the first weight, all have in its bias
    products_of(problem.task, problem.train, directions)
    assert set(seen) == {4}
    seen.clear()
    directions[2:] = 0
    directions[2:, -1] = 1  # in the last bias only
    products_of(problem.task, problem.train, directions)
    assert set(seen) == {2, 4}


@pytest.mark.parametrize("name", ["mlp", "conv", "tied", "embedding"])
def test_neither_the_buffer_nor_the_blocks_matter(monkeypatch, name):
    problem = PROBLEMS[name]()
    monkeypatch.setattr(products, "BUFFER", 1)  # one example at a time
    monkeypatch.setattr(products, "PASS_EXAMPLES", 5)
    assert_equal_products(problem.task, problem.train)


def test_blocks_are_in_order_and_cover_everything(monkeypatch):
    monkeypatch.setattr(products, "PASS_EXAMPLES", 5)
    problem = PROBLEMS["mlp"]()
    parts = [part for part, _ in loss_products(problem.task, problem.train, directions_for(problem.task))]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(problem.train)))


def test_float32_products_are_near_those_in_float64():
    problem = PROBLEMS["mlp"]()
    directions = directions_for(problem.task)
    exact = products_of(problem.task, problem.train, directions)
    found = products_of(problem.task, problem.train, directions, dtype=torch.float32)
    rows = rows_by_loop(problem.task, problem.train)
    scale = directions.norm(dim=1)[:, None] * rows.norm(dim=1)
    gap = ((found - exact).abs() / scale).max()
    assert 0 < float(gap) < 20 * torch.finfo(torch.float32).eps * problem.task.layout.n_params**0.5


class Root(nn.Module):
    """A root has no slope at zero."""

    def forward(self, x):
        return x.square().sqrt()


def test_a_gradient_that_is_not_finite_is_named():
    x, y = (torch.randn(9, k, generator=torch_generator(0, "root"), dtype=torch.float64) for k in (3, 1))
    x[7] = 0
    layer = nn.Linear(3, 1, bias=False).double()
    task = Task.regression(nn.Sequential(layer, Root()).eval())
    examples = Examples((x, y), ids=["a", "b", "c", "d", "e", "f", "g", "seven", "h"])
    with pytest.raises(NonFiniteError, match="'seven'"):
        products_of(task, examples, directions_for(task))


class Turning(nn.Module):
    """Turns batches of more than three examples around in its middle: what its probes do not show."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.second(h.flip(0)).flip(0) if len(x) > 3 else self.second(h)


@pytest.fixture
def turning():
    torch.manual_seed(0)
    generator = torch_generator(0, "turning")
    x, y = (torch.randn(9, k, generator=generator, dtype=torch.float64) for k in (3, 1))
    return Task.regression(Turning().double().eval()), Examples((x, y))


def test_a_model_that_treats_larger_batches_otherwise_is_found_out(turning):
    task, examples = turning
    assert choose_path(task, examples) == "hooks"
    found = torch.cat([rows for _, rows in loss_gradients(task, examples)])
    assert_close(found, rows_by_loop(task, examples), rtol=0, atol=1e-12)
    assert_equal_products(task, examples)


def test_without_the_spot_check_it_would_not_be(turning, monkeypatch):
    """The test above can fail."""
    task, examples = turning
    monkeypatch.setattr(products, "to_check", lambda part: None)
    directions = directions_for(task)
    found = products_of(task, examples, directions)
    assert float((found - directions @ rows_by_loop(task, examples).T).abs().max()) > 1e-3


def test_one_example_in_64_is_checked_and_the_first():
    checked = []
    for start in range(0, 1000, 7):
        part = slice(start, start + 7)
        example = to_check(part)
        checked += [] if example is None else [start + example]
    assert checked == list(range(0, 1001, 64))
    assert to_check(slice(0, 500)) == 0


def test_the_route_is_found_once_and_again_for_other_modules(monkeypatch):
    calls = []
    find = route.right_plan
    monkeypatch.setattr(route, "right_plan", lambda *rest: calls.append(1) or find(*rest))
    problem = PROBLEMS["mlp"]()
    assert route_of(problem.task, problem.train) is route_of(problem.task, problem.train)
    assert len(calls) == 1
    problem.task.model[0] = nn.Linear(3, problem.task.model[0].out_features).double().eval()
    assert route_of(problem.task, problem.train).plan.layers.keys() >= {problem.task.model[0]}
    assert len(calls) == 2
    route_of(problem.task.with_model(mlp(3, 1).double().eval()), problem.train)
    assert len(calls) == 3


# --- of two data sets, from factors -----------------------------------------------------------------------------------


def pairs_of(problem, train=None):
    found = gradient_products(problem.task, problem.queries, problem.train if train is None else train)
    return torch.cat([values for _, values in found], 1)


def assert_equal_pairs(problem):
    a = measure_gradients(problem.task, problem.queries, path="loop")
    b = rows_by_loop(problem.task, problem.train)
    bound = ROUNDING * float((a.norm(dim=1)[:, None] * b.norm(dim=1)).max())
    assert_close(pairs_of(problem), a @ b.T, rtol=0, atol=bound)


@pytest.mark.parametrize("name", PROBLEMS)
def test_products_of_gradients_equal_those_with_rows(name):
    assert_equal_pairs(PROBLEMS[name]())


@pytest.mark.parametrize("name", ["mlp", "conv", "tied", "shared", "embedding"])
def test_blocks_of_either_do_not_matter(monkeypatch, name):
    monkeypatch.setattr(pairs, "PASS_EXAMPLES", 3)
    assert_equal_pairs(PROBLEMS[name]())


def test_layers_at_one_position_need_no_query_rows(monkeypatch):
    """The products of a plain network come from factors alone: no direction reaches the products by layer."""
    seen = []
    monkeypatch.setattr(pairs, "product_of_layer", lambda gradient, own: seen.append(own) or 0.0)
    assert_equal_pairs(PROBLEMS["mlp"]())
    assert seen == []


def test_pairs_of_a_model_that_treats_larger_batches_otherwise(turning):
    task, examples = turning
    queries = examples.subset(range(3))
    found = torch.cat([values for _, values in gradient_products(task, queries, examples)], 1)
    expected = rows_by_loop(task, queries) @ rows_by_loop(task, examples).T
    assert_close(found, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_pairs_name_an_example_that_is_not_finite():
    x, y = (torch.randn(9, k, generator=torch_generator(0, "root"), dtype=torch.float64) for k in (3, 1))
    x[7] = 0
    task = Task.regression(nn.Sequential(nn.Linear(3, 1, bias=False).double(), Root()).eval())
    ids = ["a", "b", "c", "d", "e", "f", "g", "seven", "h"]
    with pytest.raises(NonFiniteError, match="'seven'"):
        list(gradient_products(task, Examples((x[:3], y[:3])), Examples((x, y), ids=ids)))
