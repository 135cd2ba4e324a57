"""Dropout that can be repeated: masks keyed by seed, step and module, the same for every run of a seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from whence.batches import Batch, to_device
from whence.errors import UnsupportedError
from whence.rng import derive_seed
from whence.task import Task


class KeyedDropout(nn.Module):
    """Stands in for one `nn.Dropout`: elements are dropped by a mask that depends only on its key and the shape.

    The mask is drawn outside torch, so that under `vmap` all stacked runs share it.
    """

    def __init__(self, p: float, name: str) -> None:
        super().__init__()
        self.p = p
        self.name = name
        self.key: tuple[int, int] | None = None  # (seed, step); None switches dropout off
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.key is None or self.p == 0:
            return x
        if self.p == 1:
            return x * 0
        seed = derive_seed(self.key[0], "dropout", self.key[1], self.name, self.calls)
        self.calls += 1
        keep = np.random.Generator(np.random.Philox(seed)).random(tuple(x.shape)) >= self.p
        return x * torch.from_numpy(keep).to(device=x.device, dtype=x.dtype).div_(1 - self.p)


def training_twin(task: Task, dropout: bool) -> Task:
    """The task on a copy of its model, for training: `nn.Dropout` replaced by `KeyedDropout`, all else in eval mode.

    Batch-norm statistics stay frozen, as they must while runs are compared.
    """
    model = copy.deepcopy(task.model).eval()
    if dropout:
        twins: dict[nn.Module, KeyedDropout] = {}  # one module may be used in several places
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if type(module) is nn.Dropout:
                parent, _, leaf = name.rpartition(".")
                twin = twins.setdefault(module, KeyedDropout(module.p, name))
                setattr(model.get_submodule(parent), leaf, twin)
    return task.with_model(model)


def keyed_layers(model: nn.Module) -> list[KeyedDropout]:
    """The dropout twins of a model."""
    return [module for module in model.modules() if isinstance(module, KeyedDropout)]


def set_key(layers: list[KeyedDropout], key: tuple[int, int] | None) -> None:
    """Switch dropout twins to the masks of (seed, step), or off."""
    for layer in layers:
        layer.key, layer.calls = key, 0


class _RefuseFunctionalDropout(TorchFunctionMode):
    """Finds dropout that is not an `nn.Dropout` module."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is F.scaled_dot_product_attention:
            active = (args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)) > 0
        elif func is F.multi_head_attention_forward:
            active = kwargs.get("training", True) and (args[10] if len(args) > 10 else kwargs.get("dropout_p", 0.0)) > 0
        elif "dropout" in name:
            p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            on = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
            active = bool(on) and p > 0
        else:
            active = False
        if active:
            raise UnsupportedError(
                f"The model calls {name!r} itself, so its dropout cannot be repeated across runs. Use nn.Dropout "
                "modules, set its probability to 0, or train with Recipe(dropout=False)."
            )
        return func(*args, **kwargs)


def refuse_functional_dropout(task: Task, batch: Batch) -> None:
    """Run a copy of the model once in train mode and refuse dropout that is not a module.

    Raises:
        UnsupportedError: The model calls functional dropout or attention dropout, or is noisy in another way.
    """
    twin = training_twin(task, dropout=True)
    twin.model.train()
    for module in twin.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    devices = [task.device] if task.device.type == "cuda" else []
    batch = to_device(batch, task.device)
    with torch.no_grad(), _RefuseFunctionalDropout(), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        first = twin.outputs(twin.model, batch)
        torch.manual_seed(1)
        second = twin.outputs(twin.model, batch)
    # Dropout inside an LSTM, stochastic depth, or noise is no call that the mode above can see.
    if not torch.allclose(first, second, rtol=1e-4):
        raise UnsupportedError(
            "In train mode the model's answers depend on chance that is not in its nn.Dropout modules, and cannot be "
            "repeated across runs. Use nn.Dropout modules, or train with Recipe(dropout=False), without that chance."
        )
