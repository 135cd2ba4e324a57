"""Linear datamodeling scores: right for scores that are right, blind to what they must not see, honest intervals."""

import math
import sys

import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from whence.data import random_kept_sets
from whence.errors import DataError, InputError
from whence.evaluation import lds
from whence.evaluation.bootstrap import resample_positions
from whence.scores import Outcomes, ScoreMatrix

F64 = torch.float64
N_QUERY, N_TRAIN, N_SETS = 6, 20, 16
FEW = {"n_bootstrap": 50}
KEPT = random_kept_sets(N_TRAIN, N_SETS, seed=0)
UNEVEN = [kept[: 6 + k % 4] for k, kept in enumerate(KEPT)]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def lacking(kept):
    return [[i for i in range(N_TRAIN) if i not in own] for own in kept]


def sums(values, sets):
    """(n_query, n_sets) sums of columns."""
    return torch.stack([values[:, list(own)].sum(1) for own in sets], dim=1)


def outcomes_of(effects, kept=KEPT, **changes):
    """Outcomes of effects (n_seeds, n_points, n_query, n_sets) on kept sets of trains 100, 101, ..."""
    n_points, n_query = effects.shape[1:3]
    fields = {
        "effects": effects - effects.mean(-1, keepdim=True),
        "level": torch.ones(n_points, n_query),
        "eps": 2.0**-52,
        "points": tuple(2**p for p in range(n_points)),
        "point_unit": "epochs",
        "query_ids": [f"q{i}" for i in range(n_query)],
        "left_out": tuple(tuple(100 + i for i in own) for own in lacking(kept)),
    }
    return Outcomes(**(fields | changes))


def additive(values, kept=KEPT):
    """What happens where influences simply add up: the effect is the sum of what a run lacks."""
    return outcomes_of(sums(values, lacking(kept))[None, None], kept)


def matrix_of(values, method="m", train_ids=None):
    n_query, n_train = values.shape
    ids = range(100, 100 + n_train) if train_ids is None else train_ids
    return ScoreMatrix(values, [f"q{i}" for i in range(n_query)], ids, method=method)


def row(result, name="m"):
    return result.table.set_index("name").loc[name]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [KEPT, UNEVEN], ids=["one size", "many sizes"])
def test_perfect_scores_give_one_and_their_negatives_minus_one(kept):
    values = normal(N_QUERY, N_TRAIN)
    outcomes = additive(values, kept)
    perfect = lds(matrix_of(values), outcomes, **FEW)
    assert_close(perfect.to_dict()["m"], [1.0, 1.0, 1.0])
    assert row(perfect)["high"] <= 1
    assert_close(lds(matrix_of(-values), outcomes, **FEW).to_dict()["m"], [-1.0, -1.0, -1.0])


def test_values_are_spearman_correlations_of_sums_over_kept_sets():
    """As published: the sum over what a run *kept* against how well it did, query by query."""
    effects, scores = normal(3, 1, N_QUERY, N_SETS), normal(N_QUERY, N_TRAIN, seed=1) + 0.5
    found = lds(matrix_of(scores), outcomes_of(effects), **FEW)
    did_well = -effects.mean(0)[0]
    pairs = zip(sums(scores, KEPT).numpy(), did_well.numpy(), strict=True)
    wanted = torch.tensor([scipy.stats.spearmanr(kept, well).statistic for kept, well in pairs], dtype=F64)
    assert_close(found.per_query["m"], wanted)
    assert_close(row(found)["value"], float(wanted.mean()))
    assert (row(found)["n_query"], row(found)["n_undefined"], row(found)["note"]) == (N_QUERY, 0, "")
    assert (found.n_sets, found.n_seeds, found.confidence) == (N_SETS, 3, 0.95)


def test_values_with_ties_are_those_of_scipy():
    effects = normal(1, 1, N_QUERY, N_SETS).round()
    scores = normal(N_QUERY, N_TRAIN, seed=1).round()
    found = lds(matrix_of(scores), outcomes_of(effects, level=torch.zeros(1, N_QUERY)), **FEW).per_query["m"]
    pairs = zip(sums(scores, lacking(KEPT)).numpy(), effects[0, 0].numpy(), strict=True)
    assert_close(found, torch.tensor([scipy.stats.spearmanr(s, e).statistic for s, e in pairs], dtype=F64))


