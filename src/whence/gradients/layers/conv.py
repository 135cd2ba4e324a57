"""`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, with stride, dilation, groups and every padding mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import grad

from whence.errors import UnsupportedError
from whence.gradients.layers.rule import Captured, KroneckerRule, per_example

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
WEIGHT_GRADIENTS: dict[int, Callable[..., Tensor]] = {
    1: grad.conv1d_weight,
    2: grad.conv2d_weight,
    3: grad.conv3d_weight,
}


@final
class ConvRule(KroneckerRule):
    """The weight gradients of n examples are that of one convolution with n times the groups, one group an example."""

    channels_first = True

    def is_kronecker(self, module: nn.Module) -> bool:
        """Only without groups: with groups each has factors of its own."""
        return isinstance(module, Conv) and module.groups == 1

    def factors(self, module: nn.Module, x: Captured, g: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Patches (n, s, i * kernel entries) and output gradients (n, s, o) at the output positions s.

        Raises:
            UnsupportedError: The convolution has groups.
        """
        if not isinstance(module, Conv) or not self.is_kronecker(module):
            raise UnsupportedError(
                f"Kronecker factors of {module} were asked for; a convolution with groups has a pair for each group. "
                "Use `gradients`."
            )
        patches = _patches(module, x).flatten(2)  # (n * k, positions, i * kernel)
        a = patches.reshape(n, -1, patches.shape[-1])
        return a, g.flatten(2).transpose(1, 2).reshape(n, a.shape[1], -1)

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Weight (n, o, i / groups, *kernel) and bias (n, o)."""
        assert isinstance(module, Conv)
        if "weight" in out:
            weight = _weight_gradient(module, x, g, n)
            out["weight"].copy_(weight.reshape(out["weight"].shape))
        if "bias" in out:
            torch.sum(per_example(g, n).flatten(3), (1, 3), out=out["bias"])


def _weight_gradient(module: Conv, x: Tensor, g: Tensor, n: int) -> Tensor:
    """(n * o, i / groups, *kernel)."""
    size = (n * module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":  # what the backward convolution does not know
        x, padding = _padded(module, x), (0,) * len(module.kernel_size)
    return WEIGHT_GRADIENTS[len(module.kernel_size)](
        _examples_as_groups(x, n),
        size,
        _examples_as_groups(g, n),
        stride=module.stride,
        padding=padding,
        dilation=module.dilation,
        groups=n * module.groups,
    )


def _examples_as_groups(x: Tensor, n: int) -> Tensor:
    """(n * k, channels, ...) as (k, n * channels, ...)."""
    return per_example(x, n).transpose(0, 1).flatten(1, 2)


def _patches(module: Conv, x: Tensor) -> Tensor:
    """What the kernel sees at each output position: (rows, positions, i, *kernel)."""
    x, d = _padded(module, x), len(module.kernel_size)
    for k, (size, stride, dilation) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        # Every window goes to the end: the dimensions before keep their places.
        x = x.unfold(2 + k, dilation * (size - 1) + 1, stride)[..., ::dilation]
    x = x.movedim(1, 1 + d)
    return x.reshape(x.shape[0], prod(x.shape[1 : 1 + d]), *x.shape[1 + d :])


def _padded(module: Conv, x: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    widths = _padding(module)
    return nn.functional.pad(x, widths, mode=mode) if any(widths) else x


def _padding(module: Conv) -> list[int]:
    """Widths for `pad`: last dimension first, before and after."""
    d = len(module.kernel_size)
    if module.padding == "same":
        total = [dilation * (size - 1) for size, dilation in zip(module.kernel_size, module.dilation, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    elif isinstance(module.padding, str):  # "valid"
        sides = [(0, 0)] * d
    else:
        sides = [(p, p) for p in module.padding]
    return [width for side in reversed(sides) for width in side]
