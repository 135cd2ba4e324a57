"""Weights that learn nothing: what learned ones must beat."""

from __future__ import annotations

import torch

from whence.weights.objective import Objective
from whence.weights.solvers.solution import Solution


def uniform(problem: Objective) -> Solution:
    """The method as it is."""
    return Solution(torch.ones(problem.shape[2], dtype=torch.float64))


def rms(problem: Objective) -> Solution:
    """Every group scaled to the same root mean square; 0 for groups that contribute nothing."""
    return Solution(torch.where(problem.rms > 0, 1 / problem.rms, 0.0))
