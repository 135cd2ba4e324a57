"""Weights part of the way from uniform, and few-shot weights near given ones."""

import pytest
import torch

from whence.errors import InputError
from whence.scores import Outcomes
from whence.task import GroupWeights, ParameterGroups
from whence.weights import Contributions, ContributionStream, fit_weights, mixed_with_uniform

F64 = torch.float64
N_QUERY, N_TRAIN, N_GROUPS = 4, 60, 3


def groups_of(prefix="g"):
    names = tuple(f"{prefix}{j}" for j in range(N_GROUPS))
    return ParameterGroups(names, tuple(range(N_GROUPS)), (1,) * N_GROUPS, names)


@pytest.fixture
def found():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([10.0, 1.0, 0.1], dtype=F64)
    # Off center, since a constant is no spread.
    values = (torch.randn(N_QUERY, N_TRAIN, N_GROUPS, generator=generator, dtype=F64) + 3) * sizes
    return Contributions(values, groups_of(), list(range(N_QUERY)), list(range(N_TRAIN)))


def weights_of(*values, prefix="g"):
    return GroupWeights(torch.tensor(values, dtype=F64), groups_of(prefix), "learned")


def spread(values, weights):
    scores = values @ weights
    return (scores - scores.mean(1, keepdim=True)).norm()


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("streamed", [False, True])
def test_mixed_scores_are_a_sum_of_scores_of_equal_spread(found, share, streamed):
    weights = weights_of(0.0, 1.0, 5.0)
    source = ContributionStream.of(found, block=7) if streamed else found
    mixed = mixed_with_uniform(weights, source, share)
    ones = torch.ones(N_GROUPS, dtype=F64)
    expected = share * ones / spread(found.values, ones)
    expected = expected + (1 - share) * weights.values / spread(found.values, weights.values)
    torch.testing.assert_close(mixed.values, expected / expected.mean())
    assert mixed.facts["unweighted_share"] == share
    assert (mixed.name, mixed.method) == (weights.name, weights.method)


def test_the_ends_are_what_is_mixed(found):
    weights = weights_of(0.0, 1.0, 5.0)
    torch.testing.assert_close(mixed_with_uniform(weights, found, 1.0).values, torch.ones(N_GROUPS, dtype=F64))
    torch.testing.assert_close(mixed_with_uniform(weights, found, 0.0).values, weights.values)


def test_what_cannot_be_mixed_is_refused(found):
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        mixed_with_uniform(weights_of(1.0, 1.0, 1.0), found, 1.5)
    with pytest.raises(InputError, match="other groups"):
        mixed_with_uniform(weights_of(1.0, 1.0, 1.0, prefix="h"), found)
    constant = Contributions(torch.ones_like(found.values), found.groups, found.query_ids, found.train_ids)
    with pytest.raises(InputError, match="no spread"):
        mixed_with_uniform(weights_of(1.0, 1.0, 1.0), constant)


def outcomes_for(found, truth):
    """Of 8 left-out halves, without noise."""
    generator = torch.Generator().manual_seed(1)
    sets = [torch.randperm(N_TRAIN, generator=generator)[: N_TRAIN // 2].tolist() for _ in range(8)]
    effects = torch.stack([found.values[:, rows].sum(1) @ truth for rows in sets], 1)
    return Outcomes(
        effects=effects[None, None],
        level=torch.ones(1, N_QUERY, dtype=F64),
        eps=1e-16,
        points=(1,),
        point_unit="epochs",
        query_ids=found.query_ids,
        left_out=tuple(tuple(rows) for rows in sets),
    )


def test_few_shot_weights_stay_near_given_ones_with_much_ridge_and_leave_them_with_little(found):
    given, truth = weights_of(0.0, 1.0, 5.0), torch.tensor([2.0, 0.0, 1.0], dtype=F64)
    outcomes = outcomes_for(found, truth)
    near = fit_weights(found, outcomes, towards=given, ridge=1e6)
    torch.testing.assert_close(near.values, given.values, rtol=1e-4, atol=1e-4)
    far = fit_weights(found, outcomes, towards=given, ridge=1e-9)
    torch.testing.assert_close(far.values, truth / truth.mean(), rtol=1e-4, atol=1e-5)
    assert far.facts["towards"] == "learned"


def test_a_direction_that_cannot_be_stayed_near_is_refused(found):
    truth = torch.ones(N_GROUPS, dtype=F64)
    with pytest.raises(InputError, match="other groups"):
        fit_weights(found, outcomes_for(found, truth), towards=weights_of(1.0, 1.0, 1.0, prefix="h"))
    dead = Contributions(found.values * torch.tensor([0.0, 1.0, 1.0]), found.groups, found.query_ids, found.train_ids)
    with pytest.raises(InputError, match="contribute nothing"):
        fit_weights(dead, outcomes_for(dead, truth), towards=weights_of(1.0, 0.0, 0.0))


@pytest.mark.parametrize("first", [0, 1])
def test_of_several_weights_those_that_predict_are_stayed_near(found, first):
    truth = torch.tensor([0.0, 1.0, 5.0], dtype=F64)
    outcomes = outcomes_for(found, truth)
    right = weights_of(0.0, 1.2, 5.0)
    wrong = GroupWeights(torch.tensor([1.0, 0.0, 0.0], dtype=F64), found.groups, "wrong")
    near = [wrong, right] if first else [right, wrong]
    fitted = fit_weights(found, outcomes, towards=near, ridge=100.0)
    assert fitted.facts["towards"] == "learned"
    torch.testing.assert_close(fitted.values, fit_weights(found, outcomes, towards=right, ridge=100.0).values)
    # To stay near is best where they are right, and to leave them where they are not.
    assert fit_weights(found, outcomes, towards=near).facts["ridge"] == 100
    assert fit_weights(found, outcomes, towards=[wrong]).facts["ridge"] == 0.01
    with pytest.raises(InputError, match="empty"):
        fit_weights(found, outcomes, towards=[])
