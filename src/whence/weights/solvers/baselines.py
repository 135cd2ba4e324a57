"""Weights that learn nothing: what learned ones must beat."""

from __future__ import annotations

import torch

from whence.weights.quotient import Quotient, inverse
from whence.weights.solvers.solution import Solution


def uniform(problem: Quotient) -> Solution:
    """The method as it is."""
    return Solution(torch.ones(problem.shape[2], dtype=torch.float64))


def rms(problem: Quotient) -> Solution:
    """Every group scaled to the same root mean square; 0 for groups that contribute nothing."""
    return Solution(inverse(problem.rms))
