"""Learning with its safeguards is the Python functions in one order, on contributions in memory or streamed."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from whence.errors import InputError
from whence.scores import ScoreMatrix
from whence.studies.weighing import Learning, energy_shares
from whence.task import GroupWeights, ParameterGroups
from whence.weights import (
    Contributions,
    ContributionStream,
    learn_weights,
    mixed_with_uniform,
    relative_to_norms,
    without_hubs,
)

NAMES = ("a", "b", "c")
GROUPS = ParameterGroups(NAMES, (0, 1, 2), (1, 1, 1), NAMES)
Plain = partial(Learning, relative=False, unweighted_share=0.0)


def contributions(n_query=12, n_train=40, seed=0):
    """One signal with heavy tails in every group, under noise of different size."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n_query, n_train, 1, generator=generator, dtype=torch.float64) ** 3
    noise = torch.randn(n_query, n_train, 3, generator=generator, dtype=torch.float64)
    values = signal + noise * torch.tensor([0.1, 1.0, 10.0])
    return Contributions(values, GROUPS, range(n_query), range(n_train), "grad_dot")


def test_energy_shares_are_shares_of_summed_squares():
    found = contributions()
    rms = learn_weights(found, "rms", center=False, holdout=0.0)
    energy = found.values.square().sum((0, 1))
    assert_close(energy_shares(rms), energy / energy.sum())
    assert energy_shares(GroupWeights(torch.tensor([1.0, 0.0, 1.0]), GROUPS)).tolist() == [0.5, 0.0, 0.5]


def test_nothing_asked_for_is_nothing_done():
    found = contributions()
    weights = Plain(folds=0).weights(found)
    assert list(weights) == ["rms", "learned"]
    assert_close(weights["learned"].values, learn_weights(found).values, rtol=0, atol=0)
    assert not {"guard", "stability", "entropy_floor", "without_hubs"} & set(weights["learned"].facts)


@pytest.mark.parametrize("streamed", [False, True])
def test_by_default_what_is_learned_on_relative_contributions_is_half_of_the_scores(streamed):
    found, norms = contributions(), torch.linspace(0.1, 5, 40)
    given = ContributionStream.of(found, block=7) if streamed else found
    weights = Learning().weights(given, norms)
    expected = mixed_with_uniform(learn_weights(relative_to_norms(found, norms)), found, 0.5)
    assert_close(weights["learned"].values, expected.values, rtol=1e-6, atol=1e-9)
    assert_close(weights["rms"].values, learn_weights(found, "rms").values, rtol=1e-6, atol=1e-9)
    facts = weights["learned"].facts
    assert (facts["relative"], facts["unweighted_share"]) == (True, 0.5)
    assert facts["entropy"] == weights["learned"].entropy
    if not streamed:
        low, high = (torch.tensor(facts["stability"][end]) for end in ("low", "high"))
        assert bool((low > 0).all())  # of mixed weights, none of which is 0
        assert bool((high > low).any())


def test_relative_needs_norms():
    with pytest.raises(InputError, match="pass `norms"):
        Learning().weights(contributions())


def test_hubs_are_removed_before_anything_is_learned():
    found = contributions()
    hubs = found.values + 50 * torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(1))
    with_hubs = Contributions(hubs, GROUPS, found.query_ids, found.train_ids)
    assert_close(
        Plain(without_hubs=True).weights(with_hubs)["learned"].values,
        learn_weights(without_hubs(found)).values,
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_guard_takes_what_is_best_on_queries_held_out():
    weights = Plain(guard=True, k=3).weights(contributions())["learned"]
    losses = dict(weights.facts["guard"]["losses"])
    assert weights.facts["guard"]["chosen"] == min(losses, key=losses.get)
    assert weights.name == "learned"


def test_the_floor_comes_last_and_its_facts_are_of_the_weights_given():
    weights = Plain(entropy_floor=0.9).weights(contributions())["learned"]
    assert 0.9 <= weights.entropy < 0.9 + 1e-6
    assert weights.facts["entropy"] == weights.entropy
    assert weights.facts["max_over_min"] == weights.ratio
    assert 0 < weights.facts["uniform_share"] < 1


@pytest.mark.parametrize("n_query, folds", [(12, 4), (3, 3), (1, None)])
def test_there_are_at_most_as_many_folds_as_queries(n_query, folds):
    facts = Plain(folds=4).weights(contributions(n_query))["learned"].facts
    assert facts.get("stability", {}).get("folds") == folds


def test_likenesses_that_do_not_exist_are_left_out():
    facts = Plain(solver="uniform", folds=3).weights(contributions())["learned"].facts["stability"]
    assert facts["cosine"] == pytest.approx(1.0)
    assert "centered" not in facts  # uniform weights have no part of their own
    assert facts["low"] == facts["high"] == [1.0, 1.0, 1.0]


def test_streams_are_learned_from_without_folds():
    found = contributions()
    how = Plain(without_hubs=True, guard=True, k=3)
    whole, streamed = (how.weights(one)["learned"] for one in (found, ContributionStream.of(found, block=7)))
    assert_close(streamed.values, whole.values, rtol=1e-6, atol=1e-9)
    assert "stability" in whole.facts
    assert "stability" not in streamed.facts


def test_hubs_need_several_queries():
    with pytest.raises(InputError, match="Hubs are seen over several queries"):
        Plain(without_hubs=True).weights(contributions(1))
    assert math.isfinite(Plain().weights(contributions(2))["learned"].entropy)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_a_teacher_takes_the_place_of_the_objective(streamed, relative):
    found, norms = contributions(), torch.linspace(0.1, 5, 40)
    teacher = ScoreMatrix(found.values @ torch.tensor([0.0, 3.0, 1.0]).double(), range(12), range(40), method="ekfac")
    given = ContributionStream.of(found, block=7) if streamed else found
    how = Learning(relative=relative, unweighted_share=0.0)
    learned = how.weights(given, norms if relative else None, teacher)["learned"]
    assert_close(learned.values, torch.tensor([0.0, 2.25, 0.75]).double(), rtol=1e-4, atol=1e-4)
    assert learned.facts["teacher"] == "ekfac"
    if not streamed:
        assert learned.facts["stability"]["cosine"] == pytest.approx(1, abs=1e-6)