@pytest.mark.parametrize("kept", [KEPT, UNEVEN], ids=["one size", "many sizes"])
def test_constants_of_a_query_change_nothing(kept):
    effects, scores = normal(2, 1, N_QUERY, N_SETS), normal(N_QUERY, N_TRAIN, seed=1)
    outcomes = outcomes_of(effects, kept)
    shifted = matrix_of(scores + torch.linspace(-3, 3, N_QUERY, dtype=F64)[:, None])
    found, wanted = lds(shifted, outcomes, **FEW), lds(matrix_of(scores), outcomes, **FEW)
    assert_close(found.per_query["m"], wanted.per_query["m"])
    assert_close(found.to_dict()["m"], wanted.to_dict()["m"])


def test_positive_factors_of_a_query_change_nothing():
    effects, scores = normal(2, 1, N_QUERY, N_SETS), normal(N_QUERY, N_TRAIN, seed=1)
    factors = torch.logspace(-6, 6, N_QUERY, dtype=F64)[:, None]
    found, wanted = (lds(matrix_of(s), outcomes_of(effects), **FEW).to_dict() for s in (scores * factors, scores))
    assert_close(found, wanted)


def test_ids_are_matched_not_positions():
    effects, scores = normal(2, 1, N_QUERY, N_SETS), normal(N_QUERY, N_TRAIN + 5, seed=1)
    outcomes = outcomes_of(effects)
    order = torch.randperm(N_TRAIN + 5, generator=torch.Generator().manual_seed(0))
    shuffled = matrix_of(scores[:, order], train_ids=[100 + i for i in order.tolist()])
    upside_down = shuffled.rows(list(reversed(shuffled.query_ids)))
    wanted = lds(matrix_of(scores[:, :N_TRAIN]), outcomes, **FEW)
    for matrix in (shuffled, upside_down):
        assert lds(matrix, outcomes, **FEW).table.equals(wanted.table)
    with pytest.raises(DataError, match="119"):
        lds(matrix_of(scores[:, :19]), outcomes)
    with pytest.raises(DataError, match="q5"):
        lds(matrix_of(scores[:5]), outcomes)


def test_the_point_is_chosen_and_the_last_without_a_choice():
    values, other = normal(N_QUERY, N_TRAIN), normal(N_QUERY, N_TRAIN, seed=1)
    effects = torch.stack([sums(v, lacking(KEPT)) for v in (values, other)])[None]
    outcomes = outcomes_of(effects)
    scores = {"first": matrix_of(values), "last": matrix_of(other)}
    assert_close(row(lds(scores, outcomes, point=1, **FEW), "first")["value"], 1.0)
    assert_close(row(lds(scores, outcomes, point=2, **FEW), "last")["value"], 1.0)
    assert lds(scores, outcomes, **FEW).table.equals(lds(scores, outcomes, point=2, **FEW).table)
    assert row(lds(scores, outcomes, **FEW), "first")["value"] < 0.9


# --- intervals --------------------------------------------------------------------------------------------------------


def test_intervals_of_random_scores_contain_zero():
    """Each aims at 95 %. Scores and outcomes that know nothing of each other: 40 worlds, all counted."""
    covered = 0
    for seed in range(40):
        outcomes = outcomes_of(normal(1, 1, N_QUERY, N_SETS, seed=seed))
        found = row(lds(matrix_of(normal(N_QUERY, N_TRAIN, seed=1000 + seed)), outcomes, n_bootstrap=100))
        assert found["low"] < found["value"] < found["high"]
        covered += found["low"] <= 0 <= found["high"]
    assert covered >= 34  # three standard deviations of 40 draws at 0.95 are 4.1 below 38


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_intervals_are_as_wide_as_repetitions_differ(truth):
    """Truth common to all queries of a set: resampling queries alone would be too narrow by far."""
    n_worlds, n_query, n_sets = 60, 12, 24
    values, widths, covered = [], [], []
    for world in range(n_worlds):
        kept = random_kept_sets(N_TRAIN, n_sets, seed=world)
        scores = normal(1, N_TRAIN, seed=3 * world).expand(n_query, -1) + 0.3 * normal(
            n_query, N_TRAIN, seed=500 + world
        )
        noise = normal(1, n_sets, seed=7000 + world) + 0.3 * normal(n_query, n_sets, seed=9000 + world)
        effects = truth * sums(scores, lacking(kept)) + 2.5 * noise
        found = row(lds(matrix_of(scores), outcomes_of(effects[None, None], kept), n_bootstrap=80))
        values.append(found["value"])
        widths.append(found["high"] - found["low"])
        covered.append((found["low"], found["high"]))
    values, widths = torch.tensor(values), torch.tensor(widths)
    expected = float(values.mean())
    share = sum(low <= expected <= high for low, high in covered) / n_worlds
    assert share >= 0.85  # nominal 0.95; three standard errors of 60 worlds are 0.084, and bootstraps of 24 fall short
    assert float(widths.mean()) / (2 * 1.96 * float(values.std())) == pytest.approx(1, abs=0.3)


