"""Agreement of scores with outcomes."""

import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from whence.errors import DataError, InputError, UnknownNameError
from whence.evaluation import Agreement, agreement, seeds_curve
from whence.evaluation.bootstrap import seed_weights
from whence.scores import Outcomes, ScoreMatrix, center

N_QUERY, N_SETS = 6, 20
FEW = {"n_bootstrap": 20}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outcomes_of(effects, **changes):
    """Outcomes of leave-one-out effects (n_seeds, n_points, n_query, n_sets), train ids 100, 101, ..."""
    n_points, n_query, n_sets = effects.shape[1:]
    sizes = [len(ids) for ids in changes["left_out"]] if "left_out" in changes else None
    fields = {
        "effects": center(effects, sizes) if changes.get("adjustment", "mean") == "mean" else effects,
        "level": torch.ones(n_points, n_query),
        "eps": 2.0**-52,
        "points": tuple(2**p for p in range(n_points)),
        "point_unit": "epochs",
        "query_ids": [f"q{i}" for i in range(n_query)],
        "left_out": [(100 + i,) for i in range(n_sets)],
    }
    return Outcomes(**(fields | changes))


def matrix_of(values, method="m", train_ids=None):
    n_query, n_train = values.shape
    ids = range(100, 100 + n_train) if train_ids is None else train_ids
    return ScoreMatrix(values, [f"q{i}" for i in range(n_query)], ids, method=method)


def value(result, metric, point=1):
    table = result.table
    return float(table[(table["metric"] == metric) & (table["point"] == point)]["value"].iloc[0])


def test_perfect_scores_agree_and_negated_ones_disagree():
    effects = center(normal(1, 2, N_QUERY, N_SETS))
    outcomes = outcomes_of(effects)
    by_point = {point: matrix_of(effects[0, p]) for p, point in enumerate(outcomes.points)}
    negated = {point: matrix_of(-effects[0, p]) for p, point in enumerate(outcomes.points)}
    assert_close(torch.tensor(agreement(by_point, outcomes, **FEW).table["value"].to_numpy()), torch.ones(6).double())
    assert_close(torch.tensor(agreement(negated, outcomes, **FEW).table["value"].to_numpy()), -torch.ones(6).double())


def test_values_and_sem_equal_scipy():
    effects, scores = normal(3, 1, N_QUERY, N_SETS), normal(N_QUERY, N_SETS, seed=1) + 0.5
    gold = effects.mean(0)[0] - effects.mean(0)[0].mean(1, keepdim=True)
    result = agreement(matrix_of(scores), outcomes_of(effects), **FEW)
    pairs = list(zip(scores.numpy(), gold.numpy(), strict=True))
    pearsons = torch.tensor([scipy.stats.pearsonr(s, g).statistic for s, g in pairs], dtype=torch.float64)
    assert_close(result.per_query["m"]["pearson"][0], pearsons)
    assert_close(value(result, "pearson"), float(pearsons.mean()))
    row = result.table.set_index("metric").loc["pearson"]
    assert_close(float(row["sem"]), float(pearsons.std(correction=1)) / math.sqrt(N_QUERY))
    assert (row["n_query"], row["n_undefined"], row["note"]) == (N_QUERY, 0, "")
    spearmans = [scipy.stats.spearmanr(s, g).statistic for s, g in pairs]
    assert_close(value(result, "spearman"), sum(spearmans) / N_QUERY)
    # as published, the scores keep their offset in the cosine
    cosines = [float(s @ g / (s @ s) ** 0.5 / (g @ g) ** 0.5) for s, g in pairs]
    assert_close(value(result, "cosine"), sum(cosines) / N_QUERY)


def test_tiny_effects_are_not_clamped():
    effects = center(normal(1, 1, N_QUERY, N_SETS)) * 1e-8
    outcomes = outcomes_of(effects, level=torch.full((1, N_QUERY), 1e-3))
    assert_close(value(agreement(matrix_of(effects[0, 0]), outcomes, **FEW), "cosine"), 1.0)


