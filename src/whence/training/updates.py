"""One optimizer step as a pure function of flat vectors: what `torch.optim` does in place, but differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whence.training.recipe import Recipe

State = tuple[Tensor, ...]  # parameters first, then the optimizer's buffers; each (..., n_params)
Update = Callable[[Recipe, State, Tensor, int, float], State]

# Added under Adam's square root: the root of an exact zero, the second moment of a weight that never had a gradient,
# has no derivative. Far below the square of any `eps` in use.
TINY = 1e-30


def initial_state(recipe: Recipe, parameters: Tensor) -> State:
    """Where a run starts: the parameters (n_params,), and buffers of zero."""
    n_buffers = 2 if recipe.optimizer != "sgd" else 1 if recipe.momentum else 0
    return (parameters, *(torch.zeros_like(parameters) for _ in range(n_buffers)))


def advance(recipe: Recipe, state: State, gradient: Tensor, step: int, lr: float) -> State:
    """The state after one step.

    Args:
        recipe: Optimizer and its constants.
        state: As from `initial_state`.
        gradient: (n_params,) of the mean loss of the step's batch.
        step: Counted from 0.
        lr: Of this step.
    """
    if recipe.clip_norm is not None:
        # As `torch.nn.utils.clip_grad_norm_`. Of the square: at a gradient of zero the norm has no derivative.
        norm = (gradient.square().sum() + TINY).sqrt()
        gradient = gradient * (recipe.clip_norm / (norm + 1e-6)).clamp_max(1.0)
    return UPDATES[recipe.optimizer](recipe, state, gradient, step, lr)


def _sgd(recipe: Recipe, state: State, gradient: Tensor, step: int, lr: float) -> State:
    slope = gradient + recipe.weight_decay * state[0]
    if not recipe.momentum:
        return (state[0] - lr * slope,)
    parameters, buffer = state
    buffer = recipe.momentum * buffer + slope
    direction = slope + recipe.momentum * buffer if recipe.nesterov else buffer
    return parameters - lr * direction, buffer


def _adam(recipe: Recipe, state: State, gradient: Tensor, step: int, lr: float) -> State:
    return _moments(recipe, state, gradient + recipe.weight_decay * state[0], step, lr)


def _adamw(recipe: Recipe, state: State, gradient: Tensor, step: int, lr: float) -> State:
    decayed = state[0] * (1 - lr * recipe.weight_decay)
    return _moments(recipe, (decayed, *state[1:]), gradient, step, lr)


def _moments(recipe: Recipe, state: State, slope: Tensor, step: int, lr: float) -> State:
    parameters, first, second = state
    beta1, beta2 = recipe.betas
    first = beta1 * first + (1 - beta1) * slope
    second = beta2 * second + (1 - beta2) * slope.square()
    size = (second / (1 - beta2 ** (step + 1)) + TINY).sqrt() + recipe.eps
    return parameters - lr / (1 - beta1 ** (step + 1)) * first / size, first, second


UPDATES: dict[str, Update] = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}
