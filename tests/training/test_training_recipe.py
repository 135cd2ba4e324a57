"""Recipes: what they refuse, and their learning rates against torch's schedulers."""

import math

import pytest
import torch
from torch.testing import assert_close

from whence.errors import InputError, UnknownNameError, UnsupportedError
from whence.training import OPTIMIZERS, Recipe
from whence.training.preconditioner import AdamSteps
from whence.training.schedules import SCHEDULES

GOOD = {"lr": 0.1, "batch_size": 4, "epochs": 3}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": 0.0}, "`lr` must be a positive"),
        ({"lr": math.nan}, "`lr` must be a positive"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 2.0}, "`batch_size`"),
        ({"epochs": 0}, "`epochs`"),
        ({"epochs": None}, "either `epochs` or `steps`; got epochs=None, steps=None"),
        ({"steps": 3}, "either `epochs` or `steps`; got epochs=3, steps=3"),
        ({"warmup_steps": -1}, "`warmup_steps`"),
        ({"clip_norm": 0.0}, "`clip_norm`"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\)"),
        ({"momentum": -0.1}, r"`momentum` must be in \[0, 1\)"),
        ({"nesterov": True}, "needs a positive `momentum`"),
        ({"weight_decay": -0.1}, "`weight_decay` must be non-negative"),
        ({"weight_decay": math.inf}, "`weight_decay` must be non-negative and finite"),
        ({"optimizer": "adam", "betas": (0.9, 1.0)}, r"`betas\[1\]` must be in \[0, 1\)"),
        ({"optimizer": "adam", "eps": -1e-8}, "`eps` must be non-negative"),
        ({"optimizer": "adam", "momentum": 0.9}, "`momentum` and `nesterov` belong to sgd; the optimizer is 'adam'"),
    ],
)
def test_values_out_of_range_are_refused_at_once(change, message):
    with pytest.raises(InputError, match=message):
        Recipe(**{**GOOD, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"optimizer": "adma"}, "Did you mean 'adam'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"sampler": "same"}, "same_order"),
    ],
)
def test_unknown_names_are_named(change, message):
    with pytest.raises(UnknownNameError, match=message):
        Recipe(**{**GOOD, **change})


def torch_rates(make, n_steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make(optimizer)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


TOTAL = 12  # 3 epochs of 4 steps
SCHEDULERS = {
    "constant": lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0),
    "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=TOTAL),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL),
}


def test_every_schedule_is_tested():
    assert SCHEDULERS.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_torchs(schedule):
    recipe = Recipe(**GOOD, schedule=schedule)
    found = [recipe.lr_at(k, 14) for k in range(TOTAL)]
    assert found == pytest.approx(torch_rates(SCHEDULERS[schedule], TOTAL), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_in_a_line_to_the_full_rate_and_the_decay_follows(schedule):
    recipe = Recipe(**GOOD, schedule=schedule, warmup_steps=4)
    rates = [recipe.lr_at(k, 14) for k in range(TOTAL)]
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1], rel=1e-12)
    rest = Recipe(lr=0.1, batch_size=4, steps=TOTAL - 4, schedule=schedule)
    assert rates[4:] == pytest.approx([rest.lr_at(k, 14) for k in range(TOTAL - 4)], rel=1e-12)


def test_amounts_in_epochs_and_steps():
    epochs, steps = Recipe(**GOOD), Recipe(lr=0.1, batch_size=4, steps=9)
    assert (epochs.unit, epochs.amount, epochs.steps_at(2, 14)) == ("epochs", 3, 8)
    assert (steps.unit, steps.amount, steps.steps_at(7, 14)) == ("steps", 9, 7)
    assert [epochs.steps_per_epoch(n) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


def test_points_are_sorted_and_checked():
    recipe = Recipe(**GOOD)
    assert recipe.check_points([3, 1]) == (1, 3)
    for bad in ([], [0], [4], [1, 1], [1.0], [True]):
        with pytest.raises(InputError, match="distinct integers from 1 to the recipe's 3 epochs"):
            recipe.check_points(bad)


def test_dynamics_carry_every_rate_up_to_the_point():
    recipe = Recipe(**GOOD, momentum=0.9, nesterov=True, weight_decay=0.01, schedule="linear", warmup_steps=2)
    steps = recipe.dynamics(2, 14)
    assert steps.lr == tuple(recipe.lr_at(k, 14) for k in range(8))
    assert (steps.momentum, steps.nesterov, steps.weight_decay) == (0.9, True, 0.01)


@pytest.mark.parametrize("change, what", [({"optimizer": "adam"}, "optimizer 'adam'"), ({"clip_norm": 1.0}, "clipped")])
def test_dynamics_refuse_what_no_spectrum_describes(change, what):
    with pytest.raises(UnsupportedError, match=what):
        Recipe(**GOOD, **change).dynamics(1, 14)


def test_scaled_dynamics_are_those_of_adam_and_plain_ones_of_sgd():
    plain = Recipe(**GOOD, momentum=0.9, weight_decay=0.01, schedule="linear")
    assert plain.scaled_dynamics(2, 14) == plain.dynamics(2, 14)
    adam = Recipe(**GOOD, optimizer="adam", betas=(0.8, 0.99), schedule="linear", warmup_steps=2)
    rates = tuple(adam.lr_at(k, 14) for k in range(8))
    assert adam.scaled_dynamics(2, 14) == AdamSteps.following(rates, 0.8)
    decayed = Recipe(**GOOD, optimizer="adamw", weight_decay=0.1)
    assert decayed.scaled_dynamics(1, 14) == AdamSteps.following((0.1,) * 4, 0.9, 0.1)
    assert (plain.rescales, adam.rescales, decayed.rescales) == (False, True, True)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"clip_norm": 1.0}, "clipped"),
        ({"optimizer": "adam", "clip_norm": 1.0}, "clipped"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "optimizer='adamw'"),
        ({"optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine"}, "constant learning rate"),
    ],
)
def test_scaled_dynamics_refuse_what_a_constant_scale_does_not_follow(change, what):
    with pytest.raises(UnsupportedError, match=what):
        Recipe(**GOOD, **change).scaled_dynamics(2, 14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_read_every_setting(optimizer):
    recipe = Recipe(**GOOD, optimizer=optimizer, weight_decay=0.02, betas=(0.8, 0.95), eps=1e-6)
    p = torch.ones(2, requires_grad=True)
    made = recipe.make_optimizer([p])
    group = made.param_groups[0]
    assert type(made).__name__.lower() == optimizer
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.02)
    if optimizer != "sgd":
        assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)
    assert_close(group["params"][0], p, rtol=0, atol=0)
