"""The audit: halves that share nothing, a choice that never sees the verdict, and a budget that is kept."""

import dataclasses
import math
import mmap
import time

import pandas as pd
import pytest
import torch
from torch import nn

import whence
from whence.algebra import Steps
from whence.errors import InputError, NumericalError
from whence.evaluation.disattenuated import Disattenuation
from whence.methods import Inputs
from whence.runs.options import method_options
from whence.studies.audit import Candidate, audit, default_candidates, forecast, pilot, run
from whence.studies.audit.cost import costed
from whence.studies.audit.forecast import Forecast, dense_seconds, extrapolated, motion_seconds
from whence.studies.audit.pilot import (
    HALVES,
    LEAST_SEEDS,
    Pilot,
    kept_plan,
    pilot_size,
    plan_pilot,
    run_pilot,
)
from whence.studies.audit.weighting import Weighting
from whence.testing.problems import linear_regression
from whence.training import Recipe

RECIPE = Recipe(lr=0.02, batch_size=8, epochs=3)
N_SEEDS = 4  # of a half at most, or every audit would use its time


@pytest.fixture(scope="module")
def problem():
    return linear_regression(n_train=40, n_features=4, n_query=6)


def parts(problem):
    return problem.task, problem.train, problem.queries


@pytest.fixture(scope="module", autouse=True)
def _few_seeds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pilot, "MOST_SEEDS", N_SEEDS)
        yield


@pytest.fixture(scope="module")
def found(problem, _few_seeds):
    return audit(*parts(problem), RECIPE, seconds=60, points=[1, 3])


def weighting_of(inputs, points=(3,)):
    return Weighting(inputs, RECIPE, points, None)


def test_halves_share_neither_examples_nor_seeds(found):
    choice, verdict = (found.gold[half] for half in HALVES)
    assert not set(choice.left_out) & set(verdict.left_out)
    assert not set(choice.seeds) & set(verdict.seeds)
    assert len(choice.left_out) == len(verdict.left_out) >= 10
    assert len(choice.seeds) == len(verdict.seeds) >= LEAST_SEEDS


def test_figures_are_those_of_the_halves(found, problem):
    scores = whence.attribute(*parts(problem), "horizon_ahead", recipe=RECIPE, at=[1, 3])
    row = found.table.set_index("candidate").loc["horizon_ahead"]
    for half in HALVES:
        table = whence.agreement(scores, found.gold[half].outcomes("mean"), metrics=["pearson"], n_bootstrap=10).table
        assert row[half] == pytest.approx(table["value"].mean(), abs=1e-12)
    own = found.by_point[found.by_point["candidate"] == "horizon_ahead"].set_index("point")
    assert own["value"].tolist() == pytest.approx(table.sort_values("point")["value"].tolist(), abs=1e-12)
    resampled = Disattenuation.of(
        found.gold["verdict"].outcomes("mean"), share=len(found.gold["verdict"].left_out) / 40, n_bootstrap=500
    )
    raw, free = resampled.agreement(scores), resampled.agreement(scores, n_seeds=math.inf)
    assert own[["low", "high"]].to_numpy().tolist() == raw[["low", "high"]].to_numpy().tolist()
    columns = ["noise_free", "noise_free_low", "noise_free_high"]
    assert own[columns].to_numpy().tolist() == free[["value", "low", "high"]].to_numpy().tolist()
    assert own["ceiling"].to_dict() == whence.reliability(found.gold["verdict"].outcomes("mean"), "pearson").ceiling()


def test_the_winner_is_the_best_of_the_choice_half_whatever_the_verdict(found):
    assert found.winner.label == found.table["candidate"].iloc[0]
    assert found.table["choice"].is_monotonic_decreasing
    best = found.table["verdict"].max()
    own = found.table.set_index("candidate").loc[found.winner.label, "verdict"]
    assert found.regret == pytest.approx(best - own)
    # A linear model with squared error: its further training is what these two compute.
    top = found.table["candidate"].tolist()[:3]
    assert {"horizon_ahead", "unrolled"} & set(top)
    assert found.verdict()[0] > 0.9


def test_a_random_control_never_wins(problem):
    only = [Candidate("random", "random"), Candidate("wrong", "grad_cos")]
    assert audit(*parts(problem), RECIPE, seconds=60, candidates=only).winner.label == "wrong"
    with pytest.raises(InputError, match="No candidate could be compared"):
        audit(*parts(problem), RECIPE, seconds=60, candidates=only[:1])


