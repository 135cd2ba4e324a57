"""Closed form: for fixed top-k sets the objective is a ratio that non-negative least squares maximises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import nnls
from torch import Tensor

from whence.checks import require_count
from whence.weights.quotient import Quotient, inverse, loss_for_signal, norms
from whence.weights.solvers.solution import Solution

RIDGE = 1e-9  # of the diagonal: groups with one and the same contribution share their weight
TOLERANCE = 1e-7  # of the loss: below it a round has changed nothing
HALVINGS = 12
STILL = 1e-7  # of the weights, whose sum is 1: a shorter step is none


def solve_nnls(problem: Quotient, *, max_rounds: int = 50) -> Solution:
    """Alternate: take the top-k sets of the present weights, solve for the best weights of these sets.

    For fixed sets a stationary point of the mean over queries of (a_q . x) / sqrt(x^T B_q x) solves B x = a with

        a = mean(a_q / |t_q|),    B = mean((rho_q / mean rho) B_q / |t_q|^2),    rho_q = (a_q . x) / |t_q|

    up to the scale of x; with x >= 0 that is a non-negative least-squares problem. A step that would raise the loss,
    because sets or norms change on the way, is halved: the loss never rises. Once from RMS and once from uniform
    weights, since there can be several optima; the better end is taken.

    Args:
        problem: What is maximised; with top-k sets, contributions of the learning queries.
        max_rounds: At most so many rounds from either start; 5 to 30 are usual.
    Returns:
        The best weights met. Where no group supports the signal (all a_j <= 0) the start is returned, and the facts
        say so.
    Cost:
        Per step tried one ranking of all scores, and per round one n_groups x n_groups problem.
    Reference:
        The objective is that of Li et al. (2026), arXiv:2506.05647; this solver is worked out here.
    """
    require_count(max_rounds, "max_rounds")
    ends = {start: alternate(problem, x, max_rounds) for start, x in problem.starts().items()}
    best = min(ends, key=lambda start: ends[start].loss)
    return Solution(problem.weights(ends[best].x), {**ends[best].facts, "start": best})


@dataclass(frozen=True, eq=False)
class End:
    """Scaled weights, their loss, and how they were reached."""

    x: Tensor
    loss: float
    facts: dict[str, Any]


def alternate(problem: Quotient, x: Tensor, max_rounds: int) -> End:
    """The way of `solve_nnls` from one start, scaled weights x."""
    top, loss = _at(problem, x)
    for done in range(max_rounds):
        target = _best_for_sets(problem.gram, top, x)
        if target is None and done == 0:
            note = "no group supports the signal (all a_j <= 0): the weights are those of the start"
            return End(x, loss, {"rounds": 0, "note": note})
        moved = None if target is None else _descend(problem, x, target, loss)
        if moved is None:
            return End(x, loss, {"rounds": done})
        before = loss
        x, top, loss = moved
        if before - loss < TOLERANCE * abs(before):
            return End(x, loss, {"rounds": done})
    return End(x, loss, {"rounds": max_rounds, "note": f"the loss was still falling after {max_rounds} rounds"})


def _at(problem: Quotient, x: Tensor) -> tuple[Tensor, float]:
    """a_q (n_query, n_groups) of scaled weights x, and the loss: one ranking gives both."""
    top = problem.signal(x)
    return top, float(loss_for_signal(problem.gram, top, x))


def _best_for_sets(gram: Tensor, top: Tensor, x: Tensor) -> Tensor | None:
    """Non-negative weights (sum 1) that solve the pooled problem at x; None where there is no positive solution."""
    size = norms(gram, x)
    inverted = inverse(size)  # a query without scores counts for nothing
    # A query whose top-k mean is negative pulls with negative curvature: without it the problem stays convex.
    rho = (top @ x * inverted).clamp_min(0)
    if float(rho.sum()) <= 0:
        return None
    a = inverted @ top
    b = ((rho / rho.sum() * inverted.square()) @ gram.flatten(1)).reshape(len(x), -1)
    if bool((a <= 0).all()):
        return None
    found = non_negative_least_squares(b, a)
    total = float(found.sum())
    return found / total if total > 0 else None


def non_negative_least_squares(b: Tensor, a: Tensor) -> Tensor:
    """argmin over x >= 0 of x^T B x / 2 - a . x, for a positive semi-definite B (m, m)."""
    # In units of the root of the diagonal, or groups of small scale would be lost in the ridge.
    unit = b.diagonal().clamp_min(0).sqrt()
    unit = torch.where(unit > 0, unit, 1.0)
    scaled = b / unit / unit[:, None] + RIDGE * torch.eye(len(a), dtype=b.dtype)
    values, vectors = torch.linalg.eigh(scaled)
    root = vectors * values.clamp_min(RIDGE).sqrt()  # scaled = root root^T
    matrix = root.T
    right = (vectors / values.clamp_min(RIDGE).sqrt()).T @ (a / unit)
    solution, _ = nnls(matrix.numpy(), right.numpy(), maxiter=30 * len(a))
    return torch.from_numpy(solution) / unit


def _descend(problem: Quotient, x: Tensor, target: Tensor, loss: float) -> tuple[Tensor, Tensor, float] | None:
    """Weights, a_q and loss after the longest of the steps 1, 1/2, 1/4, ... to the target that lowers the loss."""
    whole = float((target - x).abs().sum())
    for halving in range(HALVINGS):
        if whole * 0.5**halving < STILL:
            return None
        candidate = torch.lerp(x, target, 0.5**halving)
        top, found = _at(problem, candidate)
        if found < loss:
            return candidate, top, found
    return None
