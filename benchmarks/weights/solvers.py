"""Closed form and AdamW on one objective: how low each comes, and how fast."""

from __future__ import annotations

import statistics
import time
from typing import Any

from torch import Tensor

from benchmarks.weights.fixed import FIXED
from whence.weights.objective import WeightProblem
from whence.weights.solvers import SOLVERS

REPEATS = 5
CLOSED_FORM = "closed_form"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    CLOSED_FORM: ("nnls", {}),
    "adamw_scores": ("adamw", {"norm_from": "scores"}),
    "adamw_gram": ("adamw", {"norm_from": "gram"}),
}


def compare_solvers(
    values: Tensor, variants: tuple[str, ...] = tuple(VARIANTS), repeats: int = REPEATS
) -> dict[str, Any]:
    """Objective (lower is better) and median seconds of each solver, Gram matrices included; in turn, so many times.

    Args:
        values: Contributions (n_query, n_train, n_groups).
        variants: Names in `VARIANTS`, the closed form among them.
        repeats: Runs of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    losses = {}
    for _ in range(repeats):
        for name in variants:
            solver, options = VARIANTS[name]
            started = time.perf_counter()
            problem = WeightProblem(values, FIXED.k)
            weights = SOLVERS[solver](problem, **options).weights
            seconds[name].append(time.perf_counter() - started)
            losses[name] = problem.loss(weights)
    problem = WeightProblem(values, FIXED.k)
    base = {name: problem.loss(SOLVERS[name](problem).weights) for name in ("uniform", "rms")}
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    best = min(losses.values())
    return {
        "shape": list(values.shape),
        "loss": {**base, **losses},
        "gap_percent": {name: 100 * (loss - best) / abs(best) for name, loss in losses.items()},
        "seconds": medians,
        "seconds_all": seconds,
        "closed_form_faster": {name: medians[name] / medians[CLOSED_FORM] for name in variants if name != CLOSED_FORM},
    }


def objective_of(values: Tensor, repeats: int = REPEATS) -> dict[str, Any]:
    """Closed form against AdamW with norms from Gram matrices: losses, how far the closed form is above, seconds."""
    found = compare_solvers(values, (CLOSED_FORM, "adamw_gram"), repeats)
    loss, seconds = found["loss"], found["seconds"]
    gap = 100 * (loss[CLOSED_FORM] - loss["adamw_gram"]) / abs(loss["adamw_gram"])
    return {
        "shape": found["shape"],
        "uniform": loss["uniform"],
        "rms": loss["rms"],
        "nnls": loss[CLOSED_FORM],
        "adamw": loss["adamw_gram"],
        "gap_percent": gap,
        "within_1_percent": gap <= 1,
        "seconds": {"nnls": seconds[CLOSED_FORM], "adamw": seconds["adamw_gram"]},
        "adamw_over_nnls": found["closed_form_faster"]["adamw_gram"],
    }