def test_constant_scores_are_nan_and_named():
    constant = matrix_of(torch.full((N_QUERY, N_SETS), 0.1))
    result = agreement(constant, outcomes_of(normal(2, 1, N_QUERY, N_SETS)), **FEW)
    row = result.table.set_index("metric").loc["pearson"]
    assert math.isnan(row["value"])
    assert math.isnan(row["low"])
    assert (row["note"], row["n_query"], row["n_undefined"]) == ("constant scores", 0, N_QUERY)
    assert "m, pearson at 1 epochs: constant scores for all queries, such as 'q0'" in result.notes
    assert result.undefined == {1: []}
    zero = agreement(matrix_of(torch.zeros(N_QUERY, N_SETS)), outcomes_of(normal(2, 1, N_QUERY, N_SETS)), **FEW)
    assert zero.table.set_index("metric").loc["cosine", "note"] == "zero scores"


def test_constant_scores_of_groups_stay_constant():
    left_out = [tuple(range(100 + 7 * i, 107 + 7 * i)) for i in range(5)] + [(100,), (101,), (102,)]
    constant = matrix_of(torch.full((2, 35), 0.1, dtype=torch.float64))
    result = agreement(constant, outcomes_of(normal(2, 1, 2, 8), left_out=left_out), **FEW)
    assert set(result.table[result.table["metric"] != "cosine"]["note"]) == {"constant scores"}


def test_rounding_rows_are_named_and_not_averaged():
    effects = center(normal(1, 1, N_QUERY, N_SETS))
    scores = effects[0, 0].clone()
    scores[3] *= -1
    effects[0, 0, 3] *= 1e-17
    result = agreement(matrix_of(scores), outcomes_of(effects), **FEW)
    assert result.undefined == {1: ["q3"]}
    assert_close(value(result, "cosine"), 1.0)
    assert list(result.table["n_undefined"]) == [1, 1, 1]
    nothing = agreement(matrix_of(scores), outcomes_of(effects * 1e-20), **FEW)
    assert set(nothing.table["note"]) == {"outcomes no more than rounding"}


def test_some_constant_rows_are_counted():
    effects = center(normal(1, 1, N_QUERY, N_SETS))
    scores = effects[0, 0].clone()
    scores[2] = 0
    result = agreement(matrix_of(scores), outcomes_of(effects), metrics=["pearson"], **FEW)
    assert list(result.table["n_query"]) == [N_QUERY - 1]
    assert result.notes[-1] == "m, pearson at 1 epochs: constant scores for 1 queries, such as 'q2'"


def test_scores_of_a_group_are_summed():
    scores = normal(2, 6)
    left_out = [(100, 101), (102, 103), (105, 104)]
    effects = torch.stack([scores[:, :2].sum(1), scores[:, 2:4].sum(1), scores[:, 4:].sum(1)], dim=1)
    result = agreement(matrix_of(scores), outcomes_of(effects[None, None], left_out=left_out), **FEW)
    assert_close(value(result, "pearson"), 1.0)


def test_sizes_are_compared_among_themselves():
    # Among singles and among pairs the scores are right; the common effect of a size is not the scores' doing.
    scores = center(normal(2, 12))
    left_out = [(100 + i,) for i in range(6)] + [(100 + i, 101 + i) for i in range(6)]
    sums = torch.cat([scores[:, :6], scores[:, :6] + scores[:, 1:7]], dim=1)
    common = torch.tensor([100.0] * 6 + [-300.0] * 6)
    for adjustment in ("mean", "full"):
        effects = (sums + common * torch.tensor([[1.0], [2.0]])).expand(2, 1, -1, -1)  # two equal seeds
        result = agreement(matrix_of(scores), outcomes_of(effects, left_out=left_out, adjustment=adjustment), **FEW)
        for name in ("pearson", "spearman"):
            row = result.table.set_index("metric").loc[name]
            assert_close([row["value"], row["low"], row["high"]], [1.0, 1.0, 1.0])


def test_only_the_mean_adjustment_centers_outcomes():
    effects, scores = normal(2, 1, N_QUERY, N_SETS), matrix_of(normal(N_QUERY, N_SETS, seed=1) + 1)
    centered = agreement(scores, outcomes_of(effects), **FEW)
    shifted = agreement(scores, replace(outcomes_of(effects), effects=effects + 3), **FEW)
    assert_close(shifted.per_query["m"]["cosine"], centered.per_query["m"]["cosine"])
    full = agreement(scores, outcomes_of(effects + 3, adjustment="full"), **FEW)
    assert value(full, "cosine") > value(centered, "cosine") + 0.3
    assert_close(value(full, "pearson"), value(centered, "pearson"))


