"""Forward passes of many stacked networks at once, without `vmap`, for plain chains of common layers.

`vmap` of a linear layer costs a few extra kernels per call; one batched product with the bias folded in is about a
tenth faster on small networks. A network with a layer that is not in the table goes through `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from whence.task import ModelOutputs, Task

Stacked = Callable[[nn.Module, str, dict[str, Tensor], Tensor], Tensor]


class StackedLinear(torch.autograd.Function):
    """x (R, b, i), weight (R, o, i), bias (R, o) -> (R, b, o), with gradients laid out like the parameters.

    Autograd's own backward of the transposed product gives transposed gradients, which every update then copies.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        turned = weight.transpose(1, 2)
        return torch.bmm(x, turned) if bias is None else torch.baddbmm(bias[:, None], x, turned)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        (g,) = upstream
        x, weight = ctx.saved_tensors
        toward_x = torch.bmm(g, weight) if ctx.needs_input_grad[0] else None
        return toward_x, torch.bmm(g.transpose(1, 2), x), g.sum(1) if ctx.has_bias else None


def _linear(layer: nn.Module, name: str, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """(R, ..., i) with weights (R, o, i) -> (R, ..., o)."""
    weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
    rows = x if x.ndim == 3 else x.flatten(1, -2)
    y: Tensor = StackedLinear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    # No reshape where none is needed: an in-place activation on a view costs autograd a copy.
    return y if x.ndim == 3 else y.reshape(*x.shape[:-1], -1)


class StackedReLU(torch.autograd.Function):
    """ReLU that overwrites its input, and in the backward pass the gradient it is given.

    Both are fresh tensors of a neighbouring layer that nothing else reads; large temporaries cost more than the sums.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.relu_())
        return x

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        g = upstream[0].contiguous()
        reached: Tensor = torch.ops.aten.threshold_backward.grad_input(g, y, 0, grad_input=g)
        return reached


def _relu(layer: nn.Module, name: str, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    # Only what a linear layer has just made may be overwritten: other layers keep their result for their own backward.
    if type(x.grad_fn).__name__ != "StackedLinearBackward":
        return torch.relu(x)
    y: Tensor = StackedReLU.apply(x)  # type: ignore[no-untyped-call]
    return y


def _elementwise(layer: nn.Module, name: str, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return layer(x)  # type: ignore[no-any-return]


def _flatten(layer: nn.Module, name: str, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return x.flatten(2)


STACKED_LAYERS: dict[type[nn.Module], Stacked] = {
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.ReLU: _relu,
    nn.Tanh: _elementwise,
    nn.Sigmoid: _elementwise,
    nn.GELU: _elementwise,
    nn.SiLU: _elementwise,
    nn.LeakyReLU: _elementwise,
    nn.ELU: _elementwise,
    nn.Softplus: _elementwise,
    nn.Identity: _elementwise,
}


def chain_of(task: Task, parameters: dict[str, Tensor]) -> list[tuple[str, nn.Module]] | None:
    """The layers of the model in order, where it is a plain chain of layers in `STACKED_LAYERS`; else None."""
    # A subclass may run its layers in another way.
    if not isinstance(task.outputs, ModelOutputs) or type(task.model) is not nn.Sequential:
        return None
    # Not `named_children`, which lists a layer that is used twice only once.
    layers = [(name, layer) for name, layer in task.model._modules.items() if layer is not None]
    plain = _default(task.model) and all(type(layer) in STACKED_LAYERS and _default(layer) for _, layer in layers)
    owned = {f"{name}.{p}" for name, layer in layers for p, _ in layer.named_parameters()}
    # A frozen or tied parameter is not in the stack under its own name: leave those networks to vmap.
    return layers if plain and owned == parameters.keys() else None


def _default(layer: nn.Module) -> bool:
    hooked = bool(layer._forward_hooks or layer._forward_pre_hooks)
    return not hooked and (not isinstance(layer, nn.Flatten) or (layer.start_dim, layer.end_dim) == (1, -1))


def run_chain(layers: list[tuple[str, nn.Module]], parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Outputs (R, b, ...) of R networks, each on its own inputs (R, b, ...)."""
    for name, layer in layers:
        x = STACKED_LAYERS[type(layer)](layer, name, parameters, x)
    return x