def test_the_bootstrap_repeats_with_its_seed():
    outcomes, scores = outcomes_of(normal(2, 1, N_QUERY, N_SETS)), matrix_of(normal(N_QUERY, N_TRAIN, seed=1))
    first = lds(scores, outcomes, **FEW)
    assert lds(scores, outcomes, **FEW).table.equals(first.table)
    assert not lds(scores, outcomes, **FEW, seed=1).table.equals(first.table)
    narrow = lds(scores, outcomes, **FEW, confidence=0.5)
    assert row(first)["low"] < row(narrow)["low"] < row(narrow)["high"] < row(first)["high"]
    assert first.replicates["m"].shape == (50,)


@pytest.mark.parametrize("kept", [KEPT, UNEVEN], ids=["one size", "many sizes"])
def test_replicates_in_parts_are_the_same(monkeypatch, kept):
    outcomes, scores = outcomes_of(normal(1, 1, N_QUERY, N_SETS), kept), matrix_of(normal(N_QUERY, N_TRAIN, seed=1))
    whole = lds(scores, outcomes, **FEW).replicates["m"]
    monkeypatch.setattr(sys.modules["whence.evaluation.lds"], "_WORKING_ELEMENTS", 3 * N_QUERY * N_SETS)
    assert_close(lds(scores, outcomes, **FEW).replicates["m"], whole)


def test_ranks_from_counts_are_those_of_sorting():
    """Ties among scores and among outcomes, and a query whose scores are all alike."""
    module = sys.modules["whence.evaluation.lds"]
    x, y = normal(N_QUERY, N_SETS).mul(2).round(), normal(N_QUERY, N_SETS, seed=1).mul(3).round()
    x[1] = 4.0
    drawn = resample_positions(N_SETS, 200, 0, "kept sets")
    sorted_ = module._by_sorting(x, y, drawn, torch.full((N_SETS,), 3))
    assert bool(sorted_[:, 1].isnan().all())
    assert not bool(sorted_[:, 2].isnan().all())
    assert_close(module._by_counts(x, y, drawn), sorted_, equal_nan=True, rtol=0, atol=1e-12)


def test_replicates_by_hand():
    """Each draws sets for all queries alike, and queries; undefined correlations (one set only) are left out."""
    effects, scores = normal(1, 1, 1, N_SETS), normal(1, N_TRAIN, seed=1)
    found = lds(matrix_of(scores), outcomes_of(effects), n_bootstrap=5, seed=3).replicates["m"]
    predicted = sums(scores, lacking(KEPT))[0]
    for value, at in zip(found.tolist(), resample_positions(N_SETS, 5, 3, "kept sets"), strict=True):
        assert_close(value, float(scipy.stats.spearmanr(predicted[at], effects[0, 0, 0, at]).statistic))


def test_drawn_positions_are_uniform_and_named():
    drawn = resample_positions(5, 4000, 0, "kept sets")
    assert drawn.shape == (4000, 5)
    assert torch.equal(drawn, resample_positions(5, 4000, 0, "kept sets"))
    for other in (resample_positions(5, 4000, 1, "kept sets"), resample_positions(5, 4000, 0, "queries")):
        assert not torch.equal(drawn, other)
    # 20 000 draws, 1/5 each: five standard errors are 0.014
    assert_close(drawn.flatten().bincount(minlength=5) / 20_000, torch.full((5,), 0.2), rtol=0, atol=0.014)


# --- differences ------------------------------------------------------------------------------------------------------


