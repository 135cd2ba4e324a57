"""A filter times one factor for each band of eigenvalues: what learned weights of bands make of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from whence.algebra.filters.base import SpectralFilter
from whence.algebra.precision import FLOAT64, as_float64
from whence.errors import InputError


@final
@dataclass(frozen=True)
class Banded(SpectralFilter):
    """f(s) = factors[k] base(s) for edges[k - 1] <= s < edges[k]; below the first edge factors[0], negative s included.

    It jumps at the edges: for curvatures whose eigenvalues are known, not for Krylov spaces.
    """

    edges: tuple[float, ...]
    factors: tuple[float, ...]
    base: SpectralFilter
    name: ClassVar[str] = "banded"
    accepts_indefinite: ClassVar[bool] = True  # the base says whether it does

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in itertools.pairwise((0.0, *self.edges)))
        if not ascending or len(self.factors) != len(self.edges) + 1:
            raise InputError(
                f"`edges` must ascend from above 0, and there must be one factor more; got edges {self.edges} and "
                f"{len(self.factors)} factors."
            )

    def __call__(self, s: Tensor) -> Tensor:
        return self._factors(s) * self.base(s)

    def at_zero(self) -> float:
        return self.factors[0] * self.base.at_zero()

    def complement(self, s: Tensor) -> Tensor:
        s = as_float64(s)
        inside = s < (self.edges[0] if self.edges else torch.inf)
        away = torch.where(inside, 1.0, s)
        return torch.where(inside, self.factors[0] * self.base.complement(s), (self.at_zero() - self(s)) / away)

    def _factors(self, s: Tensor) -> Tensor:
        s = as_float64(s)
        edges = torch.tensor(self.edges, dtype=FLOAT64, device=s.device)
        return torch.tensor(self.factors, dtype=FLOAT64, device=s.device)[torch.bucketize(s, edges, right=True)]

    def _check_range(self, s_min: float, s_max: float) -> None:
        self.base.check(s_min, s_max)

    def describe(self) -> dict[str, object]:
        return {
            "filter": self.name,
            "edges": list(self.edges),
            "factors": list(self.factors),
            "base": self.base.describe(),
        }


def banded(edges: Sequence[float], factors: Sequence[float], base: SpectralFilter) -> Banded:
    """`base` times factors[k] between edges[k - 1] and edges[k]; one factor more than edges."""
    return Banded(tuple(map(float, edges)), tuple(map(float, factors)), base)
