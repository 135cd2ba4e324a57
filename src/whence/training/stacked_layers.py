"""Forward passes of many stacked networks at once, without `vmap`, for plain chains of common layers.

`vmap` of a linear layer costs a few extra kernels per call; one batched product with the bias folded in is about a
tenth faster on small networks. A network with a layer that is not in the table goes through `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from whence.task import ModelOutputs, Task

Stacked = Callable[[nn.Module, str, dict[str, Tensor], Tensor], Tensor]


def _linear(layer: nn.Module, name: str, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """(R, ..., i) with weights (R, o, i) -> (R, ..., o)."""
    weight = parameters[f"{name}.weight"].transpose(1, 2)
    bias = parameters.get(f"{name}.bias")
    rows = x.flatten(1, -2)
    y = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias[:, None], rows, weight)
    return y.reshape(*x.shape[:-1], -1)


def _elementwise(layer: nn.Module, name: str, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return layer(x)  # type: ignore[no-any-return]


def _flatten(layer: nn.Module, name: str, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return x.flatten(2)


STACKED_LAYERS: dict[type[nn.Module], Stacked] = {
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.ReLU: _elementwise,
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
    if not isinstance(task.outputs, ModelOutputs) or not isinstance(task.model, nn.Sequential):
        return None
    layers = [(name, layer) for name, layer in task.model.named_children()]
    plain = all(type(layer) in STACKED_LAYERS and _default(layer) for _, layer in layers)
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
