"""`nn.Linear`: y = W x + c at any number of positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from whence.gradients.layers.rule import Captured, KroneckerRule, positions, sum_of_outer


@final
class LinearRule(KroneckerRule):
    """Weight (o, i): `sum_s g_s x_s^T`; bias: `sum_s g_s`."""

    def factors(self, module: nn.Module, x: Captured, g: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Inputs (n, s, i) and output gradients (n, s, o); s counts all leading positions."""
        return positions(x, n), positions(g, n)

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Weight (n, o, i) and bias (n, o)."""
        a, g = self.factors(module, x, g, n)
        if "weight" in out:
            sum_of_outer(g, a, out["weight"])
        if "bias" in out:
            torch.sum(g, 1, out=out["bias"])


LINEAR = LinearRule()
