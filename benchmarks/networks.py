"""Networks of the benchmarks that are no plain chains; importable, so that worker processes can have them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """One layer of a small transformer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, dim) -> (b, t, dim)."""
        b, t, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(-2, -1) / (dim // self.heads) ** 0.5).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, dim))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Two layers over tokens, mean-pooled, two classes."""

    def __init__(self, vocabulary: int = 200, length: int = 32, dim: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.places = nn.Parameter(0.02 * torch.randn(length, dim))
        self.blocks = nn.Sequential(Block(dim, 4), Block(dim, 4))
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t) -> (b, 2)."""
        return self.head(self.blocks(self.tokens(x) + self.places).mean(1))
