"""`nn.Embedding`: the gradient of a word's row is the sum of the output gradients where the word stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from whence.gradients.layers.rule import Captured, LayerRule


@final
class EmbeddingRule(LayerRule):
    """Dense (n, words, d) gradients; the row of `padding_idx` has none."""

    def applies(self, module: nn.Module) -> bool:
        """Not with `max_norm`, which rewrites the weight, nor with gradients divided by counts over the whole batch."""
        return isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Weight (n, words, d)."""
        assert isinstance(module, nn.Embedding)
        rows = torch.arange(n, device=x.device)[:, None]
        found = out["weight"].zero_()
        found.index_put_((rows, x.reshape(n, -1)), g.reshape(n, -1, module.embedding_dim), accumulate=True)
        if module.padding_idx is not None:
            found[:, module.padding_idx] = 0
