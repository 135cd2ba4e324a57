"""Cross-fitted signal: what counts as signal for a group is chosen by all other groups."""

from __future__ import annotations

import torch

from whence.checks import require_count
from whence.weights.objective import Objective
from whence.weights.quotient import norms
from whence.weights.solvers.nnls import non_negative_least_squares
from whence.weights.solvers.solution import Solution

TOLERANCE = 1e-6  # of the weights: below it a round has changed nothing


def solve_cross_fitted(problem: Objective, *, max_rounds: int = 10) -> Solution:
    """As the closed form, with the mean contribution a_j of group j over the top-k of the scores *without* group j.

    The top-k of the full scores are partly there because of a group's own noise, which a_j then counts as signal. Where
    the noise of groups is independent, that of group j does not choose its own examples, and a_j is unbiased. So the
    weights come near w_j = gain / noise variance also where influence has no heavy tail. Noise that groups share is
    taken for signal, as everywhere.

    Args:
        problem: Contributions of the learning queries, in memory.
        max_rounds: At most so many rounds, each with the sets of the weights before.
    Returns:
        The weights of the last round. Where no group supports the choice of the others the start is returned, which
        with RMS normalisation are the RMS weights, and the facts say so.
    Raises:
        InputError: The contributions are streamed.
    Cost:
        Per round n_groups partial sorts of n_query x n_train scores.
    Reference:
        Worked out here; Li et al. (2026), arXiv:2506.05647, choose by the full scores.
    """
    require_count(max_rounds, "max_rounds")
    x = problem.start()
    for done in range(1, max_rounds + 1):
        size = norms(problem.gram, x)
        use = size > 0
        signal, size = problem.cross_means(x)[use], size[use]
        a = (signal / size[:, None]).mean(0)
        if len(size) == 0 or bool((a <= 0).all()):
            note = "no group supports what the others rank first: the weights are those of the round before"
            return Solution(problem.weights(x), {"rounds": done - 1, "note": note})
        b = torch.einsum("q,qjk->jk", size.square().reciprocal(), problem.gram[use]) / len(size)
        found = non_negative_least_squares(b, a)
        found = found / found.sum()
        moved = float((found - x).abs().sum())
        x = found
        if moved < TOLERANCE:
            break
    return Solution(problem.weights(x), {"rounds": done})