def test_ids_are_matched_not_positions():
    effects, scores = normal(2, 1, N_QUERY, N_SETS), normal(N_QUERY, N_SETS + 5, seed=1)
    outcomes = outcomes_of(effects)
    order = torch.randperm(N_SETS + 5, generator=torch.Generator().manual_seed(0))
    shuffled = matrix_of(scores[:, order], train_ids=[100 + i for i in order.tolist()])
    expected = agreement(matrix_of(scores), outcomes, **FEW)
    assert agreement(shuffled, outcomes, **FEW).table.equals(expected.table)
    upside_down = shuffled.rows(list(reversed(shuffled.query_ids)))
    assert agreement(upside_down, outcomes, **FEW).table.equals(expected.table)
    with pytest.raises(DataError, match="1 train ids are not among the 19 scored: 119"):
        agreement(matrix_of(scores[:, :19]), outcomes)


def test_mappings_must_fit_the_outcomes():
    effects = normal(1, 2, N_QUERY, N_SETS)
    outcomes = outcomes_of(effects)
    with pytest.raises(InputError, match=r"measured at \[1, 2\] epochs; scores for \[2\] are missing"):
        agreement({1: matrix_of(effects[0, 0])}, outcomes)
    with pytest.raises(InputError, match="from one method; got a, b"):
        agreement({1: matrix_of(effects[0, 0], "a"), 2: matrix_of(effects[0, 1], "b")}, outcomes)
    with pytest.raises(UnknownNameError, match="pearson"):
        agreement(matrix_of(effects[0, 0]), outcomes, metrics=["pearsn"])
    with pytest.raises(InputError, match="confidence"):
        agreement(matrix_of(effects[0, 0]), outcomes, confidence=95)


def test_one_seed_and_one_query_say_what_is_missing():
    effects = normal(1, 1, N_QUERY, N_SETS)
    one_seed = agreement(matrix_of(normal(N_QUERY, N_SETS, seed=1)), outcomes_of(effects), **FEW)
    assert one_seed.notes == ("one seed: intervals cover the spread over queries only",)
    assert one_seed.table["low"].notna().all()
    one_query = agreement(matrix_of(normal(1, N_SETS, seed=1)), outcomes_of(normal(3, 1, 1, N_SETS)), **FEW)
    assert one_query.notes == ("one query: no interval",)
    assert one_query.table[["sem", "low", "high"]].isna().all(axis=None)
    assert one_query.table["value"].notna().all()


def test_several_methods_in_one_table():
    effects = normal(2, 2, N_QUERY, N_SETS)
    outcomes = outcomes_of(effects)
    parts = [agreement(matrix_of(normal(N_QUERY, N_SETS, seed=s), f"m{s}"), outcomes, **FEW) for s in (1, 2)]
    both = Agreement.concat(parts)
    assert both.methods == ["m1", "m2"]
    assert len(both.table) == 2 * 2 * 3
    figures = both.to_dict("pearson")
    row = both.table.query("method == 'm2' and point == 2 and metric == 'pearson'").iloc[0]
    assert figures["m2"][2] == [row["value"], row["low"], row["high"]]
    with pytest.raises(UnknownNameError, match="cosine"):
        both.to_dict("r2")
    with pytest.raises(InputError, match="more than once"):
        Agreement.concat([parts[0], parts[0]])
    fewer_seeds = agreement(matrix_of(effects[0, 0], "other"), outcomes_of(effects[:1]), **FEW)
    with pytest.raises(InputError, match="same outcomes"):
        Agreement.concat([parts[0], fewer_seeds])


def test_bootstrap_repeats_with_its_seed_and_contains_the_value():
    outcomes = outcomes_of(normal(3, 1, N_QUERY, N_SETS))
    scores = matrix_of(outcomes.mean()[0] + normal(N_QUERY, N_SETS, seed=1))
    first, again = agreement(scores, outcomes, n_bootstrap=200), agreement(scores, outcomes, n_bootstrap=200)
    assert first.table.equals(again.table)
    assert not first.table.equals(agreement(scores, outcomes, n_bootstrap=200, seed=1).table)
    assert (first.table["low"] < first.table["value"]).all()
    assert (first.table["value"] < first.table["high"]).all()


