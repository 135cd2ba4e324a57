"""Exactly T steps of an optimizer: how far it gets along a direction of curvature s."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from whence.algebra.differences import power_difference, power_sum
from whence.algebra.filters.base import SpectralFilter
from whence.algebra.precision import FLOAT64, as_float64
from whence.algebra.recurrence import forced_response, unit_response
from whence.algebra.steps import Steps
from whence.errors import NumericalError


@final
@dataclass(frozen=True)
class Horizon(SpectralFilter):
    """f(s): displacement after the steps under a constant unit force, on a quadratic of curvature s.

    Plain gradient descent: f(s) = (1 - (1 - lr s')^T) / s' with s' = s + weight_decay, lr * T where s' = 0. Momentum
    and schedules: the optimizer's own recurrence, run for all eigenvalues at once. A negative eigenvalue grows
    exponentially, as it does in training; that is exact, and refused only when it overflows.

    Cost:
        O(1) an eigenvalue for plain gradient descent, O(T) otherwise.
    """

    steps: Steps
    name: ClassVar[str] = "horizon"
    accepts_indefinite: ClassVar[bool] = True

    def __call__(self, s: Tensor) -> Tensor:
        s = as_float64(s)
        if not self.steps.constant:
            return unit_response(s, self.steps)
        lr = self.steps.lr[0]
        return lr * power_sum(lr * (s + self.steps.weight_decay), self.steps.n_steps)

    def at_zero(self) -> float:
        return float(self(torch.zeros((), dtype=FLOAT64)))

    def complement(self, s: Tensor) -> Tensor:
        s = as_float64(s)
        if not self.steps.constant:
            return forced_response(s, torch.zeros((), dtype=FLOAT64, device=s.device), self.steps)
        lr, decay = self.steps.lr[0], self.steps.weight_decay
        x = lr * (s + decay)
        return lr**2 * power_difference(x, torch.full_like(x, lr * decay), self.steps.n_steps)

    def _check_range(self, s_min: float, s_max: float) -> None:
        bound, stiffest = self.steps.stability_bound, s_max + self.steps.weight_decay
        if stiffest > 0 and self.steps.max_lr * stiffest >= bound:
            raise NumericalError(
                f"Gradient descent with lr {self.steps.max_lr:.6g} diverges on this curvature: its largest eigenvalue "
                f"is {s_max:.6g} (weight decay {self.steps.weight_decay:.6g}), and lr times their sum must stay below "
                f"{bound:.6g}. Use an lr below {bound / stiffest:.6g}, or `flow(time={self.steps.time:.6g})`."
            )
        if not math.isfinite(float(self(torch.tensor(s_min, dtype=FLOAT64)))):
            raise NumericalError(
                f"In {self.steps.n_steps} steps the eigenvalue {s_min:.6g} grows beyond float64. "
                "Use fewer steps or a Gauss-Newton curvature."
            )

    def describe(self) -> dict[str, object]:
        return {"filter": self.name, **self.steps.to_dict()}


def horizon(steps: Steps) -> Horizon:
    """The filter of exactly these optimizer steps."""
    return Horizon(steps)
