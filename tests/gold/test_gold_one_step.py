"""One step on one example alone: the closed form, the slow loop, and what is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from whence.errors import InputError, NonFiniteError, ShapeError, UnknownNameError, UnsupportedError
from whence.gold import class_lead, one_step
from whence.testing.problems import PROBLEMS, SmallProblem, classifier, linear_regression, mlp_regression
from whence.training import Recipe

FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}  # rounding of sums in another order
SGD = Recipe(lr=0.05, batch_size=4, epochs=3)
STEPS = {
    "sgd": SGD,
    "momentum": replace(SGD, momentum=0.9, weight_decay=0.1),
    "nesterov": replace(SGD, momentum=0.9, nesterov=True),
    "clipped": replace(SGD, clip_norm=0.3),
    "adam": replace(SGD, optimizer="adam", weight_decay=0.1),
    "adamw": replace(SGD, optimizer="adamw", weight_decay=0.1),
}
# Queries of train example 5 twice, once out of order; four others for 2; one for 9.
PAIRS = torch.tensor([[3, 5], [0, 2], [1, 2], [0, 9], [2, 2], [1, 5], [3, 2]])


@pytest.mark.parametrize("engine", ["stacked", "loop", "auto"])
def test_a_step_of_linear_regression_is_the_closed_form(engine):
    problem = linear_regression()
    found = one_step(problem.task, problem.train, problem.queries, SGD, PAIRS, engine=engine)
    assert_close(found.before, problem.losses(problem.start, problem.queries), **FLOAT64)
    for (query, example), after in zip(PAIRS.tolist(), found.after, strict=True):
        x, y = problem.x[example], problem.y[example]
        w = problem.start - 0.05 * 2 * (x @ problem.start - y) * x
        assert_close(after, problem.losses(w, problem.queries)[query], **FLOAT64)
    assert found.n_steps == 3


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "branching"])
@pytest.mark.parametrize("step", STEPS)
def test_many_at_once_are_one_after_the_other(name, step):
    small = PROBLEMS[name]()
    args = small.task, small.train, small.queries, STEPS[step], PAIRS
    fast, slow = one_step(*args, engine="stacked"), one_step(*args, engine="loop")
    assert_close(fast.after, slow.after, **FLOAT64)
    assert_close(fast.before, slow.before, **FLOAT64)
    assert float((slow.after - slow.before[PAIRS[:, 0]]).abs().min()) > 1e-20  # every step did something


def test_small_passes_change_nothing(monkeypatch):
    small = classifier()
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(14))[torch.arange(56) % 7 > 0]
    whole = one_step(small.task, small.train, small.queries, SGD, pairs, engine="stacked").after
    for rows in (1, 3, 7):
        monkeypatch.setitem(one_step.__globals__, "FORWARD_ROWS", rows)
        for engine in ("stacked", "loop"):
            found = one_step(small.task, small.train, small.queries, SGD, pairs, engine=engine).after
            assert_close(found, whole, **FLOAT64)


def test_models_that_cannot_be_vmapped_take_the_loop():
    small = PROBLEMS["branching"]()
    args = small.task, small.train, small.queries, SGD, PAIRS
    assert_close(one_step(*args).after, one_step(*args, engine="loop").after, rtol=0, atol=0)
    with pytest.raises(UnsupportedError, match='engine="loop"'):
        one_step(*args, engine="stacked")


@pytest.mark.parametrize("engine", ["stacked", "loop"])
def test_the_model_is_not_changed_and_schedule_and_dropout_play_no_part(engine):
    small = PROBLEMS["dropout"]()
    before = copy.deepcopy(small.task.model.state_dict())
    args = small.task, small.train, small.queries
    found = one_step(*args, SGD, PAIRS, engine=engine).after
    other = replace(SGD, schedule="cosine", warmup_steps=9, dropout=False, batch_size=1)
    assert_close(one_step(*args, other, PAIRS, engine=engine).after, found, rtol=0, atol=0)
    assert_close(dict(small.task.model.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["stacked", "loop"])
def test_a_float32_model_may_step_in_float64(engine):
    small = mlp_regression(dtype=torch.float32)
    exact = small.task.with_model(copy.deepcopy(small.task.model).double())
    twin = SmallProblem(exact, small.train.to(dtype=torch.float64), small.queries.to(dtype=torch.float64))
    wanted = one_step(twin.task, twin.train, twin.queries, SGD, PAIRS, engine="loop")
    found = one_step(small.task, small.train, small.queries, SGD, PAIRS, engine=engine, dtype=torch.float64)
    assert_close(found.after, wanted.after, **FLOAT64)
    rough = one_step(small.task, small.train, small.queries, SGD, PAIRS, engine=engine)
    assert_close(rough.after, wanted.after, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rough.after, wanted.after, rtol=1e-10, atol=0)


def test_what_cannot_be_stepped_on_is_refused():
    small = mlp_regression()

    def step(pairs=PAIRS, recipe=SGD, **options):
        one_step(small.task, small.train, small.queries, recipe, pairs, **options)

    with pytest.raises(ShapeError, match=r"int64 \(n_pairs, 2\).*\(7, 1\)"):
        step(PAIRS[:, :1])
    with pytest.raises(ShapeError, match="float32"):
        step(PAIRS.float())
    with pytest.raises(InputError, match=r"0\.\.3 \(queries\) and 0\.\.13"):
        step(torch.tensor([[4, 0]]))
    with pytest.raises(InputError, match=r"\[0, 14\]"):
        step(torch.tensor([[0, 14]]))
    with pytest.raises(InputError, match=r"\[0, -1\]"):
        step(torch.tensor([[0, -1]]))
    with pytest.raises(UnknownNameError, match="stacked"):
        step(engine="staked")
    with pytest.raises(NonFiniteError, match=r"train example 5 gave .* query 17"):
        step(PAIRS[:1], replace(SGD, lr=1e200))


def test_the_class_lead_is_the_logit_of_the_class_less_the_largest_other():
    small = classifier(measure="margin")
    leading = class_lead(small.task)
    outputs = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [5.0, 5.0, 0.0]])
    batch = (torch.zeros(3, 3), torch.tensor([1, 2, 0]))
    assert leading.measure(outputs, batch).tolist() == [2.0, -2.0, 0.0]
    assert (leading.measure.orientation, leading.measure.name) == (-1, "class_lead")
    assert small.task.measure.name == "margin"  # the task itself is as before
    with pytest.raises(UnsupportedError, match=r"classification.*'mse'"):
        class_lead(mlp_regression().task)
