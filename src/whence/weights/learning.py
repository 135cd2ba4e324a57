"""Weights from contributions: uniform, RMS, or learned from the data itself, without labels."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from typing import Any

from whence.checks import look_up, unknown_name
from whence.errors import InputError, WhenceWarning
from whence.task import GroupWeights
from whence.weights.by_group import Contributions
from whence.weights.objective import Normalise, WeightProblem
from whence.weights.solvers import SOLVERS
from whence.weights.solvers.baselines import rms, uniform

LEARNING = ("nnls", "adamw")


def learn_weights(
    found: Contributions,
    solver: str = "nnls",
    *,
    k: int = 10,
    center: bool = True,
    normalise: Normalise = "rms",
    holdout: float = 0.2,
    **options: Any,
) -> GroupWeights:
    """Non-negative weights of parameter groups that make each query's strongest supporters stand out.

    Learn on queries that are neither in the train set nor used to judge the result. The objective rewards scores with
    a heavy right tail: where true influence has none, or where a few train examples score high with every query, it
    can be worse than "rms" (see `facts`, and compare by `lds`).

    Args:
        found: Contributions of the learning queries.
        solver: "nnls" (closed form), "adamw" (as published), "rms" or "uniform" (nothing learned).
        k: Train examples per query that count as signal.
        center: Measure the scores of a query from their mean: they then count as LDS counts them, which does not see
            a constant either. False is the published loss.
        normalise: "rms" learns on groups of equal root mean square, "none" on the raw contributions.
        holdout: Share of the queries that is not learned from; the facts give the loss on both parts.
        options: Of the solver.
    Returns:
        Weights with mean 1. `facts`: losses of uniform, rms and these weights on the queries learned from and on those
        held out, seconds, what the solver did, and a `note` (also a warning) where something went another way.
    Raises:
        UnknownNameError: No such solver or option.
        InputError: A setting is out of range, or nothing contributes.
    Cost:
        n_query x n_train x n_groups^2 multiplications once for the norms; see the solvers.
    Reference:
        Li et al. (2026), arXiv:2506.05647.
    """
    solve = look_up(SOLVERS, solver, "solver")
    _check_options(solver, options)
    settings: dict[str, Any] = {"k": k, "center": center, "normalise": normalise}
    learned_from, held_out = _split(found, holdout)
    started = time.perf_counter()
    problem = WeightProblem(learned_from.values, **settings)
    solution = solve(problem, **options)
    seconds = time.perf_counter() - started
    weights = GroupWeights(solution.weights, found.groups)
    facts = {
        "solver": solver,
        **settings,
        "seconds": round(seconds, 4),
        "queries": _losses(problem, problem, weights),
        **({} if held_out is None else {"held_out": _held_out_losses(held_out, settings, problem, weights)}),
        "max_over_min": weights.ratio if math.isfinite(weights.ratio) else None,
        "entropy": weights.entropy,
        **solution.facts,
    }
    dead = [name for name, size in zip(found.groups.names, problem.rms.tolist(), strict=True) if size == 0]
    if dead:
        facts["without_contribution"] = dead
    if "note" in facts:
        warnings.warn(f"Weights of {found.method!r}: {facts['note']}.", WhenceWarning, stacklevel=2)
    name = "learned" if solver in LEARNING else solver
    return GroupWeights(solution.weights, found.groups, name, found.method, facts)


def _split(found: Contributions, holdout: float) -> tuple[Contributions, Contributions | None]:
    """Queries to learn from, and those held out: evenly spaced among them."""
    if not 0 <= holdout < 1:
        raise InputError(f"`holdout` must be a share of the queries in [0, 1); got {holdout!r}.")
    n_query = len(found.query_ids)
    count = int(n_query * holdout)
    if count == 0:
        return found, None
    away = {q * n_query // count for q in range(count)}
    return found.rows([q for q in range(n_query) if q not in away]), found.rows(sorted(away))


def _losses(problem: WeightProblem, learned_from: WeightProblem, weights: GroupWeights) -> dict[str, Any]:
    """How many queries, and the loss on them of uniform weights, RMS weights of the learning queries, and `weights`."""
    found = {"uniform": uniform(problem), "rms": rms(learned_from)}
    losses = {name: problem.loss(solution.weights) for name, solution in found.items()}
    return {"n": problem.shape[0], "loss": {**losses, "weights": problem.loss(weights.values)}}


def _held_out_losses(
    held_out: Contributions, settings: dict[str, Any], learned_from: WeightProblem, weights: GroupWeights
) -> dict[str, Any]:
    """As `_losses`; no losses where nothing contributes to the queries held out."""
    try:
        problem = WeightProblem(held_out.values, **settings)
    except InputError:  # the settings passed for the queries learned from: nothing contributes to these
        return {"n": len(held_out.query_ids), "loss": None}
    return _losses(problem, learned_from, weights)


def _check_options(solver: str, options: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(SOLVERS[solver]).parameters if name != "problem"]
    for name in options:
        if name not in known:
            raise unknown_name(f"option of the solver {solver!r}", name, known)
