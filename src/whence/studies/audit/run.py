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
from whence.methods import Inputs
from whence.progress import stage
from whence.scores import Outcomes, ScoreMatrix
from whence.studies.audit.candidates import CONTROL, Candidate, default_candidates
from whence.studies.audit.cost import Costed, costed
from whence.studies.audit.pilot import HALVES, Half, kept_plan, plan_pilot, run_pilot
from whence.studies.audit.verdict import Audit
from whence.studies.spacing import evenly
from whence.task import Task
from whence.training import Recipe

GOLD_SHARE = 0.5  # of the budget for the pilot; what is left pays for probe, candidates and comparison
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
        seconds: Time budget. The pilot takes half of it; candidates that have not begun when it is over are named.
        points: Amounts of training to judge at, in the recipe's unit; default its end.
        candidates: What to compare; default `default_candidates(recipe)`.
        metric: A name in `METRICS`. Pearson does not punish an offset common to all examples, which the gold
            standard has lost as well.
        confidence: Of the intervals, over queries and seeds.
        store_dir: Keeps finished further trainings, so that the same call continues.
        seed: Of the choice of left-out examples, and of the bootstrap.
    Returns:
        Table, winner, verdict and a summary in words.
    Raises:
        InputError: The budget is too small for the smallest pilot, or the train set for two halves.
    Cost:
        About `seconds`. A single candidate that is much slower than the budget is not interrupted.
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
    scored, failed = _score(wanted, inputs, recipe, at, started + seconds)
    judged = {half: _judge(scored, outcomes[half], metric, confidence, seed) for half in HALVES}
    table = _table(wanted, scored, failed, judged)
    winner = _winner(wanted, table, failed)
    notes = (*_silent_queries(outcomes["verdict"]), *(f"{label}: {reason}." for label, reason in failed.items()))
    spent = time.perf_counter() - started
    by_point = judged["verdict"].assign(ceiling=_ceilings(judged["verdict"], outcomes["verdict"], metric))
    return Audit(table, by_point, wanted, winner, metric, recipe.unit, gold, spent, float(seconds), confidence, notes)


def _score(
    candidates: Sequence[Candidate], inputs: Inputs, recipe: Recipe, at: tuple[int, ...], deadline: float
) -> tuple[Scored, dict[str, str]]:
    """Scores of all candidates that work and begin in time, and why the others have none."""
    scored: Scored = {}
    failed: dict[str, str] = {}
    with stage("scoring", total=len(candidates), unit="candidates") as progress:
        for candidate in candidates:
            if time.perf_counter() > deadline:
                failed[candidate.label] = "not tried, the time was over"
                continue
            try:
                scored[candidate.label] = costed(lambda c=candidate: c.scores(inputs, recipe, at))  # type: ignore[misc]
            except WhenceError as error:
                failed[candidate.label] = str(error).rstrip(".")
            progress.advance()
    return scored, failed


def _judge(scored: Scored, outcomes: Outcomes, metric: str, confidence: float, seed: int) -> pd.DataFrame:
    """Agreement of each candidate at each amount: candidate, point, value, low, high, n_query."""
    parts = []
    for label, found in scored.items():
        result = agreement(
            found.value, outcomes, metrics=[metric], n_bootstrap=N_BOOTSTRAP, confidence=confidence, seed=seed
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


def _ceilings(judged: pd.DataFrame, outcomes: Outcomes, metric: str) -> pd.Series[float]:
    ceiling = reliability(outcomes, metric, n_bootstrap=1).ceiling()
    return judged["point"].map(ceiling).astype(float)


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
