"""Per-example gradients: every path against plain autograd through the loss, on every kind of network."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from whence.data import Examples
from whence.errors import NonFiniteError, ShapeError, UnknownNameError, UnsupportedError
from whence.gradients import (
    PATHS,
    check_gradients,
    loss_gradients,
    measure_gradients,
    moved_outputs,
    n_outputs,
    outputs_of,
    pull_back,
    slope_of,
    slopes,
)
from whence.gradients.route import choose_path
from whence.task import Task
from whence.testing.problems import PROBLEMS, classifier, mlp, mlp_regression

FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}  # sums of at most a few hundred float64 products, in another order
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}  # the same sums in float32
VMAPPED = sorted(PROBLEMS.keys() - {"branching"})


def stacked(blocks):
    """All blocks as one tensor, after checking that they cover the examples in order."""
    done, rows = 0, []
    for part, block in blocks:
        assert part.start == done
        assert part.stop - part.start == len(block)
        done = part.stop
        rows.append(block)
    return torch.cat(rows)


def plain(task, examples, fn):
    """Gradient (n, n_params) of `fn` of each example alone, by `backward` on a copy of the user's model."""
    model = copy.deepcopy(task.model)
    rows = []
    for i in range(len(examples)):
        one = examples.batch([i])
        model.zero_grad(set_to_none=True)
        fn(task.outputs(model, one), one).sum().backward()
        rows.append(torch.cat([_gradient(p).flatten() for p in model.parameters() if p.requires_grad]))
    return torch.stack(rows)


def _gradient(p):
    return torch.zeros_like(p) if p.grad is None else p.grad


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", VMAPPED)
def test_paths_equal_plain_autograd(name, path):
    problem = PROBLEMS[name]()
    found = stacked(loss_gradients(problem.task, problem.train, path=path))
    assert found.dtype == torch.float64
    # A path that differentiates the loss itself meets the same rounding as one that pulls back its slope.
    assert_close(found, plain(problem.task, problem.train, problem.task.loss), **FLOAT64)
    assert choose_path(problem.task, problem.train) in ("hooks", "vmap")


@pytest.mark.parametrize("path", ["auto", "loop"])
def test_a_model_that_vmap_cannot_run_takes_the_loop(path):
    problem = PROBLEMS["branching"]()
    found = stacked(loss_gradients(problem.task, problem.train, path=path))
    assert_close(found, plain(problem.task, problem.train, problem.task.loss), **FLOAT64)
    assert choose_path(problem.task, problem.train) == "loop"
    assert check_gradients(problem.task, problem.train).path == "loop"
    with pytest.raises(RuntimeError):
        stacked(loss_gradients(problem.task, problem.train, path="vmap"))


def test_gradients_of_a_sure_classifier_are_not_rounded_to_zero():
    problem = PROBLEMS["sure_classifier"]()
    losses = problem.task.loss(outputs_of(problem.task, problem.train), problem.train.all())
    norms = stacked(loss_gradients(problem.task, problem.train)).norm(dim=1)
    sure = losses < 1e-9
    assert int(sure.sum()) >= 3
    # For a small loss |dl/dz| is of the size of the loss, and so is the gradient, times the layers' norms.
    ratio = norms[sure] / losses[sure]
    assert bool(((ratio > 0.1) & (ratio < 1e3)).all())


@pytest.mark.parametrize("measure", ["loss", "margin", "log_probability", "logit"])
@pytest.mark.parametrize("path", PATHS)
def test_measure_gradients_equal_plain_autograd(measure, path):
    problem = classifier(measure=measure)
    found = measure_gradients(problem.task, problem.queries, path=path)
    assert_close(found, plain(problem.task, problem.queries, problem.task.measure), **FLOAT64)


def test_measure_gradients_take_their_slope_at_other_outputs():
    """d m / d theta = J^T m'(f): only m' moves to the given outputs."""
    problem = classifier(measure="margin")
    task, queries = problem.task, problem.queries
    elsewhere = outputs_of(task, queries) + 0.5 * torch.arange(3.0, dtype=torch.float64)
    found = measure_gradients(task, queries, outputs=elsewhere)
    v = slopes(task.measure, elsewhere, queries)
    assert_close(found, plain(task, queries, lambda out, one: (out * v[_row(queries, one)]).sum(1)), **FLOAT64)
    assert not torch.allclose(found, measure_gradients(task, queries))


def _row(examples, one):
    return (examples.all()[0] == one[0]).all(1).nonzero().flatten()


@pytest.mark.parametrize("path", PATHS)
def test_several_cotangents_give_jacobian_rows(path):
    problem = PROBLEMS["conv"]()
    eye = torch.eye(3, dtype=torch.float64).expand(len(problem.train), 3, 3)
    found = stacked(pull_back(problem.task, problem.train, eye, path=path))
    for k in range(3):
        assert_close(found[:, k], plain(problem.task, problem.train, lambda out, one, k=k: out[:, k]), **FLOAT64)


