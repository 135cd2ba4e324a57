"""Weights that follow another method's scores, against dense correlations and a fine search."""

import json

import pytest
import torch
from torch.testing import assert_close

from whence.errors import DataError, InputError, WhenceWarning
from whence.scores import ScoreMatrix
from whence.task import ParameterGroups
from whence.weights import Contributions, ContributionStream, distill_weights, relative_to_norms
from whence.weights.distilled import Agreement

F64 = torch.float64
N_QUERY, N_TRAIN, N_GROUPS = 10, 80, 4
ROUNDED = {"rtol": 1e-9, "atol": 1e-9}


def contributions_of(values):
    n_query, n_train, n_groups = values.shape
    names = tuple(f"g{j}" for j in range(n_groups))
    groups = ParameterGroups(names, tuple(range(n_groups)), (1,) * n_groups, names)
    return Contributions(values, groups, [f"q{q}" for q in range(n_query)], [f"t{i}" for i in range(n_train)])


def teacher_of(found, values, method="ekfac"):
    return ScoreMatrix(values, found.query_ids, found.train_ids, method=method)


@pytest.fixture
def found():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([10.0, 1.0, 0.1, 3.0], dtype=F64)
    return contributions_of((torch.randn(N_QUERY, N_TRAIN, N_GROUPS, generator=generator, dtype=F64) + 2) * sizes)


def agreement(found, teacher, weights, queries=None):
    """Mean correlation by `corrcoef`, query by query."""
    scores = found.values.double() @ weights
    rows = range(len(scores)) if queries is None else queries
    pairs = [torch.stack([scores[q], torch.as_tensor(teacher.values[q]).double()]) for q in rows]
    return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_teacher_that_is_a_weighting_is_found_again(found, streamed):
    true = torch.tensor([0.0, 2.0, 30.0, 0.5], dtype=F64)
    teacher = teacher_of(found, 7 * (found.values @ true) - 3)
    source = ContributionStream.of(found, block=9) if streamed else found
    weights = distill_weights(source, teacher)
    assert_close(weights.values, true / true.mean(), rtol=1e-4, atol=1e-4)
    assert weights.facts["queries"]["loss"]["weights"] == pytest.approx(-1, abs=1e-9)
    assert (weights.name, weights.method) == ("distilled", found.method)