def test_seed_weights_have_the_moments_of_drawn_shares():
    n, many = 4, 100_000
    weights = seed_weights(n, many, seed=0)
    assert_close(weights.sum(1), torch.ones(many, dtype=torch.float64))
    five_standard_errors = {"rtol": 0, "atol": 0.004}
    assert_close(weights.mean(0), torch.full((n,), 1 / n, dtype=torch.float64), **five_standard_errors)
    multinomial = (torch.eye(n, dtype=torch.float64) - 1 / n) / n**2
    assert_close(torch.cov(weights.T), multinomial, **five_standard_errors)
    assert_close(seed_weights(1, 3, seed=0), torch.ones(3, 1, dtype=torch.float64))


def test_intervals_cover_the_mean_agreement_with_as_many_seeds():
    n_worlds, n_seeds, n_query, n_sets = 100, 4, 25, 30
    error = 2 * torch.rand(n_worlds, n_query, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    true = normal(n_worlds, n_query, n_sets, seed=1)
    scores = true + error * normal(n_worlds, n_query, n_sets, seed=2)
    # half of the noise of a seed moves all queries alike
    noise = normal(n_worlds, n_seeds, n_query, n_sets, seed=3) + normal(n_worlds, n_seeds, 1, n_sets, seed=4)
    effects = true[:, None] + noise / math.sqrt(2)
    rows = [
        agreement(matrix_of(s), outcomes_of(e[:, None]), metrics=["pearson"], n_bootstrap=150).table.iloc[0]
        for s, e in zip(scores, effects, strict=True)
    ]
    values = torch.tensor([row["value"] for row in rows])
    covered = sum(bool(row["low"] <= float(values.mean()) <= row["high"]) for row in rows) / n_worlds
    assert covered >= 0.88  # nominal 0.95; three standard errors of 100 worlds are 0.07
    width = sum(row["high"] - row["low"] for row in rows) / n_worlds
    assert width / (2 * 1.96 * float(values.std())) == pytest.approx(1, abs=0.3)


# --- seeds curve ------------------------------------------------------------------------------------------------------


def test_seeds_curve_by_hand():
    effects = center(normal(5, 2, 3, 8))
    scores = normal(3, 8, seed=1)
    table = seeds_curve(matrix_of(scores), outcomes_of(effects), counts=[2]).iloc[0]
    means = []
    for p in range(2):
        windows = torch.stack([effects[0:2, p].mean(0), effects[2:4, p].mean(0)])  # seed 4 is left over
        cosines = torch.nn.functional.cosine_similarity(scores.expand_as(windows), windows, dim=-1)
        means.append(float(cosines.mean()))
        assert_close(float(table[f"value_at_{2**p}"]), means[p])
        assert_close(float(table[f"sem_at_{2**p}"]), float(cosines.std()) / math.sqrt(6))
    assert (table["seeds"], table["n_windows"]) == (2, 2)
    assert_close(float(table["value"]), max(means))
    assert table["point"] == 2 ** means.index(max(means))


def test_seeds_curve_ends_at_the_agreement_with_all_seeds():
    outcomes, scores = outcomes_of(normal(6, 3, N_QUERY, N_SETS)), matrix_of(normal(N_QUERY, N_SETS, seed=1))
    curve = seeds_curve(scores, outcomes, metric="pearson")
    assert list(curve["seeds"]) == [1, 2, 5, 6]
    result = agreement(scores, outcomes, metrics=["pearson"], **FEW)
    assert_close(float(curve["value"].iloc[-1]), float(result.table["value"].max()))
    with pytest.raises(InputError, match="windows of 7 seeds; the outcomes have 6"):
        seeds_curve(scores, outcomes, counts=[7])


def test_seeds_curve_of_constant_scores_is_nan():
    curve = seeds_curve(matrix_of(torch.ones(2, 5)), outcomes_of(normal(2, 1, 2, 5)), metric="pearson")
    assert curve["value"].isna().all()
    assert curve["point"].isna().all()
