"""Spectral filters, one a file, and their table."""

from __future__ import annotations

from collections.abc import Callable

from whence.algebra.filters.banded import Banded, banded
from whence.algebra.filters.base import ResolvableFilter, SpectralFilter
from whence.algebra.filters.damped_inverse import DampedInverse, UnresolvedDampedInverse, damped_inverse
from whence.algebra.filters.first_order import FirstOrder, first_order
from whence.algebra.filters.flow import Flow, flow
from whence.algebra.filters.horizon import Horizon, horizon

FILTERS: dict[str, Callable[..., ResolvableFilter]] = {
    "first_order": first_order,
    "damped_inverse": damped_inverse,
    "horizon": horizon,
    "flow": flow,
    "banded": banded,
}

__all__ = [
    "FILTERS",
    "Banded",
    "DampedInverse",
    "FirstOrder",
    "Flow",
    "Horizon",
    "ResolvableFilter",
    "SpectralFilter",
    "UnresolvedDampedInverse",
    "banded",
    "damped_inverse",
    "first_order",
    "flow",
    "horizon",
]
