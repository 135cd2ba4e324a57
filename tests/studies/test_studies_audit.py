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
from whence.errors import InputError, NumericalError
from whence.methods import Inputs
from whence.runs.options import method_options
from whence.studies.audit import Candidate, audit, default_candidates, pilot, run
from whence.studies.audit.cost import costed
from whence.studies.audit.pilot import (
    HALVES,
    LEAST_SEEDS,
    MOST_SEEDS,
    Pilot,
    kept_plan,
    pilot_size,
    plan_pilot,
    run_pilot,
)
from whence.testing.problems import linear_regression
from whence.training import Recipe

RECIPE = Recipe(lr=0.02, batch_size=8, epochs=3)


@pytest.fixture(scope="module")
def problem():
    return linear_regression(n_train=40, n_features=4, n_query=6)


def parts(problem):
    return problem.task, problem.train, problem.queries


@pytest.fixture(scope="module")
def found(problem):
    return audit(*parts(problem), RECIPE, seconds=60, points=[1, 3])


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
    scored, failed = run._score(some, inputs, RECIPE, (3,), time.perf_counter() - 1)
    assert (scored, failed) == ({}, dict.fromkeys(("grad_dot", "late"), "not tried, the time was over"))


def test_a_budget_below_the_smallest_pilot_names_the_one_that_would_do(problem):
    with pytest.raises(InputError, match=r"The smallest pilot needs 44 further trainings of .* Allow it \d+ s"):
        audit(*parts(problem), dataclasses.replace(RECIPE, epochs=3000), seconds=0.01)
    small = linear_regression(n_train=21)
    with pytest.raises(InputError, match="21 are too few"):
        audit(*parts(small), RECIPE)


@pytest.mark.parametrize(
    ("n_runs", "most", "wanted"),
    [(0, 100, (10, 0)), (22, 100, (10, 2)), (200, 100, (28, 6)), (10_000, 100, (100, 20)), (10_000, 12, (12, 20))],
)
def test_size_of_the_pilot(n_runs, most, wanted):
    assert pilot_size(n_runs, most) == wanted


def test_the_pilot_stops_at_its_time_but_not_before_two_seeds(problem, monkeypatch, tmp_path):
    inputs = Inputs(*parts(problem))
    halves = {"choice": tuple(range(10)), "verdict": tuple(range(10, 20))}
    planned = Pilot(halves, 4, 0.1, "stacked")
    late = run_pilot(planned, inputs, RECIPE, [3], time.perf_counter() - 1, tmp_path)
    assert {half: gold.seeds for half, gold in late.items()} == {"choice": (0, 1), "verdict": (20, 21)}
    # The same folder continues: nothing is trained twice.
    trained = []
    monkeypatch.setattr(
        "whence.gold.sweep.run_chunks", lambda *a, **k: trained.append(a) or pytest.fail("trained again")
    )
    again = run_pilot(planned, inputs, RECIPE, [3], time.perf_counter() - 1, tmp_path)
    assert torch.equal(again["verdict"].measures, late["verdict"].measures)
    assert not trained
    assert pilot.Pilot.seed(planned, "verdict", 0) == MOST_SEEDS


def test_a_kept_plan_is_not_made_again(tmp_path):
    planned = Pilot({"choice": (1, 4), "verdict": (2, 3)}, 4, 0.1, "loop")
    assert kept_plan(lambda: planned, tmp_path / "new") == planned
    assert kept_plan(lambda: pytest.fail("planned again"), tmp_path / "new") == planned
    assert kept_plan(lambda: planned, None) is planned


def test_plans_are_repeated_by_seed(problem, monkeypatch):
    inputs = Inputs(*parts(problem))
    plans = [plan_pilot(inputs, RECIPE, [3], 5.0, seed) for seed in (0, 0, 1)]
    first, same, other = ({i for rows in p.left_out.values() for i in rows} for p in plans)
    assert len(first) == sum(len(rows) for rows in plans[0].left_out.values())
    if len(first) == len(same) == len(other):  # sizes follow a timing
        assert first == same != other


def test_default_candidates_follow_the_recipe():
    labels = [c.label for c in default_candidates(RECIPE)]
    assert len(set(labels)) == len(labels)
    assert {"grad_dot", "random", "horizon_ahead", "unrolled", "influence_gn, damping 0.1"} <= set(labels)
    adam = [c.method for c in default_candidates(dataclasses.replace(RECIPE, optimizer="adam"))]
    assert "unrolled" in adam
    assert not {"horizon", "horizon_ahead"} & set(adam)


def test_the_winners_settings_can_be_read_back(found):
    for candidate in found.candidates:
        own = dataclasses.replace(found, winner=candidate).to_config()
        assert own["methods"] == [candidate.method]
        options = own.get("options", {}).get(candidate.method, {})
        assert method_options(candidate.method, options) == dict(candidate.options)


def test_the_summary_says_what_was_found_in_words(found):
    text = found.summary()
    value, low, high = found.verdict()
    assert f"Use {found.winner.label}. After 3 epochs" in text
    assert f"{value:.2f} ({low:.2f} to {high:.2f}; pearson, 95% interval)" in text
    assert low <= value <= high
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
