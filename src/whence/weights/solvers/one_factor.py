"""One common factor: gains and noise of the groups from their second moments alone."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.checks import require_count
from whence.weights.objective import Objective
from whence.weights.solvers.solution import Solution

LEAST_NOISE = 1e-6  # share of a group's variance: one without noise would take all the weight
TOLERANCE = 1e-10


def solve_one_factor(problem: Objective, *, max_rounds: int = 1000) -> Solution:
    """w_j = a_j / psi_j, where the groups' second moments are fitted by a a^T + diag(psi) (expectation-maximisation).

    With contributions C_j = a_j u + noise of variance psi_j, independent between groups, this is the weighting of
    largest signal-to-noise ratio, whatever the tails of u; no examples are ranked. Noise that all groups share is the
    factor itself: then it fails. Groups on the other side of the factor have weight 0.

    Args:
        problem: Contributions of the learning queries.
        max_rounds: At most so many rounds of the fit.
    Cost:
        Per round n_groups^2.
    Reference:
        Rubin and Thayer (1982), EM algorithms for factor analysis; its use for weights is worked out here.
    """
    require_count(max_rounds, "max_rounds")
    n_query, n_train, n_groups = problem.shape
    moments = problem.gram.sum(0) / (n_query * n_train)
    alive = moments.diagonal() > 0
    gains, noise, rounds = fit_factor(moments[alive][:, alive], max_rounds)
    gains = gains if float(gains.sum()) >= 0 else -gains
    x = torch.zeros(n_groups, dtype=torch.float64)
    x[alive] = gains.clamp_min(0) / noise
    facts = {"rounds": rounds}
    return Solution(problem.weights(x), facts)


def fit_factor(moments: Tensor, max_rounds: int) -> tuple[Tensor, Tensor, int]:
    """a and psi of the likeliest a a^T + diag(psi) for second moments (m, m), and the rounds it took."""
    spread = moments.diagonal().sqrt()
    correlations = moments / spread / spread[:, None]
    values, vectors = torch.linalg.eigh(correlations)
    a = vectors[:, -1] * values[-1].clamp_min(0).sqrt() / 2  # half of it: all of it would leave no noise
    psi = (1 - a.square()).clamp_min(LEAST_NOISE)
    done = 0
    while done < max_rounds:
        done += 1
        beta = (a / psi) / (1 + (a.square() / psi).sum())
        along = correlations @ beta
        new = along / (1 - beta @ a + beta @ along)
        psi = (1 - new * along).clamp_min(LEAST_NOISE)
        moved, a = float((new - a).abs().max()), new
        if moved < TOLERANCE:
            break
    return a * spread, psi * spread.square(), done
