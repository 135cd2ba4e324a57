"""Solvers of the self-supervised objective, one a file; each takes a `Objective`."""

from collections.abc import Callable

from whence.weights.solvers.adamw import solve_adamw
from whence.weights.solvers.baselines import rms, uniform
from whence.weights.solvers.cross_fitted import solve_cross_fitted
from whence.weights.solvers.nnls import solve_nnls
from whence.weights.solvers.one_factor import solve_one_factor
from whence.weights.solvers.solution import Solution

SOLVERS: dict[str, Callable[..., Solution]] = {
    "uniform": uniform,
    "rms": rms,
    "nnls": solve_nnls,
    "adamw": solve_adamw,
    "cross_fitted": solve_cross_fitted,
    "one_factor": solve_one_factor,
}

__all__ = ["SOLVERS", "Solution"]
