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


class EncoderBlock(nn.Module):
    """One layer of an encoder that lets no token look at padding; attention is torch's fused one."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """(b, t, dim) and bool (b, t), True where a token is -> (b, t, dim)."""
        b, t, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, dim))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Four layers over at most `length` tokens, mean over the tokens that are no padding, one linear head.

    1,848,834 parameters by default, 1,048,576 of them token embeddings.
    """

    def __init__(
        self, vocabulary: int = 8192, length: int = 52, dim: int = 128, heads: int = 4, n_classes: int = 2
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.places = nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(EncoderBlock(dim, heads) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, n_classes)
        nn.init.normal_(self.tokens.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask, (b, t) each, the mask 0 where padding is -> (b, n_classes)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        x = self.tokens(input_ids) + self.places(places)
        for block in self.blocks:
            x = block(x, attention_mask != 0)
        kept = attention_mask[..., None].to(x.dtype)
        return self.head((self.norm(x) * kept).sum(1) / kept.sum(1))


def _convolution(n_in: int, n_out: int) -> nn.Sequential:
    # Group norm: batch norm would mix the examples of a batch.
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.GroupNorm(8, n_out), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(_convolution(n_channels, n_channels), _convolution(n_channels, n_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_channels, h, w), the same shape out."""
        return x + self.convolutions(x)


class ResNet9(nn.Sequential):
    """Eight convolutions with group norm, two residual blocks, three pools, and a linear head.

    412,666 parameters for 1 channel, 10 classes and width 16; 6,571,978 for width 64.
    Images are at least 8 pixels wide and high; `width` is a multiple of 8.
    """

    def __init__(self, n_channels: int, n_classes: int, width: int = 16) -> None:
        super().__init__(
            _convolution(n_channels, width),
            _convolution(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            _convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            _convolution(4 * width, 8 * width),
            nn.MaxPool2d(2),
            Residual(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, n_classes),
        )


class VisionTransformer(nn.Module):
    """Square patches as tokens, layers of `Block` over them, mean over the tokens, one linear head.

    67,162 parameters for 3 channels, 10 classes, pictures 32 pixels wide in patches of 8, and 2 layers of 48.

    Args:
        n_channels, n_classes: Of the pictures, and of what they are told apart by.
        side: Width and height of a picture in pixels, a multiple of `patch`.
        patch: Width and height of a patch.
        dim: Length of a token's vector, a multiple of `heads`.
        heads: Of each layer's attention.
        n_layers: Number of layers.
    """

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        side: int,
        *,
        patch: int = 8,
        dim: int = 48,
        heads: int = 4,
        n_layers: int = 2,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(n_channels, dim, patch, stride=patch)
        self.places = nn.Embedding((side // patch) ** 2, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(n_layers)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, n_classes)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_channels, side, side) -> (b, n_classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        places = torch.arange(tokens.shape[1], device=x.device).expand(tokens.shape[:2])
        return self.head(self.norm(self.blocks(tokens + self.places(places))).mean(1))
