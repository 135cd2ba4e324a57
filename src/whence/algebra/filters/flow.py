"""Gradient flow: training for a time, in steps too small to matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from whence.algebra.differences import decay_difference, decay_sum
from whence.algebra.filters.base import SpectralFilter
from whence.algebra.precision import FLOAT64, as_float64
from whence.algebra.steps import Steps
from whence.checks import require_positive
from whence.errors import InputError, NumericalError


@final
@dataclass(frozen=True)
class Flow(SpectralFilter):
    """f(s) = (1 - exp(-time s')) / s' with s' = s + weight_decay, and f = time where s' = 0.

    The limit of `Horizon` for small learning rates, `time` = lr * T; defined for every spectrum. Negative
    eigenvalues grow exponentially, as they do in the flow itself, until that overflows.

    Reference:
        Bae et al. (2024), arXiv:2405.12186 (SOURCE), section 3.
    """

    time: float
    weight_decay: float = 0.0
    name: ClassVar[str] = "flow"
    accepts_indefinite: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive(self.time, "time")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"`weight_decay` must be non-negative and finite; got {self.weight_decay!r}.")

    @classmethod
    def matching(cls, steps: Steps) -> Flow:
        """The flow that lasts as long as `steps` (learning rates summed, over 1 - momentum)."""
        return cls(steps.time, steps.weight_decay)

    def __call__(self, s: Tensor) -> Tensor:
        return self.time * decay_sum(self.time * (as_float64(s) + self.weight_decay))

    def at_zero(self) -> float:
        return float(self(torch.zeros((), dtype=FLOAT64)))

    def complement(self, s: Tensor) -> Tensor:
        x = self.time * (as_float64(s) + self.weight_decay)
        return self.time**2 * decay_difference(x, torch.full_like(x, self.time * self.weight_decay))

    def _check_range(self, s_min: float, s_max: float) -> None:
        if not math.isfinite(float(self(torch.tensor(s_min, dtype=FLOAT64)))):
            raise NumericalError(
                f"Over a time of {self.time:.6g} the eigenvalue {s_min:.6g} grows beyond float64. "
                "Use a shorter time or a Gauss-Newton curvature."
            )

    def describe(self) -> dict[str, object]:
        return {"filter": self.name, "time": self.time, "weight_decay": self.weight_decay}


def flow(time: float, weight_decay: float = 0.0) -> Flow:
    """Gradient flow for `time` (lr * n_steps), with an optional decay towards zero."""
    return Flow(float(time), float(weight_decay))
