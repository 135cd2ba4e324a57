"""`Conv1D` of the transformers library: a linear layer whose weight is stored transposed, (i, o).

It is recognised by its name and attributes, so that transformers need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from whence.gradients.layers.rule import Captured, KroneckerRule, positions, sum_of_outer


def is_conv1d_hf(module: nn.Module) -> bool:
    """Whether this is a `Conv1D` as in transformers: called so, with weight (i, nf) and bias (nf,)."""
    weight, bias, nf = (getattr(module, name, None) for name in ("weight", "bias", "nf"))
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(weight, Tensor)
        and isinstance(bias, Tensor)
        and weight.ndim == 2
        and weight.shape[1] == nf
        and bias.shape == (nf,)
    )


@final
class TransposedLinearRule(KroneckerRule):
    """Weight (i, o): `sum_s x_s g_s^T`; bias: `sum_s g_s`."""

    def factors(self, module: nn.Module, x: Captured, g: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Inputs (n, s, i) and output gradients (n, s, o), as for `nn.Linear`; the stored weight is the transpose."""
        return positions(x, n), positions(g, n)

    def as_matrix(self, weight: Tensor) -> Tensor:
        """(m, i, o) to (m, o, i)."""
        return weight.transpose(1, 2)

    def from_matrix(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """(m, o, i) to (m, i, o)."""
        return matrix.transpose(1, 2)

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Weight (n, i, o) and bias (n, o)."""
        a, g = self.factors(module, x, g, n)
        if "weight" in out:
            sum_of_outer(a, g, out["weight"])
        if "bias" in out:
            torch.sum(g, 1, out=out["bias"])
