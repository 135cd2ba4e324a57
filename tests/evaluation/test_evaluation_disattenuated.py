"""Noise-free agreement: against loops over pairs of seeds, and against simulations where the truth is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from whence.errors import InputError
from whence.evaluation import agreement
from whence.evaluation.disattenuated import Disattenuation
from whence.scores import Outcomes, ScoreMatrix, center


def outcomes_of(effects, points=(1,)):
    """(n_seeds, n_points, n_query, n_sets) effects of single left-out examples."""
    _, _, n_query, n_sets = effects.shape
    return Outcomes(
        effects=center(effects),
        level=torch.ones(len(points), n_query),
        eps=1e-16,
        points=points,
        point_unit="steps",
        query_ids=range(n_query),
        left_out=[(i,) for i in range(n_sets)],
    )


def world(seed, *, n_seeds=4, n_query=16, n_sets=40, noise=1.0, quality=(0.4, 0.9)):
    """A random sample of queries, left-out examples and seeds; and the agreement of all there could be.

    Half of the variance of effects, of what scores have in common with nothing, and of noise is shared by all queries.
    """
    generator = torch.Generator().manual_seed(seed)

    def mixed(*shape):
        own = torch.randn(*shape, n_query, n_sets, generator=generator, dtype=torch.float64)
        shared = torch.randn(*shape, 1, n_sets, generator=generator, dtype=torch.float64)
        return math.sqrt(0.5) * (own + shared)

    low, high = quality
    rho = low + (high - low) * torch.rand(n_query, 1, generator=generator, dtype=torch.float64)
    true = mixed()
    scores = ScoreMatrix(rho * true + (1 - rho**2).sqrt() * mixed(), range(n_query), range(n_sets))
    return scores, outcomes_of((true + noise * mixed(n_seeds))[:, None]), (low + high) / 2


def by_hand(scores, outcomes):
    """Ratio of mean correlation to mean ceiling, the signal from products of different seeds only."""
    effects, values = outcomes.effects[:, 0].numpy(), scores.values.numpy()
    n_seeds, correlations, ceilings = len(effects), [], []
    for q in range(values.shape[0]):
        mean = effects[:, q].mean(0)
        correlations.append(np.corrcoef(values[q], mean)[0, 1])
        different = [np.mean(effects[s, q] * effects[t, q]) for s in range(n_seeds) for t in range(n_seeds) if s != t]
        ceilings.append(math.sqrt(max(0.0, np.mean(different)) / mean.var()))
    return np.mean(correlations) / np.mean(ceilings)


@pytest.mark.parametrize("n_seeds", [2, 3, 6])
def test_the_value_is_that_of_pairs_of_seeds(n_seeds):
    scores, outcomes, _ = world(0, n_seeds=n_seeds, noise=2.0)
    found = Disattenuation.of(outcomes, n_bootstrap=2).agreement(scores, n_seeds=math.inf).iloc[0]
    assert found["value"] == pytest.approx(by_hand(scores, outcomes), abs=1e-12)
    assert found["ceiling"] == 1


def test_with_as_many_seeds_it_is_the_plain_agreement():
    scores, outcomes, _ = world(1)
    resampled = Disattenuation.of(outcomes, n_bootstrap=2)
    plain = agreement(scores, outcomes, metrics=["pearson"], n_bootstrap=2).table["value"].iloc[0]
    for n_seeds in (None, 4):
        found = resampled.agreement(scores, n_seeds=n_seeds).iloc[0]
        assert found["value"] == pytest.approx(plain, abs=1e-12)
        assert found["n_query"] == 16


def test_more_seeds_take_noise_away_as_their_number_says():
    noise = 3.0
    scores, outcomes, truth = world(2, n_seeds=5, n_query=8, n_sets=4_000, noise=noise, quality=(0.6, 0.6))
    resampled = Disattenuation.of(outcomes, n_bootstrap=2)
    sampling_error = 0.05  # 4,000 examples
    for m in (1, 5, 15, math.inf):
        ceiling = 1 / math.sqrt(1 + noise**2 / m)
        found = resampled.agreement(scores, n_seeds=m).iloc[0]
        assert found["ceiling"] == pytest.approx(ceiling, abs=sampling_error)
        assert found["value"] == pytest.approx(truth * ceiling, abs=sampling_error)


def test_intervals_cover_as_often_as_they_say():
    n_worlds, noise, n_seeds = 200, 1.0, 4
    ceiling = 1 / math.sqrt(1 + noise**2 / n_seeds)
    hits = {"noise-free": 0, "as many seeds": 0}
    for seed in range(n_worlds):
        scores, outcomes, truth = world(seed, n_seeds=n_seeds, n_query=12, noise=noise)
        resampled = Disattenuation.of(outcomes, n_bootstrap=100)
        free = resampled.agreement(scores, n_seeds=math.inf).iloc[0]
        raw = resampled.agreement(scores).iloc[0]
        hits["noise-free"] += free["low"] <= truth <= free["high"]
        hits["as many seeds"] += raw["low"] <= truth * ceiling <= raw["high"]
    for name, count in hits.items():
        assert 0.9 <= count / n_worlds <= 0.99, (name, count / n_worlds)


def test_a_large_share_leaves_less_to_chance():
    scores, outcomes, _ = world(3, n_query=40, noise=0.1, quality=(0.5, 0.5))

    def width(share):
        row = Disattenuation.of(outcomes, share=share).agreement(scores).iloc[0]
        return row["high"] - row["low"]

    widths = [width(share) for share in (0.0, 0.5, 0.99)]
    assert widths == sorted(widths, reverse=True)
    assert widths[1] < 0.85 * widths[0]


def test_one_matrix_for_each_point_and_the_same_for_all():
    scores, outcomes, _ = world(4)
    other, more, _ = world(5)
    both = outcomes_of(torch.cat([outcomes.effects, more.effects], 1), (1, 2))
    found = Disattenuation.of(both, n_bootstrap=50).agreement({1: scores, 2: other}, n_seeds=math.inf)
    each = [
        Disattenuation.of(one, n_bootstrap=50).agreement(own, n_seeds=math.inf).iloc[0]
        for one, own in ((outcomes, scores), (more, other))
    ]
    assert found["point"].tolist() == [1, 2]
    for name in ("value", "low", "high"):
        assert found[name].tolist() == pytest.approx([row[name] for row in each], abs=1e-12)


def test_what_has_no_correlation_is_nan():
    scores, outcomes, _ = world(6)
    flat = dataclasses.replace(scores, values=torch.cat([scores.values[:4], torch.ones(12, 40)]))
    row = Disattenuation.of(outcomes, n_bootstrap=20).agreement(flat).iloc[0]
    assert row["n_query"] == 4
    assert not math.isnan(row["low"])
    constant = dataclasses.replace(scores, values=torch.ones(16, 40))
    row = Disattenuation.of(outcomes, n_bootstrap=20).agreement(constant).iloc[0]
    assert (row["n_query"], math.isnan(row["value"]), math.isnan(row["low"])) == (0, True, True)


def test_pure_noise_has_no_noise_free_value():
    scores, outcomes, _ = world(7, n_seeds=2)
    first = outcomes.effects[0]
    opposed = dataclasses.replace(outcomes, effects=torch.stack([first, -0.9 * first]))
    resampled = Disattenuation.of(opposed, n_bootstrap=20)
    row = resampled.agreement(scores, n_seeds=math.inf).iloc[0]
    assert math.isnan(row["value"])
    assert math.isnan(row["low"])
    assert not math.isnan(resampled.agreement(scores).iloc[0]["value"])


def test_one_query_has_no_interval():
    scores, outcomes, _ = world(8, n_query=1)
    row = Disattenuation.of(outcomes, n_bootstrap=20).agreement(scores).iloc[0]
    assert not math.isnan(row["value"])
    assert math.isnan(row["low"])


def test_what_cannot_be_resampled_is_refused():
    _, outcomes, _ = world(9)
    with pytest.raises(InputError, match="have one seed"):
        Disattenuation.of(dataclasses.replace(outcomes, effects=outcomes.effects[:1]))
    with pytest.raises(InputError, match=r"one size; got \[1, 2\]"):
        Disattenuation.of(dataclasses.replace(outcomes, left_out=((0, 40), *outcomes.left_out[1:])))
    with pytest.raises(InputError, match=r"`share` must be in \[0, 1\)"):
        Disattenuation.of(outcomes, share=1.0)
