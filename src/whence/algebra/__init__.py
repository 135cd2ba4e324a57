"""Symmetric operators, spectral filters and solvers. Knows tensors, no model and no recipe.

A block of vectors is rows, (m, dim); operators act on each row. Scalars and eigen-decompositions are float64.
"""

from __future__ import annotations

from whence.algebra.block_krylov import block_krylov
from whence.algebra.cg import CGResult, conjugate_gradient
from whence.algebra.damping import Damping
from whence.algebra.dense import apply_filter_dense, exact_look_ahead_dense, run_gradient_descent
from whence.algebra.filters import (
    FILTERS,
    DampedInverse,
    FirstOrder,
    Flow,
    Horizon,
    ResolvableFilter,
    SpectralFilter,
    UnresolvedDampedInverse,
    damped_inverse,
    first_order,
    flow,
    horizon,
)
from whence.algebra.lanczos import LanczosBasis, LanczosResult, lanczos, largest_eigenvalue
from whence.algebra.look_ahead import look_ahead_kernel, look_ahead_kernel_recurrence
from whence.algebra.neumann import neumann_series
from whence.algebra.operators import (
    CallbackOperator,
    DenseOperator,
    FactorOperator,
    ShiftedOperator,
    SymmetricOperator,
)
from whence.algebra.pairwise import pairwise, pairwise_cosine
from whence.algebra.projections import PROJECTIONS, Projection
from whence.algebra.spectral import DualSpectrum, PrimalSpectrum
from whence.algebra.steps import Steps

__all__ = [
    "FILTERS",
    "PROJECTIONS",
    "CGResult",
    "CallbackOperator",
    "DampedInverse",
    "Damping",
    "DenseOperator",
    "DualSpectrum",
    "FactorOperator",
    "FirstOrder",
    "Flow",
    "Horizon",
    "LanczosBasis",
    "LanczosResult",
    "PrimalSpectrum",
    "Projection",
    "ResolvableFilter",
    "ShiftedOperator",
    "SpectralFilter",
    "Steps",
    "SymmetricOperator",
    "UnresolvedDampedInverse",
    "apply_filter_dense",
    "block_krylov",
    "conjugate_gradient",
    "damped_inverse",
    "exact_look_ahead_dense",
    "first_order",
    "flow",
    "horizon",
    "lanczos",
    "largest_eigenvalue",
    "look_ahead_kernel",
    "look_ahead_kernel_recurrence",
    "neumann_series",
    "pairwise",
    "pairwise_cosine",
    "run_gradient_descent",
]