def noisy_teacher(found, seed=1, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    signal = found.values[:, :, :2] @ torch.tensor([0.1, 1.0], dtype=F64)
    return teacher_of(found, signal + noise * torch.randn(signal.shape, generator=generator, dtype=F64))


def test_the_losses_are_mean_correlations(found):
    teacher = noisy_teacher(found)
    weights = distill_weights(found, teacher, holdout=0.2)
    away = [0, 5]
    learned_from = [q for q in range(N_QUERY) if q not in away]
    centered = found.values - found.values.mean(1, keepdim=True)
    rms = 1 / centered[learned_from].square().mean((0, 1)).sqrt()
    facts = json.loads(json.dumps(weights.facts, allow_nan=False))
    assert (facts["teacher"], facts["solver"]) == ("ekfac", "distilled")
    for part, queries in (("queries", learned_from), ("held_out", away)):
        assert facts[part]["n"] == len(queries)
        for name, values in (("uniform", torch.ones(N_GROUPS, dtype=F64)), ("rms", rms), ("weights", weights.values)):
            assert facts[part]["loss"][name] == pytest.approx(-float(agreement(found, teacher, values, queries)))


@pytest.mark.parametrize("seed", range(3))
def test_no_weights_nearby_agree_better(found, seed):
    teacher = noisy_teacher(found, seed)
    weights = distill_weights(found, teacher, holdout=0)
    best = float(agreement(found, teacher, weights.values))
    assert best > float(agreement(found, teacher, torch.ones(N_GROUPS, dtype=F64)))
    sizes = found.values.std((0, 1))
    generator = torch.Generator().manual_seed(seed)
    for step in (0.01, 0.1, 1.0):
        for _ in range(50):
            away = torch.randn(N_GROUPS, generator=generator, dtype=F64) * step * weights.values.mean() / sizes
            assert float(agreement(found, teacher, (weights.values + away).clamp_min(0) + 1e-12)) < best + 1e-7


def test_streams_give_the_same(found):
    teacher = noisy_teacher(found)
    whole = distill_weights(found, teacher)
    streamed = distill_weights(ContributionStream.of(found, block=13), teacher)
    assert_close(streamed.values, whole.values, **ROUNDED)


def test_ids_are_matched_not_positions(found):
    teacher = noisy_teacher(found)
    rows, columns = torch.randperm(N_QUERY), torch.randperm(N_TRAIN)
    shuffled = ScoreMatrix(
        torch.as_tensor(teacher.values)[rows][:, columns],
        [found.query_ids[q] for q in rows.tolist()],
        [found.train_ids[i] for i in columns.tolist()],
        method="ekfac",
    )
    assert_close(distill_weights(found, shuffled).values, distill_weights(found, teacher).values, **ROUNDED)


def test_float32_contributions_and_constants_change_nothing(found):
    teacher = noisy_teacher(found)
    weights = distill_weights(found, teacher)
    moved = contributions_of(found.values.float() + 5)
    moved_teacher = teacher_of(found, torch.as_tensor(teacher.values) * 3 + torch.arange(N_QUERY)[:, None])
    assert_close(distill_weights(moved, moved_teacher).values, weights.values, rtol=1e-4, atol=1e-4)


def test_a_query_whose_teacher_is_constant_counts_for_nothing(found):
    values = torch.as_tensor(noisy_teacher(found).values).clone()
    values[3] = 1.5
    weights = distill_weights(found, teacher_of(found, values), holdout=0)
    others = [q for q in range(N_QUERY) if q != 3]
    fewer = contributions_of(found.values[others])
    alone = distill_weights(fewer, teacher_of(fewer, values[others]), holdout=0)
    # The query counts in the units of the groups, which change where the solver begins and not where it ends.
    assert_close(weights.values, alone.values, rtol=1e-4, atol=1e-4)


def test_groups_against_the_teacher_get_nothing_and_a_wrong_sign_is_told(found):
    opposite = teacher_of(found, -(found.values @ torch.ones(N_GROUPS, dtype=F64)))
    with pytest.warns(WhenceWarning, match="no group supports the signal"):
        weights = distill_weights(found, opposite)
    assert weights.facts["rounds"] == 0
    mixed = teacher_of(found, found.values[:, :, 0] - 20 * found.values[:, :, 1])
    assert float(distill_weights(found, mixed).values[1]) == 0


def test_relative_scores_are_divided_by_norms(found):
    teacher = noisy_teacher(found)
    norms = torch.linspace(0.5, 3, N_TRAIN, dtype=F64)
    norms[4] = 0
    divided = relative_to_norms(teacher, norms)
    expected = torch.as_tensor(teacher.values) / norms
    expected[:, 4] = 0
    assert_close(torch.as_tensor(divided.values), expected)
    assert (divided.unit, divided.provenance["relative"], divided.method) == (None, True, "ekfac")
    relative = relative_to_norms(found, norms)
    weights = distill_weights(relative, divided, holdout=0)
    best = float(agreement(relative, divided, weights.values))
    assert weights.facts["queries"]["loss"]["weights"] == pytest.approx(-best)


def test_what_cannot_be_followed_is_refused(found):
    teacher = noisy_teacher(found)
    with pytest.raises(DataError, match="q9"):
        distill_weights(found, teacher.select(query_ids=found.query_ids[:-1]))
    with pytest.raises(DataError, match="t79"):
        distill_weights(found, teacher.select(train_ids=found.train_ids[:-1]))
    with pytest.raises(InputError, match="same for all train examples"):
        distill_weights(found, teacher_of(found, torch.ones(N_QUERY, N_TRAIN)))
    with pytest.raises(InputError, match="holdout"):
        distill_weights(found, teacher, holdout=1.0)
    with pytest.raises(InputError, match="No group contributes"):
        distill_weights(contributions_of(torch.ones(N_QUERY, N_TRAIN, N_GROUPS)), teacher)


def test_the_signal_can_be_had_for_some_queries():
    generator = torch.Generator().manual_seed(2)
    gram = torch.randn(5, 3, 3, generator=generator, dtype=F64)
    problem = Agreement(gram @ gram.mT, torch.randn(5, 3, generator=generator, dtype=F64), N_TRAIN)
    x = problem.start()
    assert_close(problem.signal(x, torch.tensor([4, 1])), problem.signal(x)[[4, 1]])
    assert problem.shape == (5, N_TRAIN, 3)
