"""Normalisation layers with a scale and a shift: layer norm, RMS norm, group norm, and batch norm in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from whence.gradients.layers.rule import Captured, LayerRule

LastDims = nn.LayerNorm | nn.RMSNorm
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@final
class LastDimsNormRule(LayerRule):
    """`nn.LayerNorm` and `nn.RMSNorm`: scale and shift have the shape of the last dimensions."""

    def capture(self, module: nn.Module, x: Tensor) -> Captured:
        """The normalised input."""
        x = x.detach()
        if isinstance(module, nn.RMSNorm):
            return F.rms_norm(x, list(module.normalized_shape), None, module.eps)
        assert isinstance(module, nn.LayerNorm)
        return F.layer_norm(x, list(module.normalized_shape), None, None, module.eps)

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Weight and bias, (n, *normalized_shape)."""
        assert isinstance(module, LastDims)

        def per_example(y: Tensor) -> Tensor:
            return y.reshape(n, -1, *module.normalized_shape).sum(1)

        _scale_and_shift(x, g, out, per_example)


@final
class GroupNormRule(LayerRule):
    """`nn.GroupNorm`: one scale and one shift a channel."""

    def capture(self, module: nn.Module, x: Tensor) -> Captured:
        """The normalised input."""
        assert isinstance(module, nn.GroupNorm)
        return F.group_norm(x.detach(), module.num_groups, None, None, module.eps)

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Weight and bias, (n, channels)."""
        _scale_and_shift(x, g, out, lambda y: _per_channel(y, n))


@final
class BatchNormRule(LayerRule):
    """Batch norm with its recorded statistics: one scale and one shift a channel."""

    def applies(self, module: nn.Module) -> bool:
        """Not where the statistics are those of the batch, which mixes its examples."""
        return isinstance(module, BatchNorm) and not module.training and module.running_mean is not None

    def capture(self, module: nn.Module, x: Tensor) -> Captured:
        """The normalised input, by the statistics that are in place during the call."""
        assert isinstance(module, BatchNorm)
        return F.batch_norm(x.detach(), module.running_mean, module.running_var, eps=module.eps)

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Weight and bias, (n, channels)."""
        _scale_and_shift(x, g, out, lambda y: _per_channel(y, n))


def _per_channel(y: Tensor, n: int) -> Tensor:
    """Sum over rows and positions of each example: (n * k, channels, ...) -> (n, channels)."""
    return y.reshape(n, -1, y.shape[1], y[0, 0].numel()).sum((1, 3))


def _scale_and_shift(
    normalised: Tensor, g: Tensor, out: Mapping[str, Tensor], per_example: Callable[[Tensor], Tensor]
) -> None:
    if "weight" in out:
        out["weight"].copy_(per_example(normalised * g))
    if "bias" in out:
        out["bias"].copy_(per_example(g))