def test_what_fails_is_named_and_the_rest_goes_on(problem, monkeypatch):
    class Broken(Candidate):
        def scores(self, *rest):
            raise NumericalError("no inverse.")

    some = [Broken("broken", "grad_dot"), Candidate("grad_dot", "grad_dot")]
    found = audit(*parts(problem), RECIPE, seconds=60, candidates=some)
    rows = found.table.set_index("candidate")
    assert (rows.loc["broken", "note"], rows.loc["grad_dot", "note"]) == ("no inverse", "")
    assert math.isnan(rows.loc["broken", "verdict"])
    assert "broken: no inverse." in found.summary()
    assert found.to_dict()["candidates"][-1]["verdict"] is None


def test_candidates_that_cannot_begin_in_time_are_named(problem):
    some = [Candidate("grad_dot", "grad_dot"), Candidate("late", "grad_cos")]
    inputs = Inputs(*parts(problem))
    scored, failed = run._score(some, inputs, RECIPE, (3,), weighting_of(inputs), time.perf_counter() - 1)
    assert (scored, failed) == ({}, dict.fromkeys(("grad_dot", "late"), "not tried, the time was over"))


@pytest.fixture
def larger():
    return linear_regression(n_train=300, n_features=4, n_query=6)


def test_what_would_not_end_in_time_is_not_begun(larger, monkeypatch):
    inputs = Inputs(*parts(larger))
    begun = []
    real = Candidate.scores
    monkeypatch.setattr(
        Candidate, "scores", lambda self, given, *r: begun.append(given.n_train) or real(self, given, *r)
    )
    monkeypatch.setattr(Forecast, "seconds", lambda self, candidate, within: {"slow": 1e6}.get(candidate.label, 0.0))
    some = [Candidate("slow", "unrolled"), Candidate("fast", "grad_dot")]
    scored, failed = run._score(some, inputs, RECIPE, (3,), weighting_of(inputs), time.perf_counter() + 100)
    assert list(scored) == ["fast"]
    assert failed["slow"].startswith("not tried, it would take about 1.2e+06 s and 1e+02 s were left")
    assert begun == [300]


def test_forecasts_count_up_what_is_timed_on_a_part(larger, monkeypatch):
    """With a clock that only knows work: one second per example and query side, or per step."""
    inputs = Inputs(*parts(larger))
    now = [0.0]
    monkeypatch.setattr(forecast, "timed", lambda work: (now.__setitem__(0, 0.0), work(), now[0])[2])

    def scores(self, given, recipe, points, weights=None):
        steps = recipe.steps_at(points[-1], given.n_train)
        now[0] += steps if self.method == "unrolled" else 7 + given.n_train

    monkeypatch.setattr(Candidate, "scores", scores)
    known = Forecast(inputs, RECIPE, (1, 3), weighting_of(inputs, (1, 3)))
    n_steps = 38 * (1 + 3)  # ceil(300 / 8) steps an epoch; each amount has its own derivative
    assert known.seconds(Candidate("u", "unrolled"), 1e9) == n_steps
    assert known.seconds(Candidate("u", "unrolled"), 0.5) == n_steps
    assert known.seconds(Candidate("g", "grad_dot"), 10) == pytest.approx(7 + 300)
    assert known.seconds(Candidate("g", "grad_dot"), 1e9) == pytest.approx((7 + 16) * 300 / 16)  # rough, and too much


def test_a_curvature_is_paid_for_once(larger, monkeypatch):
    monkeypatch.setattr(forecast, "dense_seconds", lambda *sizes: 1000.0)
    inputs = Inputs(*parts(larger))
    known = Forecast(inputs, RECIPE, (3,), weighting_of(inputs))
    influence, horizon = Candidate("i", "influence_gn"), Candidate("h", "horizon")
    assert known.seconds(influence, 1.0) >= 1000
    assert known.seconds(horizon, 1.0) >= 1000
    known.done(influence)
    assert known.seconds(horizon, 1.0) == 0


