"""The same step along every direction: Grad-Dot and TracIn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from whence.algebra.filters.base import SpectralFilter
from whence.algebra.precision import as_float64
from whence.checks import require_positive


@final
@dataclass(frozen=True)
class FirstOrder(SpectralFilter):
    """f(s) = c: curvature plays no part. c = lr * T is the horizon of a run too short to feel any curvature."""

    lr_times_steps: float = 1.0
    name: ClassVar[str] = "first_order"
    accepts_indefinite: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive(self.lr_times_steps, "lr_times_steps")

    def __call__(self, s: Tensor) -> Tensor:
        return torch.full_like(as_float64(s), self.lr_times_steps)

    def at_zero(self) -> float:
        return self.lr_times_steps

    def complement(self, s: Tensor) -> Tensor:
        return torch.zeros_like(as_float64(s))

    def describe(self) -> dict[str, object]:
        return {"filter": self.name, "lr_times_steps": self.lr_times_steps}


def first_order(lr_times_steps: float = 1.0) -> FirstOrder:
    """The constant filter f(s) = `lr_times_steps`."""
    return FirstOrder(float(lr_times_steps))
