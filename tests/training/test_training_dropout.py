"""Dropout that repeats: the same masks in every engine and every run of a seed, and no dropout that would not."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from whence.errors import UnsupportedError
from whence.gold import further_train
from whence.task import Task
from whence.testing.problems import PROBLEMS, DropoutNet, mlp_regression
from whence.training import Job, Recipe, refuse_functional_dropout, run_loop, run_stacked, train, training_twin
from whence.training.dropout import KeyedDropout, keyed_layers, set_key

FLOAT64 = {"rtol": 1e-10, "atol": 1e-11}  # rounding in another order, grown over a dozen steps
X = torch.ones(200, 50, dtype=torch.float64)


def masked(key, *, p=0.4, name="drop", calls=1):
    layer = KeyedDropout(p, name)
    set_key([layer], key)
    return [layer(X) for _ in range(calls)][-1]


def test_a_mask_depends_on_seed_step_name_and_call_and_on_nothing_else():
    first = masked((1, 2))
    torch.manual_seed(5)
    assert_close(masked((1, 2)), first, rtol=0, atol=0)
    others = [masked((2, 2)), masked((1, 3)), masked((1, 2), name="other"), masked((1, 2), calls=2), masked((2, 1))]
    for one, other in itertools.combinations([first, *others], 2):
        # Two masks with keep rate .6 agree on .36 + .16 of 10,000 entries, with a standard deviation of .005.
        assert float(((one > 0) == (other > 0)).double().mean()) == pytest.approx(0.52, abs=0.03)


def test_entries_are_dropped_at_the_rate_and_the_rest_scaled():
    found = masked((0, 0))
    assert sorted(set(found.flatten().tolist())) == [0.0, pytest.approx(1 / 0.6)]
    assert float((found == 0).double().mean()) == pytest.approx(0.4, abs=0.02)  # four standard deviations


def test_extreme_rates_and_the_switched_off_state():
    assert_close(masked((0, 0), p=0.0), X, rtol=0, atol=0)
    assert_close(masked((0, 0), p=1.0), torch.zeros_like(X), rtol=0, atol=0)
    assert_close(masked(None), X, rtol=0, atol=0)


def test_a_smaller_batch_sees_the_first_rows_of_the_mask():
    """Padded and unpadded batches of one step drop the same entries of the same examples."""
    layer = KeyedDropout(0.4, "drop")
    set_key([layer], (0, 0))
    whole = layer(X)
    set_key([layer], (0, 0))
    assert_close(layer(X[:7]), whole[:7], rtol=0, atol=0)


def test_the_twin_replaces_every_dropout_and_nothing_else():
    problem = PROBLEMS["dropout"]()
    twin = training_twin(problem.task, dropout=True)
    kinds = {name: type(m) for name, m in twin.model.named_children()}
    assert kinds == {"first": nn.Linear, "second": nn.Linear, "early": KeyedDropout, "late": KeyedDropout}
    assert type(problem.task.model.early) is nn.Dropout
    x = problem.train.all()[0]
    assert_close(twin.model(x), problem.task.model(x), rtol=0, atol=0)  # off until keyed
    assert len({twin.model.early.name, twin.model.late.name}) == 2
    assert type(training_twin(problem.task, dropout=False).model.early) is nn.Dropout


class SharedDropout(nn.Module):
    """One dropout module under two names."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.inner = nn.Sequential(nn.Linear(3, 2, dtype=torch.float64), self.drop)

    def forward(self, x):
        return self.inner(self.drop(x))


def test_a_dropout_with_two_names_is_replaced_in_both_places():
    twin = training_twin(Task.regression(SharedDropout().eval()), dropout=True).model
    assert twin.drop is twin.inner[1]
    assert [type(m) for m in (twin.drop, twin.inner[1])] == [KeyedDropout] * 2
    assert len(keyed_layers(twin)) == 1