def test_a_look_ahead_is_paid_for_at_every_amount(larger, monkeypatch):
    """Two amounts: each passes the queries, at one second each, and the exact one has algebra of its own."""
    monkeypatch.setattr(forecast, "timed", lambda work: (work(), 6.0)[1])
    monkeypatch.setattr(forecast, "motion_seconds", lambda *sizes, is_exact: 1000.0 if is_exact else 0.0)
    inputs = Inputs(*parts(larger))
    known = Forecast(inputs, RECIPE, (1, 3), weighting_of(inputs, (1, 3)))
    known.done(Candidate("h", "horizon"))
    assert known.seconds(Candidate("a", "horizon_ahead"), 1.0) == 2 * (6 + 1000)
    assert known.seconds(Candidate("b", "horizon_ahead", {"look_ahead": "both_shifts"}), 1.0) == 2 * 6
    assert known.seconds(Candidate("h", "horizon"), 1.0) == 0


def test_the_algebra_of_a_look_ahead_is_counted(monkeypatch):
    monkeypatch.setattr(forecast, "slowest_of", lambda work: 2 * forecast.DENSE**3)
    monkeypatch.setattr(forecast, "timed", lambda work: (work(), 5.0)[1])
    steps = Steps.of(0.1, 7)
    kernel = 5 * 768 / forecast.DENSE
    assert motion_seconds(768, 1000, 5, steps, is_exact=True) == 2 * 768**3 + kernel
    assert motion_seconds(1000, 768, 5, steps, is_exact=True) == 4 * 1000 * 768**2 + kernel
    assert motion_seconds(1000, 768, 5, steps, is_exact=False) == 0
    assert motion_seconds(10_000, 20_000, 5, steps, is_exact=True) == 6 * 10_000 * 20_000 * 100 * 5
    assert motion_seconds(10_000, 20_000, 5, steps, is_exact=False) == 4 * 10_000 * 20_000 * 100 * 5


@pytest.mark.parametrize(("momentum", "rows", "n_steps"), [(0.0, 384, 5000), (0.9, 384, 1000)])
def test_a_kernel_is_timed_on_a_part(momentum, rows, n_steps, monkeypatch):
    seen = []
    monkeypatch.setattr(forecast, "timed", lambda work: (work(), 2.0)[1])
    monkeypatch.setattr(forecast, "look_ahead_kernel", lambda a, b, steps: seen.append((len(a), len(b), steps.n_steps)))
    found = forecast.kernel_seconds(768, Steps.of(0.1, 5000, momentum=momentum))
    assert seen == [(rows, 768, n_steps)]
    assert found == 2.0 * (768 / rows) * (5000 / n_steps)
    forecast.kernel_seconds(100, Steps.of(0.1, 3, momentum=momentum))
    assert seen[1:] == [(100, 100, 3)]


def test_small_train_sets_need_no_forecast(problem):
    inputs = Inputs(*parts(problem))
    assert Forecast(inputs, RECIPE, (3,), weighting_of(inputs)).seconds(Candidate("g", "grad_dot"), 1.0) == 0


def test_dense_algebra_is_counted(monkeypatch):
    product = 2 * forecast.DENSE**3
    monkeypatch.setattr(forecast, "slowest_of", lambda work: 2.0 if work is torch.linalg.eigh else product)
    # One multiplication or addition a second. Dual and primal form: Gram matrix, and a decomposition of its size cubed.
    for n_rows, n_params in ((768, 1000), (1000, 768)):
        assert dense_seconds(n_rows, n_params, 5) == 2 * 768 * 1000 * 768 + 2.0 * 8
    # Neither fits: products with every Krylov vector of every query, there and back.
    assert dense_seconds(10_000, 20_000, 5) == 4 * 10_000 * 20_000 * 100 * 5
    assert extrapolated(lambda n: 3.0 + 2 * n, 1000) == 2003
    assert extrapolated(lambda n: 5.0 - n / 100, 1000) == 5.0 - forecast.MORE / 100


def test_weights_are_learned_once_on_queries_that_are_not_judged(problem, monkeypatch):
    rows = []
    real = whence.studies.audit.weighting.contributions_with
    monkeypatch.setattr(
        "whence.studies.audit.weighting.contributions_with",
        lambda inputs, *a, **k: rows.append(inputs) or real(inputs, *a, **k),
    )
    inputs = Inputs(*parts(problem))
    own = weighting_of(inputs)
    assert own.of(Candidate("a", "grad_dot")) is None
    rms, learned = (own.of(Candidate(name, "grad_dot", weights=name)) for name in ("rms", "learned"))
    assert (rms.name, learned.name, len(rows)) == ("rms", "learned", 1)
    assert learned.facts["relative"] is True
    # Learned on a fifth of the train set, with the others as the train set.
    asked, train = set(rows[0].queries.ids), set(rows[0].train.ids)
    assert len(asked) == 8
    assert not asked & train
    assert asked | train == set(problem.train.ids)
    given = Weighting(inputs, RECIPE, (3,), problem.queries)
    given.of(Candidate("b", "grad_dot", weights="rms"))
    assert rows[1].queries.ids == problem.queries.ids
    assert rows[1].train.ids == problem.train.ids


