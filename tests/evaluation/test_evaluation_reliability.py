"""Reliability of outcomes against simulations where it is known."""

import math

import pytest
import torch
from torch.testing import assert_close

from whence.evaluation import agreement, reliability, spearman_brown
from whence.evaluation.reliability import _splits
from whence.scores import Outcomes, ScoreMatrix, center


def simulate(n_seeds, noise, n_query=30, n_sets=200, seed=0):
    """Effects of variance 1 that all seeds share, plus noise of each seed. -> outcomes, true effects"""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(n_query, n_sets, dtype=torch.float64, generator=generator)
    noises = torch.randn(n_seeds, 1, n_query, n_sets, dtype=torch.float64, generator=generator)
    outcomes = Outcomes(
        effects=center(true + noise * noises),
        level=torch.ones(1, n_query),
        eps=1e-16,
        points=(10,),
        point_unit="steps",
        query_ids=range(n_query),
        left_out=[(i,) for i in range(n_sets)],
    )
    return outcomes, true


def test_spearman_brown_by_hand():
    half = torch.tensor([0.5, 1.0, 0.0, -0.5])
    assert_close(spearman_brown(half, 2), torch.tensor([2 / 3, 1.0, 0.0, -0.5]))
    assert_close(spearman_brown(half, 1), half)


@pytest.mark.parametrize("metric", ["pearson", "cosine"])
@pytest.mark.parametrize(("n_seeds", "noise"), [(2, 1.0), (5, 2.0), (9, 3.0), (8, 0.5)])
def test_known_reliability_is_found(n_seeds, noise, metric):
    known = 1 / (1 + noise**2 / n_seeds)
    outcomes, true = simulate(n_seeds, noise)
    result = reliability(outcomes, metric, n_bootstrap=200)
    row = result.table.iloc[0]
    sampling_error = 0.03  # 6,000 effects
    assert float(row["reliability"]) == pytest.approx(known, abs=sampling_error)
    assert row["low"] < row["reliability"] < row["high"]
    # the ceiling is what the true effects reach
    reached = agreement(ScoreMatrix(true, range(30), range(200)), outcomes, metrics=["pearson"], n_bootstrap=2)
    assert result.ceiling()[10] == pytest.approx(float(reached.table["value"].iloc[0]), abs=sampling_error)


def test_pure_noise_has_no_reliability():
    outcomes, _ = simulate(4, 1.0)
    noise_only = Outcomes(
        center(outcomes.effects - outcomes.mean()), outcomes.level, 1e-16, (10,), "steps", range(30), outcomes.left_out
    )
    row = reliability(noise_only).table.iloc[0]  # the mean is removed: halves are exact opposites, and defined no more
    assert math.isnan(row["reliability"])
    assert row["note"] == "outcomes no more than rounding"
    assert row["n_undefined"] == 30


def test_negative_reliability_has_ceiling_zero_and_says_so():
    outcomes, true = simulate(2, 1.0)
    opposed = center(torch.stack([true, -0.9 * true])[:, None])
    against = Outcomes(opposed, outcomes.level, 1e-16, (10,), "steps", range(30), outcomes.left_out)
    row = reliability(against).table.iloc[0]
    assert float(row["reliability"]) == pytest.approx(-1)
    assert row["ceiling"] == 0
    assert row["note"] == "negative reliability: ceiling set to 0"


def test_one_seed_gives_nan_and_a_note():
    outcomes, _ = simulate(1, 1.0)
    row = reliability(outcomes).table.iloc[0]
    assert math.isnan(row["reliability"])
    assert math.isnan(row["ceiling"])
    assert (row["note"], row["n_splits"]) == ("one seed: reliability needs two", 0)


@pytest.mark.parametrize(("n_seeds", "n_all"), [(2, 1), (3, 3), (4, 3), (5, 15), (6, 10), (8, 35)])
def test_all_splits_are_used_when_they_are_few(n_seeds, n_all):
    splits = _splits(n_seeds, 50, seed=0)
    assert len({frozenset([frozenset(a), frozenset(b)]) for a, b in splits}) == n_all
    assert all(len(a) == len(b) == n_seeds // 2 and not set(a) & set(b) for a, b in splits)


def test_random_splits_when_they_are_many():
    splits = _splits(10, 50, seed=0)
    assert len(splits) == 50
    assert all(len(a) == len(b) == 5 and not set(a) & set(b) for a, b in splits)
    assert splits == _splits(10, 50, seed=0)
    assert splits != _splits(10, 50, seed=1)