def job_of(problem, recipe, sets, seed=3, n_steps=8):
    task = training_twin(problem.task, recipe.dropout)
    return Job(task, problem.train, problem.queries, recipe, seed, sets, tuple(range(1, n_steps + 1)), True)


RECIPE = Recipe(lr=0.05, batch_size=4, epochs=3, momentum=0.9)


def test_engines_use_the_same_masks():
    job = job_of(PROBLEMS["dropout"](), RECIPE, ((), (0,), (5,), (13,)))
    stacked, loop = run_stacked(job), run_loop(job)
    assert_close(stacked.measures, loop.measures, **FLOAT64)
    assert_close(stacked.parameters, loop.parameters, **FLOAT64)


def test_steps_follow_the_masks_of_their_key():
    """Against plain SGD on the twin, keyed by hand."""
    problem = PROBLEMS["dropout"]()
    recipe = Recipe(lr=0.05, batch_size=100, epochs=3)
    result = run_loop(job_of(problem, recipe, ((),), seed=9, n_steps=3))
    model = training_twin(problem.task, dropout=True).model
    orders = torch.Generator().manual_seed(9)
    for step in range(3):
        x, y = problem.train.batch(torch.randperm(14, generator=orders))
        torch.randperm(14, generator=orders)
        set_key(keyed_layers(model), (9, step))
        grads = torch.autograd.grad(F.mse_loss(model(x), y), list(model.parameters()))
        for p, g in zip(model.parameters(), grads, strict=True):
            p.data -= 0.05 * g
    for name, p in model.named_parameters():
        assert_close(result.parameters[name][0], p.detach(), **FLOAT64)


def test_runs_of_one_seed_share_masks_and_seeds_differ():
    problem = PROBLEMS["dropout"]()
    same = run_stacked(job_of(problem, RECIPE, ((4,), (4,)))).measures
    assert_close(same[:, 0], same[:, 1], rtol=0, atol=0)
    other = run_stacked(job_of(problem, RECIPE, ((4,),), seed=4)).measures
    whole = Recipe(lr=0.05, batch_size=100, epochs=8)  # one batch an epoch: its order hardly matters, its masks do
    ends = [run_stacked(job_of(problem, whole, ((),), seed=s)).measures[-1] for s in (0, 1)]
    assert not torch.allclose(same[:, :1], other)
    assert not torch.allclose(ends[0], ends[1], rtol=1e-3)


def test_dropout_can_be_switched_off():
    problem = PROBLEMS["dropout"]()
    options = {"lr": 0.05, "batch_size": 100, "epochs": 8}
    off = [run_loop(job_of(problem, Recipe(**options, dropout=False), ((),), seed=s)).measures for s in (0, 1)]
    assert_close(off[0], off[1], **FLOAT64)  # only rounding depends on the order of a full batch
    assert not torch.allclose(off[0], run_loop(job_of(problem, Recipe(**options), ((),))).measures, rtol=1e-3)


def test_measures_are_taken_without_dropout():
    problem = PROBLEMS["dropout"]()
    recipe = Recipe(lr=1e-12, batch_size=4, epochs=2)  # nothing moves, so every measure is that of the final model
    found = run_stacked(job_of(problem, recipe, ((), (3,)))).measures
    batch = problem.queries.all()
    own = problem.task.measure(problem.task.model(batch[0]), batch).detach()
    assert_close(found, own.expand(8, 2, -1), rtol=1e-9, atol=0)


# Dropout that cannot be repeated


class Wrapped(nn.Module):
    """A linear layer and something noisy behind it."""

    def __init__(self, noise):
        super().__init__()
        self.linear = nn.Linear(3, 4, dtype=torch.float64)
        self.noise = noise

    def forward(self, x):
        return self.noise(self.linear(x)[:, None])[:, 0]


class Functional(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x, self.training)


class Attention(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=p, batch_first=True, dtype=torch.float64)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, 2, dropout=p, batch_first=True, dtype=torch.float64)

    def forward(self, x):
        return self.lstm(x)[0]