def test_a_candidate_with_weights_has_the_scores_of_attribute(problem):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double().eval()
    task = whence.Task.regression(model)
    inputs = Inputs(task, problem.train, problem.queries)
    candidate = Candidate("horizon, rms", "horizon", weights="rms")
    weights = weighting_of(inputs).of(candidate)
    found = candidate.scores(inputs, RECIPE, (3,), weights)
    wanted = whence.attribute(task, problem.train, problem.queries, "horizon", recipe=RECIPE, at=[3], weights=weights)
    assert torch.equal(found[3].values, wanted[3].values)
    assert not weights.is_uniform


def test_weights_need_a_method_that_is_linear_in_them():
    with pytest.raises(InputError, match="not linear"):
        Candidate("a", "grad_cos", weights="rms")
    with pytest.raises(whence.errors.UnknownNameError, match="learned"):
        Candidate("a", "grad_dot", weights="learnt")


def test_other_metrics_have_no_noise_free_figure(problem):
    some = [Candidate("grad_dot", "grad_dot")]
    found = audit(*parts(problem), RECIPE, seconds=60, candidates=some, metric="spearman")
    assert all(math.isnan(x) for x in found.noise_free())
    assert found.to_dict()["noise_free"] == [None, None, None]
    assert "without their noise it is about" in found.summary()


def test_a_budget_below_the_smallest_pilot_names_the_one_that_would_do(problem):
    with pytest.raises(InputError, match=r"The smallest pilot needs 44 further trainings of .* Allow it \d+ s"):
        audit(*parts(problem), dataclasses.replace(RECIPE, epochs=3000), seconds=0.01)
    small = linear_regression(n_train=21)
    with pytest.raises(InputError, match="21 are too few"):
        audit(*parts(small), RECIPE)


@pytest.mark.parametrize(
    ("n_runs", "most", "wanted"),
    [
        (0, 100, (10, 0)),
        (22, 100, (10, 2)),
        (150, 100, (36, 4)),
        (200, 100, (42, 4)),
        (10_000, 100, (100, N_SEEDS)),
        (10_000, 12, (12, N_SEEDS)),
    ],
)
def test_size_of_the_pilot(n_runs, most, wanted):
    assert pilot_size(n_runs, most) == wanted


def test_the_pilot_stops_at_its_time_but_not_before_two_seeds(problem, monkeypatch, tmp_path):
    inputs = Inputs(*parts(problem))
    halves = {"choice": tuple(range(10)), "verdict": tuple(range(10, 20))}
    planned = Pilot(halves, 4, 0.1, "stacked")
    late = run_pilot(planned, inputs, RECIPE, [3], time.perf_counter() - 1, tmp_path)
    assert {half: gold.seeds for half, gold in late.items()} == {"choice": (0, 1), "verdict": (N_SEEDS, N_SEEDS + 1)}
    # The same folder continues: nothing is trained twice.
    trained = []
    monkeypatch.setattr(
        "whence.gold.sweep.run_chunks", lambda *a, **k: trained.append(a) or pytest.fail("trained again")
    )
    again = run_pilot(planned, inputs, RECIPE, [3], time.perf_counter() - 1, tmp_path)
    assert torch.equal(again["verdict"].measures, late["verdict"].measures)
    assert not trained
    assert pilot.Pilot.seed(planned, "verdict", 0) == N_SEEDS


def test_a_kept_plan_is_not_made_again(tmp_path):
    planned = Pilot({"choice": (1, 4), "verdict": (2, 3)}, 4, 0.1, "loop")
    assert kept_plan(lambda: planned, tmp_path / "new") == planned
    assert kept_plan(lambda: pytest.fail("planned again"), tmp_path / "new") == planned
    assert kept_plan(lambda: planned, None) is planned


