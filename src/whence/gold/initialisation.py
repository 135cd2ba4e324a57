"""Fresh parameters for retraining, by each module's own rule."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from whence.errors import InputError
from whence.task import Task

Initialize = Callable[[int], dict[str, Tensor]]  # seed -> state dict


def reinitialized(task: Task) -> Initialize:
    """An `initialize` for `retrain`: every module's `reset_parameters`, in the model's order, under the seed.

    Right for models built from torch's own layers with their default initialisation; a model that sets its parameters
    in another way needs a function of its own.

    Raises:
        InputError: A module has trainable parameters of its own and no `reset_parameters`; at the call, before any
            training.
    """
    stuck = [name or type(m).__name__ for name, m in task.model.named_modules() if _owns(m) and not _resets(m)]
    if stuck:
        raise InputError(
            f"{', '.join(stuck[:3])} cannot be initialised anew: there is no `reset_parameters`. Pass "
            "`initialize=`, a function from a seed to the state dict of a fresh model."
        )

    def initialize(seed: int) -> dict[str, Tensor]:
        model = copy.deepcopy(task.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in model.modules():
                if _resets(module):
                    module.reset_parameters()  # type: ignore[operator]
        return model.state_dict()

    return initialize


def _owns(module: torch.nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _resets(module: torch.nn.Module) -> bool:
    return callable(getattr(module, "reset_parameters", None))