def attend(x, p):
    return F.scaled_dot_product_attention(x, x, x, dropout_p=p)


NOISY = {
    "functional": Functional(lambda x, on: F.dropout(x, 0.5, training=on)),
    "functional by position": Functional(lambda x, on: F.dropout(x, 0.5, on)),
    "always on": Functional(lambda x, on: F.dropout(x)),
    "torch.dropout": Functional(lambda x, on: torch.dropout(x, 0.5, on)),
    "feature dropout": Functional(lambda x, on: F.dropout1d(x, 0.5, training=on)),
    "alpha dropout module": nn.AlphaDropout(0.5),
    "dropout1d module": nn.Dropout1d(0.5),
    "scaled dot product": Functional(lambda x, on: attend(x, 0.5 if on else 0.0)),
    "attention": Attention(0.5),
    "lstm": Recurrent(0.5),
    "noise": Functional(lambda x, on: x + torch.randn_like(x) if on else x),
}
QUIET = {
    "module": nn.Dropout(0.5),
    "functional, p = 0": Functional(lambda x, on: F.dropout(x, 0.0, training=on)),
    "functional, off": Functional(lambda x, on: F.dropout(x, 0.5, training=False)),
    "torch.dropout, off": Functional(lambda x, on: torch.dropout(x, p=0.5, train=False)),
    "scaled dot product": Functional(lambda x, on: attend(x, 0.0)),
    "attention": Attention(0.0),
    "lstm": Recurrent(0.0),
    "batch norm": nn.BatchNorm1d(1, dtype=torch.float64),
}


def wrapped(noise):
    task = Task.regression(Wrapped(copy.deepcopy(noise)).eval())
    base = mlp_regression()
    x = base.train.all()[0]
    return task, base.train.replace((x, torch.zeros(len(x), 4, dtype=torch.float64)))


@pytest.mark.parametrize("name", NOISY)
def test_dropout_that_is_no_module_is_refused(name):
    task, train_set = wrapped(NOISY[name])
    before = torch.random.get_rng_state()
    with pytest.raises(UnsupportedError, match=r"nn\.Dropout modules.*Recipe\(dropout=False\)"):
        refuse_functional_dropout(task, train_set.batch([0, 1]))
    assert torch.equal(torch.random.get_rng_state(), before)
    task.require_eval()


@pytest.mark.parametrize("name", QUIET)
def test_what_is_quiet_passes(name):
    task, train_set = wrapped(QUIET[name])
    before = copy.deepcopy(task.model.state_dict())
    refuse_functional_dropout(task, train_set.batch([0, 1]))
    assert_close(task.model.state_dict(), before, rtol=0, atol=0)
    task.require_eval()


def test_further_training_and_training_refuse_it_before_they_begin():
    task, train_set = wrapped(NOISY["attention"])
    before = copy.deepcopy(task.model.state_dict())
    with pytest.raises(UnsupportedError, match=r"'multi_head_attention_forward' itself"):
        further_train(task, train_set, train_set, RECIPE, left_out=2, seeds=1)
    with pytest.raises(UnsupportedError, match=r"'multi_head_attention_forward' itself"):
        train(task, train_set, RECIPE)
    assert_close(task.model.state_dict(), before, rtol=0, atol=0)
    quiet = Recipe(lr=0.05, batch_size=4, epochs=1, dropout=False)
    further_train(task, train_set, train_set, quiet, left_out=2, seeds=1, engine="loop")


def test_train_uses_dropout_modules():
    ends = []
    for dropout in (True, False):
        problem = PROBLEMS["dropout"]()
        assert isinstance(problem.task.model, DropoutNet)
        train(problem.task, problem.train, Recipe(lr=0.05, batch_size=4, epochs=3, dropout=dropout))
        ends.append(problem.task.model.first.weight.detach())
        assert type(problem.task.model.late) is nn.Dropout
    assert not torch.allclose(ends[0], ends[1], rtol=1e-3)