def test_differences_are_paired():
    values, noise = normal(N_QUERY, N_TRAIN), normal(N_QUERY, N_TRAIN, seed=1)
    outcomes = additive(values)
    scores = {name: matrix_of(values + s * noise) for name, s in (("good", 0.3), ("bad", 1.5), ("again", 0.3))}
    found = lds(scores, outcomes, n_bootstrap=200)
    assert found.difference("good", "good") == found.difference("good", "again") == [0.0, 0.0, 0.0]
    value, low, high = found.difference("good", "bad")
    assert 0 < low < value < high
    assert_close(value, row(found, "good")["value"] - row(found, "bad")["value"])
    back = found.difference("bad", "good")
    assert_close(back, [-value, -high, -low], rtol=1e-9, atol=1e-12)
    assert high - low < sum(row(found, name)["high"] - row(found, name)["low"] for name in ("good", "bad"))
    opposite = lds({"right": matrix_of(values), "wrong": matrix_of(-values)}, outcomes, **FEW)
    assert_close(opposite.difference("right", "wrong"), [2.0, 2.0, 2.0])
    with pytest.raises(InputError, match=r"No scores 'best' were compared\. Known: good, bad, again"):
        found.difference("good", "best")


def test_scores_together_are_scored_as_alone():
    outcomes = outcomes_of(normal(2, 1, N_QUERY, N_SETS))
    scores = {f"s{k}": matrix_of(normal(N_QUERY, N_TRAIN, seed=k), f"s{k}") for k in range(3)}
    together = lds(scores, outcomes, **FEW)
    assert list(together.table["name"]) == ["s0", "s1", "s2"]
    for name, matrix in scores.items():
        assert lds(matrix, outcomes, **FEW).to_dict()[name] == together.to_dict()[name]


# --- undefined --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [KEPT, UNEVEN], ids=["one size", "many sizes"])
def test_constant_scores_are_nan_and_noted(kept):
    outcomes = outcomes_of(normal(2, 1, N_QUERY, N_SETS), kept)
    constant = matrix_of(torch.full((N_QUERY, N_TRAIN), 0.1, dtype=F64))
    found = lds({"constant": constant, "m": matrix_of(normal(N_QUERY, N_TRAIN, seed=1))}, outcomes, **FEW)
    nothing = row(found, "constant")
    assert all(math.isnan(nothing[name]) for name in ("value", "low", "high"))
    assert (nothing["note"], nothing["n_query"], nothing["n_undefined"]) == (
        "constant scores, or outcomes no more than rounding",
        0,
        N_QUERY,
    )
    assert not math.isnan(row(found)["value"])
    assert all(math.isnan(v) for v in found.difference("constant", "m"))


def test_single_undefined_queries_are_counted_and_left_out():
    effects, scores = normal(1, 1, N_QUERY, N_SETS), normal(N_QUERY, N_TRAIN, seed=1)
    whole = lds(matrix_of(scores), outcomes_of(effects), **FEW).per_query["m"]
    scores[2] = 0.25
    effects[0, 0, 4] *= 1e-20  # below the rounding of the measure
    found = lds(matrix_of(scores), outcomes_of(effects), **FEW)
    assert found.per_query["m"].isnan().nonzero().flatten().tolist() == [2, 4]
    defined = [0, 1, 3, 5]
    assert_close(row(found)["value"], float(whole[defined].mean()))
    assert (row(found)["n_query"], row(found)["n_undefined"], row(found)["note"]) == (4, 2, "")


def test_nan_scores_never_become_a_matrix():
    with pytest.raises(InputError, match="NaN"):
        matrix_of(torch.full((2, N_TRAIN), math.nan))


def test_what_cannot_be_judged_is_refused():
    effects, scores = normal(1, 1, N_QUERY, N_SETS), matrix_of(normal(N_QUERY, N_TRAIN, seed=1))
    two = outcomes_of(effects[..., :2], KEPT[:2])
    with pytest.raises(InputError, match="at least 3 kept sets; the outcomes have 2"):
        lds(scores, two)
    lds(scores, outcomes_of(effects[..., :3], KEPT[:3]), **FEW)
    with pytest.raises(InputError, match=r"measured at \[1\] epochs; got 3"):
        lds(scores, outcomes_of(effects), point=3)
    for wrong in ({"n_bootstrap": 0}, {"confidence": 95}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            lds(scores, outcomes_of(effects), **wrong)
