"""Weights from contributions: uniform, RMS, or learned from the data itself, without labels."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

from whence.checks import look_up, unknown_name
from whence.errors import InputError, WhenceWarning
from whence.task import GroupWeights
from whence.weights.by_group import Contributions
from whence.weights.objective import Objective, WeightProblem
from whence.weights.quotient import Normalise, Quotient
from whence.weights.solvers import SOLVERS
from whence.weights.solvers.baselines import rms, uniform
from whence.weights.stream import ContributionStream
from whence.weights.streamed import StreamedContributions

LEARNING = ("nnls", "adamw")


def learn_weights(
    found: Contributions | ContributionStream,
    solver: str = "nnls",
    *,
    k: int = 10,
    center: bool = True,
    normalise: Normalise = "rms",
    two_sided: bool = False,
    holdout: float = 0.2,
    **options: Any,
) -> GroupWeights:
    """Non-negative weights of parameter groups that make each query's strongest supporters stand out.

    Learn on queries that are neither in the train set nor used to judge the result. The objective rewards scores with
    a heavy right tail: where true influence has none, or where a few train examples score high with every query, it
    can be worse than "rms" (see `facts`, and compare by `lds`).

    Args:
        found: Contributions of the learning queries, in memory or streamed: the weights are the same.
        solver: "nnls" (closed form), "adamw" (as published), "rms" or "uniform" (nothing learned).
        k: Train examples per query that count as signal.
        center: Measure the scores of a query from their mean: they then count as LDS counts them, which does not see
            a constant either. False is the published loss.
        normalise: "rms" learns on groups of equal root mean square, "none" on the raw contributions.
        two_sided: The k train examples with the lowest scores count as signal too, as they do for LDS: the objective
            takes half of the mean of the k highest scores minus that of the k lowest.
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
    settings: dict[str, Any] = {"k": k, "center": center, "normalise": normalise, "two_sided": two_sided}
    learned_from, held_out = split_queries(len(found.query_ids), holdout)
    started = time.perf_counter()
    source = (StreamedContributions if isinstance(found, ContributionStream) else _InMemory)(found, **settings)  # type: ignore[arg-type]
    while True:
        problem = source.problem(learned_from)
        solution = solve(problem, **options)
        seconds = time.perf_counter() - started
        weights = GroupWeights(solution.weights, found.groups)
        losses = {"queries": losses_of(problem, problem, weights)}
        if held_out:
            losses["held_out"] = _held_out_losses(source, held_out, problem, weights)
        dead = [name for name, size in zip(found.groups.names, problem.rms.tolist(), strict=True) if size == 0]
        del problem  # a large part of the memory, while a stream is walked
        if source.complete():
            break
    facts = {
        "solver": solver,
        **settings,
        "seconds": round(seconds, 4),
        **({"passes": source.n_passes} if isinstance(source, StreamedContributions) else {}),
        **losses,
        "max_over_min": weights.ratio if math.isfinite(weights.ratio) else None,
        "entropy": weights.entropy,
        **solution.facts,
    }
    if dead:
        facts["without_contribution"] = dead
    if "note" in facts:
        warnings.warn(f"Weights of {found.method!r}: {facts['note']}.", WhenceWarning, stacklevel=2)
    name = "learned" if solver in LEARNING else solver
    return GroupWeights(solution.weights, found.groups, name, found.method, facts)


@dataclass(frozen=True, eq=False)
class _InMemory:
    """What `StreamedContributions` is, for contributions that are all there."""

    found: Contributions
    k: int
    center: bool
    normalise: Normalise
    two_sided: bool

    def problem(self, queries: list[int]) -> WeightProblem:
        """The objective on the queries at these positions."""
        values = self.found.values
        chosen = values if len(queries) == len(values) else values[queries]
        return WeightProblem(chosen, self.k, self.center, self.normalise, self.two_sided)

    def complete(self) -> bool:
        """Nothing can be missed."""
        return True


def split_queries(n_query: int, holdout: float) -> tuple[list[int], list[int]]:
    """Positions of the queries to learn from, and of those held out: evenly spaced among them."""
    if not 0 <= holdout < 1:
        raise InputError(f"`holdout` must be a share of the queries in [0, 1); got {holdout!r}.")
    count = int(n_query * holdout)
    away = {q * n_query // count for q in range(count)} if count else set()
    return [q for q in range(n_query) if q not in away], sorted(away)


def losses_of(problem: Quotient, learned_from: Quotient, weights: GroupWeights) -> dict[str, Any]:
    """How many queries, and the loss on them of uniform weights, RMS weights of the learning queries, and `weights`."""
    found = {"uniform": uniform(problem), "rms": rms(learned_from)}
    losses = {name: problem.loss(solution.weights) for name, solution in found.items()}
    return {"n": problem.shape[0], "loss": {**losses, "weights": problem.loss(weights.values)}}


def _held_out_losses(
    source: StreamedContributions | _InMemory, held_out: list[int], learned_from: Objective, weights: GroupWeights
) -> dict[str, Any]:
    """As `losses_of`; no losses where nothing contributes to the queries held out."""
    try:
        problem = source.problem(held_out)
    except InputError:  # the settings passed for the queries learned from: nothing contributes to these
        return {"n": len(held_out), "loss": None}
    return losses_of(problem, learned_from, weights)


def _check_options(solver: str, options: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(SOLVERS[solver]).parameters if name != "problem"]
    for name in options:
        if name not in known:
            raise unknown_name(f"option of the solver {solver!r}", name, known)
