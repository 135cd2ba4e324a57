"""Closed form and AdamW on one objective: how low each comes, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from benchmarks.weights.fixed import FIXED
from whence.weights.objective import WeightProblem
from whence.weights.solvers import SOLVERS
from whence.weights.solvers.nnls import solve_nnls

REPEATS = 5
CLOSED_FORM = "closed_form"
EQUAL = "closed_form_until_equal"
Variants = Mapping[str, tuple[str, dict[str, Any]]]
VARIANTS: Variants = {
    CLOSED_FORM: ("nnls", {}),
    "adamw_scores": ("adamw", {"norm_from": "scores"}),
    "adamw_gram": ("adamw", {"norm_from": "gram"}),
}


def compare_solvers(values: Tensor, variants: Variants = VARIANTS, repeats: int = REPEATS) -> dict[str, Any]:
    """Objective (lower is better) and median CPU seconds of each solver, Gram matrices included; in turn, some times.

    Args:
        values: Contributions (n_query, n_train, n_groups).
        variants: Name -> solver and options, the closed form among them.
        repeats: Runs of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    losses = {}
    for _ in range(repeats):
        for name in variants:
            solver, options = variants[name]
            started = time.process_time()
            problem = WeightProblem(values, FIXED.k)
            weights = SOLVERS[solver](problem, **options).weights
            seconds[name].append(time.process_time() - started)
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
    """Closed form against AdamW with norms from Gram matrices: losses, how far the closed form is above, seconds.

    The closed form takes longer to end than to be as good as AdamW is in the end: `equal` has the rounds and seconds of
    the latter; None where it does not come so low.
    """
    rounds = rounds_to_equal(values)
    variants = {name: VARIANTS[name] for name in (CLOSED_FORM, "adamw_gram")}
    if rounds is not None:
        variants[EQUAL] = ("nnls", {"max_rounds": rounds})
    found = compare_solvers(values, variants, repeats)
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
        "equal": None
        if rounds is None
        else {
            "rounds": rounds,
            "nnls": loss[EQUAL],
            "seconds": seconds[EQUAL],
            "adamw_over_nnls": seconds["adamw_gram"] / seconds[EQUAL],
        },
    }


def rounds_to_equal(values: Tensor) -> int | None:
    """The least `max_rounds` with which the closed form comes as low as AdamW; None where it does not."""
    problem = WeightProblem(values, FIXED.k)
    solver, options = VARIANTS["adamw_gram"]
    wanted = problem.loss(SOLVERS[solver](problem, **options).weights)
    ends = int(solve_nnls(problem).facts["rounds"])
    reached = (r for r in range(1, ends + 1) if problem.loss(solve_nnls(problem, max_rounds=r).weights) <= wanted)
    return next(reached, None)
