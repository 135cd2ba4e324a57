"""Adam as momentum gradient descent in scaled coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from whence.algebra import Steps
from whence.checks import require_count
from whence.errors import InputError


@final
@dataclass(frozen=True)
class AdamSteps(Steps):
    """T steps of Adam with a constant second moment, in the coordinates z = P^(-1/2) parameters, P = 1/(sqrt(v) + eps).

    There the step is `buf = beta1 buf + g; z -= lr_t (1 - beta1) / (1 - beta1^(t+1)) buf`: heavy-ball momentum with
    falling rates. Decoupled decay, `z -= lr decay z` beside it, is at a constant learning rate exactly the usual decay
    with momentum beta1 (1 - lr decay): eliminate `buf` from both recurrences, and the bias corrections cancel.

    Attributes:
        nominal_lr: Learning rates as Adam counts them.
        beta1: Decay of Adam's first moment.
    """

    nominal_lr: tuple[float, ...] = ()
    beta1: float = 0.0

    @classmethod
    def following(cls, nominal_lr: tuple[float, ...], beta1: float, decoupled_decay: float = 0.0) -> AdamSteps:
        """The run with these learning rates.

        Raises:
            InputError: Decay at a learning rate that is not constant.
        """
        if decoupled_decay and min(nominal_lr) < max(nominal_lr):
            raise InputError("Decoupled decay is followed at a constant learning rate only; this one changes.")
        rates = tuple(lr * (1 - beta1) / (1 - beta1 ** (t + 1)) for t, lr in enumerate(nominal_lr))
        momentum = beta1 * (1 - max(nominal_lr) * decoupled_decay)
        return cls(rates, momentum, False, decoupled_decay, nominal_lr, beta1)

    @property
    def max_lr(self) -> float:
        """The largest learning rate as Adam counts it."""
        return max(self.nominal_lr)

    @property
    def stability_bound(self) -> float:
        """That of heavy-ball momentum with lr (1 - beta1): the first steps, whose rates are larger, are few."""
        return 2 * (1 + self.momentum) / (1 - self.beta1)

    @property
    def time(self) -> float:
        """Sum of the learning rates: with the bias correction, momentum neither lags nor leads."""
        return math.fsum(self.nominal_lr)

    def first(self, n: int) -> AdamSteps:
        """The first `n` steps of this run."""
        require_count(n, "n")
        if n > self.n_steps:
            raise InputError(f"`n` must be at most the {self.n_steps} steps of this run; got {n}.")
        return AdamSteps(self.lr[:n], self.momentum, False, self.weight_decay, self.nominal_lr[:n], self.beta1)

    def to_dict(self) -> dict[str, object]:
        """JSON-able settings, in Adam's terms; `from_dict` does not read them."""
        same = min(self.nominal_lr) == max(self.nominal_lr)
        lr = {"lr": self.nominal_lr[0], "n_steps": self.n_steps} if same else {"lr": list(self.nominal_lr)}
        return {**lr, "beta1": self.beta1, "decoupled_weight_decay": self.weight_decay}
