"""The audit: a pilot gold standard on the user's own model, and the methods judged by it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from whence.checks import look_up, require_positive
from whence.data import Examples
from whence.errors import InputError, WhenceError
from whence.evaluation import agreement, reliability
from whence.evaluation.correlation import METRICS
from whence.evaluation.disattenuated import Disattenuation
from whence.methods import Inputs
from whence.progress import stage
from whence.scores import Outcomes, ScoreMatrix
from whence.studies.audit.candidates import CONTROL, Candidate, default_candidates
from whence.studies.audit.cost import Costed, costed
from whence.studies.audit.forecast import Forecast
from whence.studies.audit.pilot import HALVES, Half, kept_plan, plan_pilot, run_pilot
from whence.studies.audit.verdict import NOISE_FREE, Audit
from whence.studies.audit.weighting import Weighting
from whence.studies.spacing import evenly
from whence.task import Task
from whence.training import Recipe

GOLD_SHARE = 0.5  # of the budget for the pilot
SCORES_SHARE = 0.95  # of the budget after which no candidate is begun; what is left pays for the comparison
SLACK = 1.2  # a forecast may be too small
MOST_QUERIES = 50
N_BOOTSTRAP = 500

Scored = dict[str, Costed[ScoreMatrix | Mapping[int, ScoreMatrix]]]
Table = dict[str, Any]


def audit(
    task: Task,
    train: Examples,
    queries: Examples,
    recipe: Recipe,
    *,
    seconds: float = 120.0,
    points: Sequence[int] | None = None,
    candidates: Sequence[Candidate] | None = None,
    metric: str = "pearson",
    confidence: float = 0.95,
    learning: Examples | None = None,
    store_dir: str | Path | None = None,
    seed: int = 0,
) -> Audit:
    """Which method to trust on this model, and how far: measured, not believed.

    A pilot gold standard in two halves that share neither left-out examples nor seeds: the method is chosen on one,
    and what is said about it comes from the other. Both halves use the same queries.

    Args:
        task: The final model and its contract, in eval mode.
        train: Its train set.
        queries: What is to be explained; of more than 50, evenly spaced ones are used.
        recipe: Further training.
        seconds: Time budget. The pilot takes half of it. A candidate that would not end in what is left, by a forecast
            from a small part of its work, is not begun, and named.
        points: Amounts of training to judge at, in the recipe's unit; default its end.
        candidates: What to compare; default `default_candidates(recipe)`.
        metric: A name in `METRICS`. Pearson does not punish an offset common to all examples, which the gold
            standard has lost as well.
        confidence: Of the intervals, over left-out examples, seeds and queries.
        learning: Queries that weights of parameter groups are learned from, held out from `queries`; default a part
            of the train set. No outcome is looked at.
        store_dir: Keeps finished further trainings, so that the same call continues.
        seed: Of the choice of left-out examples, of the pilot's further training, and of the bootstrap.
    Returns:
        Table, winner, verdict and a summary in words.
    Raises:
        InputError: The budget is too small for the smallest pilot, or the train set for two halves.
    Cost:
        About `seconds`; more where two seeds of the smallest pilot take longer than was timed. A candidate that has
        begun is not interrupted, and forecasts are good to a factor of about two.
    Reference:
        The gold standard is that of Wei et al. (2025), arXiv:2412.03906.
    """
    started = time.perf_counter()
    require_positive(seconds, "seconds")
    look_up(METRICS, metric, "metric")
    at = recipe.check_points([recipe.amount] if points is None else points)
    wanted = _distinct(default_candidates(recipe) if candidates is None else candidates)
    asked = _evenly(queries, MOST_QUERIES)
    inputs = Inputs(task, train, asked)
    folder = None if store_dir is None else Path(store_dir)
    with stage("planning the pilot"):
        pilot = kept_plan(lambda: plan_pilot(inputs, recipe, at, GOLD_SHARE * seconds, seed), folder)
    gold = run_pilot(pilot, inputs, recipe, at, started + GOLD_SHARE * seconds, folder)
    outcomes = {half: gold[half].outcomes("mean") for half in HALVES}
    weighting = Weighting(inputs, recipe, at, learning)
    scored, failed = _score(wanted, inputs, recipe, at, weighting, started + SCORES_SHARE * seconds)
    with stage("comparing"):
        judged = {half: _judge(scored, outcomes[half], metric, confidence, seed) for half in HALVES}
        by_point = _with_intervals(judged["verdict"], scored, outcomes["verdict"], metric, inputs, confidence, seed)
    table = _table(wanted, scored, failed, judged)
    winner = _winner(wanted, table, failed)
    notes = (*_silent_queries(outcomes["verdict"]), *(f"{label}: {reason}." for label, reason in failed.items()))
    spent = time.perf_counter() - started
    return Audit(table, by_point, wanted, winner, metric, recipe.unit, gold, spent, float(seconds), confidence, notes)


def _score(
    candidates: Sequence[Candidate],
    inputs: Inputs,
    recipe: Recipe,
    at: tuple[int, ...],
    weighting: Weighting,
    deadline: float,
) -> tuple[Scored, dict[str, str]]:
    """Scores of all candidates that work and should end in time, and why the others have none."""
    scored: Scored = {}
    failed: dict[str, str] = {}
    forecast = Forecast(inputs, recipe, at, weighting)
    with stage("scoring", total=len(candidates), unit="candidates") as progress:
        for candidate in candidates:
            try:
                late = _late(forecast, candidate, deadline)
                if late:
                    failed[candidate.label] = late
                else:
                    scored[candidate.label] = costed(
                        lambda c=candidate: c.scores(inputs, recipe, at, weighting.of(c))  # type: ignore[misc]
                    )
                    forecast.done(candidate)
            except WhenceError as error:
                failed[candidate.label] = str(error).rstrip(".")
            progress.advance()
    return scored, failed


def _late(forecast: Forecast, candidate: Candidate, deadline: float) -> str:
    """Why a candidate is not begun; empty where it should end in time."""
    left = deadline - time.perf_counter()
    if left <= 0:
        return "not tried, the time was over"
    need = SLACK * forecast.seconds(candidate, left)
    left = deadline - time.perf_counter()
    return f"not tried, it would take about {need:.2g} s and {max(left, 0):.2g} s were left" if need > left else ""


def _judge(scored: Scored, outcomes: Outcomes, metric: str, confidence: float, seed: int) -> pd.DataFrame:
    """Agreement of each candidate at each amount: candidate, point, value, low, high, n_query."""
    parts = []
    n_bootstrap = 1 if metric == "pearson" else N_BOOTSTRAP  # Pearson's intervals come from `Disattenuation`
    for label, found in scored.items():
        result = agreement(
            found.value, outcomes, metrics=[metric], n_bootstrap=n_bootstrap, confidence=confidence, seed=seed
        )
        parts.append(result.table.assign(candidate=label)[["candidate", "point", "value", "low", "high", "n_query"]])
    columns = ["candidate", "point", "value", "low", "high", "n_query"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _table(
    candidates: Sequence[Candidate], scored: Scored, failed: Mapping[str, str], judged: Mapping[Half, pd.DataFrame]
) -> pd.DataFrame:
    means = {half: judged[half].groupby("candidate")["value"].mean() for half in HALVES}
    rows: list[Table] = []
    for label in (c.label for c in candidates):
        cost = scored.get(label)
        rows.append(
            {
                "candidate": label,
                **{half: float(means[half].get(label, math.nan)) for half in HALVES},
                "seconds": math.nan if cost is None else cost.seconds,
                "peak_mb": math.nan if cost is None or cost.peak_mb is None else cost.peak_mb,
                "note": failed.get(label, ""),
            }
        )
    return pd.DataFrame(rows).sort_values("choice", ascending=False, kind="stable", ignore_index=True)


def _winner(candidates: Sequence[Candidate], table: pd.DataFrame, failed: Mapping[str, str]) -> Candidate:
    """The best by the choice half that is not the control."""
    by_label = {c.label: c for c in candidates}
    compared = [by_label[label] for label in table[table["choice"].notna()]["candidate"]]
    real = [c for c in compared if c.method != CONTROL]
    if not real:
        raise InputError(
            "No candidate could be compared: " + ("; ".join(failed.values()) or "all scores or outcomes are constant")
        )
    return real[0]


def _with_intervals(
    judged: pd.DataFrame,
    scored: Scored,
    outcomes: Outcomes,
    metric: str,
    inputs: Inputs,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """The verdict half with ceiling, noise-free agreement and its interval; the last two for Pearson only."""
    ceiling = reliability(outcomes, metric, n_bootstrap=1).ceiling()
    table = judged.assign(ceiling=judged["point"].map(ceiling).astype(float), **dict.fromkeys(NOISE_FREE, math.nan))
    if metric != "pearson" or not len(judged):
        return table
    resampled = Disattenuation.of(
        outcomes,
        share=len(outcomes.left_out) / inputs.n_train,
        n_bootstrap=N_BOOTSTRAP,
        confidence=confidence,
        seed=seed,
    )
    for label, found in scored.items():
        rows = table.index[table["candidate"] == label]  # in the order of the points
        raw, free = resampled.agreement(found.value), resampled.agreement(found.value, n_seeds=math.inf)
        table.loc[rows, ["low", "high"]] = raw[["low", "high"]].to_numpy()
        table.loc[rows, list(NOISE_FREE)] = free[["value", "low", "high"]].to_numpy()
    return table


def _silent_queries(outcomes: Outcomes) -> tuple[str, ...]:
    """Queries on which the pilot says nothing."""
    silent = sum(int(not bool(ok)) for ok in outcomes.defined(len(outcomes.points) - 1))
    if not silent:
        return ()
    return (f"{silent} of {len(outcomes.query_ids)} queries do not react beyond rounding and are not averaged.",)


def _distinct(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    labels = [c.label for c in candidates]
    if not labels or len(set(labels)) < len(labels):
        raise InputError(f"`candidates` must be at least one, each with a label of its own; got {labels}.")
    return tuple(candidates)


def _evenly(queries: Examples, most: int) -> Examples:
    n = len(queries)
    return queries if n <= most else queries.subset(evenly(n, most))
