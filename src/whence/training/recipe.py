"""Recipe: how a model is trained on, in one object that training, filters and audits all read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whence.algebra import Steps
from whence.checks import look_up, require_count, require_positive
from whence.errors import InputError, UnsupportedError
from whence.training.preconditioner import AdamSteps
from whence.training.schedules import SCHEDULES

PointUnit = Literal["epochs", "steps"]


@dataclass(frozen=True)
class Recipe:
    """Optimizer, learning rate and schedule, batches and amount of training.

    Args:
        lr: Learning rate.
        batch_size: Examples per step; the loss of a step is their mean.
        epochs: Amount of training in passes over the train set; give this or `steps`.
        steps: Amount of training in optimizer steps.
        optimizer: "sgd", "adam" or "adamw", with the meaning of `torch.optim`.
        momentum: Of SGD.
        nesterov: Of SGD.
        weight_decay: As in `torch.optim`: added to the gradient, or decoupled for "adamw".
        betas: Of Adam and AdamW.
        eps: Of Adam and AdamW.
        clip_norm: Largest norm of a step's gradient, over all parameters of one run; None for no clipping.
        schedule: "constant", "linear" or "cosine" decay to zero at the end of the amount.
        warmup_steps: Steps over which the learning rate first rises linearly.
        sampler: How an example is left out. "same_order": batches are cut from the same permutation with the example
            deleted. "down_weight": every step's loss lacks 1/n of the example's loss, batches stay the same.
        dropout: Train with the model's `nn.Dropout` layers active.
    Raises:
        InputError: A value is out of range, or both or neither of `epochs` and `steps` are given.
    """

    lr: float
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None
    schedule: str = "constant"
    warmup_steps: int = 0
    sampler: Literal["same_order", "down_weight"] = "same_order"
    dropout: bool = True

    def __post_init__(self) -> None:
        require_positive(self.lr, "lr")
        require_count(self.batch_size, "batch_size")
        require_count(self.warmup_steps, "warmup_steps", minimum=0)
        look_up(OPTIMIZERS, self.optimizer, "optimizer")
        look_up(SCHEDULES, self.schedule, "schedule")
        look_up({"same_order": 0, "down_weight": 0}, self.sampler, "sampler")
        if (self.epochs is None) == (self.steps is None):
            raise InputError(
                f"A recipe needs either `epochs` or `steps`; got epochs={self.epochs}, steps={self.steps}."
            )
        require_count(self.amount, self.unit)
        if self.clip_norm is not None:
            require_positive(self.clip_norm, "clip_norm")
        for name, value in (("momentum", self.momentum), ("betas[0]", self.betas[0]), ("betas[1]", self.betas[1])):
            if not 0 <= value < 1:
                raise InputError(f"`{name}` must be in [0, 1); got {value!r}.")
        for name, value in (("weight_decay", self.weight_decay), ("eps", self.eps)):
            if not 0 <= value < math.inf:
                raise InputError(f"`{name}` must be non-negative and finite; got {value!r}.")
        if self.nesterov and self.momentum == 0:
            raise InputError("`nesterov=True` needs a positive `momentum`; got 0.")
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise InputError(f"`momentum` and `nesterov` belong to sgd; the optimizer is {self.optimizer!r}.")

    @property
    def unit(self) -> PointUnit:
        """What the amount is counted in, and therefore points: "epochs" or "steps"."""
        return "steps" if self.epochs is None else "epochs"

    @property
    def amount(self) -> int:
        """How much training, in `unit`."""
        return self.epochs if self.epochs is not None else self.steps  # type: ignore[return-value]

    def steps_per_epoch(self, n_train: int) -> int:
        """Optimizer steps in one pass over `n_train` examples."""
        return math.ceil(n_train / self.batch_size)

    def steps_at(self, point: int, n_train: int) -> int:
        """Optimizer steps after `point` units of training."""
        return point if self.unit == "steps" else point * self.steps_per_epoch(n_train)

    def check_points(self, points: Iterable[int]) -> tuple[int, ...]:
        """Points in increasing order, each within the amount.

        Raises:
            InputError: There is none, or one repeats or lies outside 1 .. amount.
        """
        ordered = tuple(sorted(points))
        bad = [p for p in ordered if isinstance(p, bool) or not isinstance(p, int) or not 1 <= p <= self.amount]
        if not ordered or bad or len(set(ordered)) < len(ordered):
            raise InputError(
                f"`points` must be distinct integers from 1 to the recipe's {self.amount} {self.unit}; got {ordered}."
            )
        return ordered

    def lr_at(self, step: int, n_train: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        total = self.steps_at(self.amount, n_train)
        return self.lr * SCHEDULES[self.schedule](step, total, self.warmup_steps)

    def dynamics(self, point: int, n_train: int) -> Steps:
        """The steps up to `point` as gradient descent on the whole train set, for a spectral filter.

        Raises:
            UnsupportedError: The optimizer rescales each parameter, so that no function of the curvature's
                eigenvalues describes it; or gradients are clipped.
        """
        if self.clip_norm is not None:
            raise UnsupportedError(
                "A horizon follows plain or momentum SGD and Adam; this recipe has clipped gradients, whose steps no "
                "function of the curvature describes. Use influence_gn or grad_dot, or a recipe without clip_norm."
            )
        if self.rescales:
            raise UnsupportedError(
                f"A filter follows plain or momentum SGD; this recipe has optimizer {self.optimizer!r}, whose steps no "
                "function of the curvature alone describes. Use influence_gn or grad_dot, the methods horizon and "
                "horizon_ahead, which precondition the curvature, or a recipe with optimizer='sgd'."
            )
        return Steps(self._rates(point, n_train), self.momentum, self.nesterov, self.weight_decay)

    @property
    def rescales(self) -> bool:
        """Whether the optimizer divides each parameter's gradient by a size of its own."""
        return self.optimizer != "sgd"

    def scaled_dynamics(self, point: int, n_train: int) -> Steps:
        """As `dynamics`, for Adam in coordinates that its second moment, taken as constant, makes alike.

        Raises:
            UnsupportedError: Gradients are clipped; Adam adds a decay to the gradients (before it scales them); or
                AdamW has a decay and a schedule.
        """
        if not self.rescales or self.clip_norm is not None:
            return self.dynamics(point, n_train)
        if self.weight_decay and self.optimizer == "adam":
            raise UnsupportedError(
                f"A horizon follows Adam without weight decay, or AdamW; this recipe has optimizer 'adam' with "
                f"weight_decay={self.weight_decay}, which it scales like a gradient. Use optimizer='adamw', "
                "influence_gn or grad_dot."
            )
        rates = self._rates(point, n_train)
        if self.weight_decay and min(rates) < max(rates):
            raise UnsupportedError(
                f"A horizon follows AdamW's decay at a constant learning rate only; this recipe has weight_decay="
                f"{self.weight_decay}, schedule {self.schedule!r} and {self.warmup_steps} warm-up steps. Leave out one "
                "of them, or use influence_gn or grad_dot."
            )
        return AdamSteps.following(rates, self.betas[0], self.weight_decay)

    def _rates(self, point: int, n_train: int) -> tuple[float, ...]:
        """Learning rate of every step up to `point`."""
        n_steps = self.steps_at(self.check_points([point])[0], n_train)
        return tuple(self.lr_at(k, n_train) for k in range(n_steps))

    def make_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """A fresh optimizer; every update is elementwise, so stacked replicas are independent runs."""
        return OPTIMIZERS[self.optimizer](self, list(parameters))


def _sgd(recipe: Recipe, parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def _adam(recipe: Recipe, parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True
    )


def _adamw(recipe: Recipe, parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True
    )


OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}
