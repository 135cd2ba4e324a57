"""From measures to outcomes: equations (13) and (17) of the reference by hand."""

import pytest
import torch
from torch.testing import assert_close

from whence.errors import WhenceError
from whence.gold import Gold, further_train
from whence.testing.problems import classifier
from whence.training import Execution, Recipe

ROUNDING = {"rtol": 1e-12, "atol": 1e-13}  # a few sums
EXECUTION = Execution("loop", "loop", 16, 1, 1)
RECIPE = Recipe(lr=0.05, batch_size=4, epochs=3)


def gold_of(measures, full, left_out, orientation=1):
    measures, full = (torch.as_tensor(x, dtype=torch.float64) for x in (measures, full))
    n_seeds, n_points, n_sets, n_query = measures.shape
    assert full.shape == (n_seeds, n_points, n_query)
    return Gold(
        measures,
        full,
        distances=torch.zeros(n_seeds, n_points, n_sets),
        points=tuple(range(1, n_points + 1)),
        point_unit="epochs",
        seeds=tuple(range(n_seeds)),
        query_ids=tuple(range(n_query)),
        left_out=left_out,
        orientation=orientation,
        eps=2.2e-16,
        measure="loss",
        execution=EXECUTION,
    )


SINGLES = ((0,), (1,), (2,))
# One seed, one point, three sets, two queries.
MEASURES = [[[[1.0, 10.0], [2.0, 10.0], [6.0, 40.0]]]]
FULL = [[[2.5, 15.0]]]


@pytest.mark.parametrize("orientation", [1, -1])
def test_equation_13_by_hand(orientation):
    found = gold_of(MEASURES, FULL, SINGLES, orientation).outcomes()
    by_hand = torch.tensor([[[[-2.0, -1.0, 3.0], [-10.0, -10.0, 20.0]]]], dtype=torch.float64)
    assert_close(found.effects, orientation * by_hand, **ROUNDING)
    assert found.adjustment == "mean"
    assert_close(found.level, torch.tensor([[3.0, 20.0]], dtype=torch.float64), **ROUNDING)


@pytest.mark.parametrize("orientation", [1, -1])
def test_equation_17_by_hand(orientation):
    found = gold_of(MEASURES, FULL, SINGLES, orientation).outcomes("full")
    by_hand = torch.tensor([[[[-1.5, -0.5, 3.5], [-5.0, -5.0, 25.0]]]], dtype=torch.float64)
    assert_close(found.effects, orientation * by_hand, **ROUNDING)
    assert found.adjustment == "full"


def test_means_are_over_sets_of_one_size():
    """Leaving out more moves the model further, whatever is left out: only sets of one size have a common movement."""
    left_out = ((0,), (1, 2), (3,), (4, 5), (6, 7, 8))
    measures = torch.tensor([1.0, 10.0, 3.0, 20.0, 70.0], dtype=torch.float64).reshape(1, 1, 5, 1)
    found = gold_of(measures, torch.zeros(1, 1, 1), left_out).outcomes()
    assert_close(found.effects[0, 0, 0], torch.tensor([-1.0, -5.0, 1.0, 5.0, 0.0], dtype=torch.float64), **ROUNDING)
    assert found.set_sizes == (1, 2, 1, 2, 3)


def random_gold(orientation=-1, left_out=((0,), (1, 2), (3,), (4, 5), (6,))):
    generator = torch.Generator().manual_seed(0)
    measures = torch.randn(4, 3, len(left_out), 6, generator=generator, dtype=torch.float64)
    full = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64)
    return gold_of(measures, full, left_out, orientation)


def test_equation_13_is_equation_17_minus_its_own_mean():
    gold = random_gold()
    mean, full = gold.outcomes("mean").effects, gold.outcomes("full").effects
    for size in (1, 2):
        columns = [k for k, s in enumerate(gold.left_out) if len(s) == size]
        part = full[..., columns]
        assert_close(mean[..., columns], part - part.mean(-1, keepdim=True), **ROUNDING)


def test_effects_of_equation_13_add_up_to_zero():
    effects = random_gold(left_out=tuple((k,) for k in range(5))).outcomes().effects
    assert_close(effects.sum(-1), torch.zeros(4, 3, 6, dtype=torch.float64), **ROUNDING)


def test_adjusting_and_averaging_over_seeds_may_change_places():
    gold = random_gold()
    averaged = gold_of(gold.measures.mean(0, keepdim=True), gold.full.mean(0, keepdim=True), gold.left_out, -1)
    for adjustment in ("mean", "full"):
        found = gold.outcomes(adjustment).mean()
        assert_close(found, averaged.outcomes(adjustment).effects[0], **ROUNDING)


def test_standard_errors_are_of_the_mean_over_seeds():
    gold = random_gold()
    outcomes = gold.outcomes()
    expected = outcomes.effects.numpy().std(0, ddof=1) / 2
    assert_close(outcomes.standard_error(), torch.from_numpy(expected), **ROUNDING)


def test_the_first_seeds_alone():
    gold = random_gold()
    two = gold.outcomes(n_seeds=2)
    assert two.n_seeds == 2
    assert_close(two.effects, gold.outcomes().effects[:2], rtol=0, atol=0)
    assert_close(two.level, gold.measures[:2].abs().mean((0, 2)), **ROUNDING)
    with pytest.raises(WhenceError, match="n_seeds"):
        gold.outcomes(n_seeds=0)


def test_names_are_carried_over():
    outcomes = random_gold().outcomes()
    assert outcomes.points == (1, 2, 3)
    assert outcomes.point_unit == "epochs"
    assert outcomes.left_out == ((0,), (1, 2), (3,), (4, 5), (6,))
    assert outcomes.query_ids == tuple(range(6))


@pytest.mark.parametrize("measure", ["loss", "log_probability", "margin", "logit"])
def test_positive_always_means_that_leaving_out_made_the_query_worse(measure):
    """Loss and log-probability are one number with opposite signs: their oriented effects are equal."""
    problem = classifier(measure=measure)
    gold = further_train(
        problem.task, problem.train, problem.queries, RECIPE, left_out=14, seeds=2, points=[1, 3], engine="stacked"
    )
    raw = gold.measures - gold.measures.mean(2, keepdim=True)
    better_when_lower = measure == "loss"
    effects = gold.outcomes().effects
    assert_close(effects, (raw if better_when_lower else -raw).transpose(2, 3), **ROUNDING)
    against_full = gold.measures - gold.full[:, :, None]
    expected = (against_full if better_when_lower else -against_full).transpose(2, 3)
    assert_close(gold.outcomes("full").effects, expected, **ROUNDING)
    if measure == "log_probability":
        loss = classifier(measure="loss")
        twin = further_train(
            loss.task, loss.train, loss.queries, RECIPE, left_out=14, seeds=2, points=[1, 3], engine="stacked"
        )
        assert_close(effects, twin.outcomes().effects, **ROUNDING)