def test_plans_are_repeated_by_seed(problem, monkeypatch):
    inputs = Inputs(*parts(problem))
    plans = [plan_pilot(inputs, RECIPE, [3], 5.0, seed) for seed in (0, 0, 1)]
    assert [p.seed("choice", 0) for p in plans] == [0, 0, len(HALVES) * N_SEEDS]
    first, same, other = ({i for rows in p.left_out.values() for i in rows} for p in plans)
    assert len(first) == sum(len(rows) for rows in plans[0].left_out.values())
    if len(first) == len(same) == len(other):  # sizes follow a timing
        assert first == same != other


def test_default_candidates_follow_the_recipe():
    labels = [c.label for c in default_candidates(RECIPE)]
    assert len(set(labels)) == len(labels)
    assert {"datainf", "trak, ridge 0.1", "grad_dot, rms weights", "grad_dot, learned weights"} <= set(labels)
    assert {"grad_dot", "random", "horizon_ahead", "unrolled", "influence_gn, damping 0.1"} <= set(labels)
    adam = [c.method for c in default_candidates(dataclasses.replace(RECIPE, optimizer="adam"))]
    assert {"unrolled", "horizon", "horizon_ahead"} <= set(adam)
    clipped = [c.method for c in default_candidates(dataclasses.replace(RECIPE, clip_norm=1.0))]
    assert "unrolled" in clipped
    assert not {"horizon", "horizon_ahead"} & set(clipped)


def test_the_winners_settings_can_be_read_back(found):
    for candidate in found.candidates:
        own = dataclasses.replace(found, winner=candidate).to_config()
        assert own["methods"] == [candidate.method]
        options = own.get("options", {}).get(candidate.method, {})
        assert method_options(candidate.method, options) == dict(candidate.options)
        weigh = dataclasses.replace(found, winner=candidate).to_weigh_config()
        assert weigh == (None if candidate.weights == "uniform" else {"methods": ["grad_dot"]})


def test_the_summary_says_what_was_found_in_words(found):
    text = found.summary()
    value, low, high = found.verdict()
    assert f"Use {found.winner.label}. After 3 epochs" in text
    assert f"{value:.2f} ({low:.2f} to {high:.2f}; pearson, 95% interval)" in text
    assert low <= value <= high
    free, free_low, free_high = found.noise_free()
    assert f"{N_SEEDS} seeds: without their noise it is about {free:.2f} ({free_low:.2f} to {free_high:.2f})." in text
    table = found.by_point.assign(low=-1.0)
    rows = found.table.assign(verdict=found.table["verdict"].where(found.table["candidate"] != "random", 0.5))
    doubtful = dataclasses.replace(found, by_point=table, table=rows)
    assert "not distinguishable from random" in doubtful.summary()


def test_a_model_that_does_not_react_is_said_to_have_no_ceiling(problem):
    layer = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    task = whence.Task.regression(layer.eval(), measure=lambda outputs, batch: 0 * outputs[:, 0], lower_is_better=True)
    with pytest.raises(InputError, match="No candidate could be compared"):
        audit(task, problem.train, problem.queries, RECIPE, seconds=60)


def test_many_queries_are_thinned_evenly(problem):
    x = torch.randn(120, 4, dtype=torch.float64)
    queries = whence.Examples((x, x[:, :1]))
    thinned = run._evenly(queries, 50)
    assert len(thinned) == 50
    assert set(pd.Series(sorted(thinned.ids)).diff().dropna()) == {2, 3}
    assert run._evenly(queries, 120) is queries


def test_candidates_need_labels_of_their_own(problem):
    for some in ([], [Candidate("a", "grad_dot"), Candidate("a", "grad_cos")]):
        with pytest.raises(InputError, match="label of its own"):
            audit(*parts(problem), RECIPE, candidates=some)
    with pytest.raises(whence.errors.UnknownNameError, match="grad_dot"):
        Candidate("a", "graddot")


def test_costs_are_measured():
    def work():
        with mmap.mmap(-1, 64 * 2**20) as fresh:  # straight from the system: a heap may have kept as much
            fresh.write(b"x" * (64 * 2**20))
            time.sleep(0.05)
        return "done"

    one = costed(work)
    assert (one.value, one.seconds >= 0.05) == ("done", True)
    assert one.peak_mb is None or 60 < one.peak_mb < 400