def test_outputs_with_more_dimensions_are_flattened():
    base = mlp_regression()
    task = Task(
        base.task.model,
        outputs=lambda model, batch: model(batch[0])[:, :, None] * torch.arange(1.0, 4.0, dtype=torch.float64),
        loss=lambda outputs, batch: (outputs - batch[1][:, :, None]).square().flatten(1).mean(1),
    )
    found = stacked(loss_gradients(task, base.train))
    assert_close(found, plain(task, base.train, task.loss), **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_models_get_float32_gradients(dtype):
    """Equal to the gradients of the same (rounded) parameters and data held in float64."""
    problem = mlp_regression(dtype=dtype)
    found = stacked(loss_gradients(problem.task, problem.train))
    assert found.dtype == torch.float32
    exact = problem.task.with_model(copy.deepcopy(problem.task.model).double())
    expected = plain(exact, problem.train.to(dtype=torch.float64), exact.loss)
    assert_close(found.double(), expected, **FLOAT32)
    assert next(problem.task.model.parameters()).dtype == dtype


def test_a_low_precision_model_in_float64_on_request():
    problem = mlp_regression(dtype=torch.bfloat16)
    found = stacked(loss_gradients(problem.task, problem.train, dtype=torch.float64))
    exact = problem.task.with_model(copy.deepcopy(problem.task.model).double())
    assert_close(found, plain(exact, problem.train.to(dtype=torch.float64), exact.loss), **FLOAT64)


@pytest.mark.parametrize("name", ["batch_norm", "tied", "shared", "frozen"])
def test_nothing_touches_the_users_model(name):
    """Least of all where one module has two names: `functional_call` puts back the wrong tensors there."""
    problem = PROBLEMS[name]()
    task = problem.task
    before = {name: x.clone() for name, x in task.model.state_dict().items()}
    parameters = [(key, id(p), p.requires_grad) for key, p in task.model.named_parameters(remove_duplicate=False)]
    for path in PATHS:
        assert not stacked(loss_gradients(task, problem.train, path=path)).requires_grad
    moved_outputs(task, problem.train, torch.ones(task.layout.n_params, dtype=torch.float64))
    assert_close(task.model.state_dict(), before, rtol=0, atol=0)
    after = [(key, id(p), p.requires_grad) for key, p in task.model.named_parameters(remove_duplicate=False)]
    assert after == parameters
    assert all(p.grad is None for p in task.model.parameters())


# Blocks and order do not change rows

FIXED = mlp_regression()
WHOLE = stacked(loss_gradients(FIXED.task, FIXED.train))
BLOCKED = {"rtol": 1e-12, "atol": 1e-14}  # the same sums for each row; matrix kernels differ with the block's size


@settings(max_examples=25, deadline=None)
@given(memory=st.integers(1, 40_000), order=st.permutations(range(len(FIXED.train))), path=st.sampled_from([*PATHS]))
def test_memory_budget_and_order_do_not_change_rows(memory, order, path):
    shuffled = FIXED.train.subset(order)
    found = stacked(loss_gradients(FIXED.task, shuffled, memory=memory, path=path))
    assert_close(found, WHOLE[order], **BLOCKED)


def test_the_memory_budget_bounds_blocks():
    n_params, budget = FIXED.task.layout.n_params, 4 * 3 * 32 * 8  # four copies of three float64 rows
    assert n_params == 32
    sizes = [len(block) for _, block in loss_gradients(FIXED.task, FIXED.train, memory=budget)]
    assert sizes == [3, 3, 3, 3, 2]
    assert [len(block) for _, block in loss_gradients(FIXED.task, FIXED.train, memory=1)] == [1] * 14


def test_the_gradient_of_the_mean_loss_is_the_mean_of_the_rows():
    task, batch = FIXED.task, FIXED.train.all()
    grads = torch.autograd.grad(task.loss(task.outputs(task.model, batch), batch).mean(), list(task.model.parameters()))
    assert_close(WHOLE.mean(0), torch.cat([g.flatten() for g in grads]), **FLOAT64)


# The other direction


@pytest.mark.parametrize("name", sorted(PROBLEMS.keys() - {"branching", "sure_classifier", "linear"}))
def test_moved_outputs_are_finite_differences(name):
    """f(theta + h d) = f + h J d + O(h^2): halving h twice must divide the error by 16."""
    problem = PROBLEMS[name]()
    task, queries = problem.task, problem.queries
    layout = task.layout
    direction = torch.randn(layout.n_params, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = moved_outputs(task, queries, direction) - outputs_of(task, queries)

    def error(h):
        moved = copy.deepcopy(task.model)
        for key, d in layout.unflatten(h * direction).items():
            moved.get_parameter(key).data += d
        return float((outputs_of(task.with_model(moved), queries) - outputs_of(task, queries) - h * slope).norm())

    coarse, fine = error(1e-3), error(2.5e-4)
    assert coarse < 1e-4 * float(slope.norm())
    assert fine == pytest.approx(coarse / 16, rel=0.05)


def test_push_and_pull_are_adjoint():
    """<v, J d> = <J^T v, d>."""
    problem = PROBLEMS["conv"]()
    task, queries = problem.task, problem.queries
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(task.layout.n_params, dtype=torch.float64, generator=generator)
    v = torch.randn(len(queries), 3, dtype=torch.float64, generator=generator)
    jd = moved_outputs(task, queries, d) - outputs_of(task, queries)
    jtv = stacked(pull_back(task, queries, v))[:, 0]
    assert_close((v * jd).sum(1), jtv @ d, **FLOAT64)


@pytest.mark.parametrize("size, memory", [(1, 2**20), (3, 2**20), (100, 1), (100, 2**20)])
def test_outputs_do_not_depend_on_the_block_size(monkeypatch, size, memory):
    problem = PROBLEMS["conv"]()
    expected = problem.task.model(problem.train.all()[0])
    d = torch.ones(problem.task.layout.n_params, dtype=torch.float64)
    moved = moved_outputs(problem.task, problem.train, d)
    monkeypatch.setattr("whence.gradients.rows.FORWARD_EXAMPLES", size)
    monkeypatch.setattr("whence.gradients.passes.OUTPUT_MEMORY", memory)
    assert_close(outputs_of(problem.task, problem.train), expected.detach(), **FLOAT64)
    assert_close(moved_outputs(problem.task, problem.train, d), moved, **FLOAT64)


# Cotangents made block by block


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["mlp", "conv", "embedding"])
def test_cotangents_of_a_block_are_those_made_beforehand(name, path):
    problem = PROBLEMS[name]()
    task, train = problem.task, problem.train
    v = slopes(task.loss, outputs_of(task, train), train)
    expected = stacked(pull_back(task, train, v, path=path))
    parts = []

    def of_block(outputs, batch, part):
        parts.append(part)
        return slope_of(task.loss)(outputs, batch, part)

    memory = 4 * 3 * task.layout.n_params * 8  # three rows
    assert_close(stacked(pull_back(task, train, of_block, path=path, memory=memory)), expected, **FLOAT64)
    assert len(parts) == -(-len(train) // 3)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(train)))


def test_blocks_are_small_where_outputs_are_large(monkeypatch):
    problem = PROBLEMS["conv"]()
    assert n_outputs(problem.task, problem.train) == 3
    whole = stacked(loss_gradients(problem.task, problem.train))
    monkeypatch.setattr("whence.gradients.passes.OUTPUT_MEMORY", 2 * 3 * 8)
    blocks = list(loss_gradients(problem.task, problem.train))
    assert {len(rows) for _, rows in blocks[:-1]} == {2}
    assert_close(stacked(blocks), whole, **BLOCKED)


def test_outputs_of_everything_are_refused_where_they_are_too_large(monkeypatch):
    problem = PROBLEMS["conv"]()
    n = len(problem.train)
    monkeypatch.setattr("whence.gradients.rows.ALL_OUTPUTS", n * 3 * 8)
    outputs_of(problem.task, problem.train)
    monkeypatch.setattr("whence.gradients.rows.ALL_OUTPUTS", n * 3 * 8 - 1)
    with pytest.raises(UnsupportedError, match=rf"all {n} examples at once, 3 numbers each.*fisher='sampled'"):
        outputs_of(problem.task, problem.train)


# What goes wrong is named


class RootNet(nn.Module):
    """A square root, whose slope at 0 is infinite."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        nn.init.eye_(self.first.weight)

    def forward(self, x):
        return self.first(x).abs().sqrt() + self.shift


@pytest.mark.parametrize("path", PATHS)
def test_a_nan_gradient_names_example_and_parameter(path):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 5.0]], dtype=torch.float64)
    examples = Examples((x, torch.full_like(x, -1.0)), ids=["a", "b", "zero"])
    task = Task.regression(RootNet().eval())
    with pytest.raises(NonFiniteError, match=r"example 'zero' has NaN or infinite values in parameter 'first\.weight'"):
        stacked(loss_gradients(task, examples, path=path, memory=2 * 4 * 6 * 8))


def test_nan_outputs_name_the_example():
    examples = Examples((torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)))
    task = Task(mlp(1, 1), outputs=lambda m, b: m(b[0].sqrt()), loss=lambda o, b: o[:, 0])
    with pytest.raises(NonFiniteError, match="`outputs` has NaN or infinite values for example 1"):
        outputs_of(task, examples)


def test_cotangents_must_have_one_entry_per_example():
    with pytest.raises(ShapeError, match=r"one entry per example, 14; got 3"):
        next(pull_back(FIXED.task, FIXED.train, torch.ones(3, 2)))


def test_an_unknown_path_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'vmap'"):
        next(loss_gradients(FIXED.task, FIXED.train, path="vmapp"))
