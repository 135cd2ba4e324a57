"""The scalar facts of a run of gradient descent: all that a spectral filter needs to know about an optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from whence.checks import require_count
from whence.errors import ConfigError, InputError


@dataclass(frozen=True)
class Steps:
    """T steps of full-batch gradient descent, with the semantics of `torch.optim.SGD`.

    Step t: `g += weight_decay * p`; `buf = momentum * buf + g` (`buf = g` at the first step); with Nesterov momentum
    the direction is `g + momentum * buf`, otherwise `buf`; `p -= lr[t] * direction`. Buffers start empty.

    Attributes:
        lr: Learning rate of each step, T of them, non-negative and not all zero.
        momentum: In [0, 1).
        nesterov: Needs a positive momentum.
        weight_decay: Added to every eigenvalue of the curvature; non-negative.
    """

    lr: tuple[float, ...]
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", tuple(float(x) for x in self.lr))
        if not self.lr:
            raise InputError("`lr` must have one learning rate for each step; got none.")
        bad = next((x for x in self.lr if not (0 <= x < math.inf)), None)
        if bad is not None or max(self.lr) == 0:
            what = "only zeros" if bad is None else repr(bad)
            raise InputError(f"`lr` must be non-negative, finite and not all zero; got {what}.")
        if not 0 <= self.momentum < 1:
            raise InputError(f"`momentum` must be in [0, 1); got {self.momentum!r}.")
        if self.nesterov and self.momentum == 0:
            raise InputError("`nesterov=True` needs a positive `momentum`; got 0.")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"`weight_decay` must be non-negative and finite; got {self.weight_decay!r}.")

    @classmethod
    def of(
        cls,
        lr: float,
        n_steps: int,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> Steps:
        """`n_steps` steps of one learning rate."""
        require_count(n_steps, "n_steps")
        return cls((float(lr),) * n_steps, momentum, nesterov, weight_decay)

    @property
    def n_steps(self) -> int:
        """T, the number of steps."""
        return len(self.lr)

    @property
    def max_lr(self) -> float:
        """The largest learning rate of the run, the one that decides whether it is stable."""
        return max(self.lr)

    @property
    def constant(self) -> bool:
        """True for plain gradient descent: one learning rate, no momentum. Closed forms exist (decay allowed)."""
        return self.momentum == 0 and min(self.lr) == max(self.lr)

    @property
    def time(self) -> float:
        """Length of the matching gradient flow: the sum of the learning rates over `1 - momentum`."""
        return math.fsum(self.lr) / (1 - self.momentum)

    @property
    def stability_bound(self) -> float:
        """`lr * s` must stay below this for a bounded run at constant learning rate, s being eigenvalue + decay.

        2 for plain gradient descent, 2 (1 + m) with momentum m, 2 (1 + m) / (1 + 2 m) with Nesterov momentum: the
        Jury conditions of the two-term recurrence.
        """
        return 2 * (1 + self.momentum) / (1 + 2 * self.momentum if self.nesterov else 1)

    def first(self, n: int) -> Steps:
        """The first `n` steps of this run."""
        require_count(n, "n")
        if n > self.n_steps:
            raise InputError(f"`n` must be at most the {self.n_steps} steps of this run; got {n}.")
        return Steps(self.lr[:n], self.momentum, self.nesterov, self.weight_decay)

    def to_dict(self) -> dict[str, object]:
        """JSON-able settings, read back by `from_dict`; a constant learning rate is written once."""
        same = min(self.lr) == max(self.lr)
        lr: dict[str, object] = {"lr": self.lr[0], "n_steps": self.n_steps} if same else {"lr": list(self.lr)}
        return {
            **lr,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> Steps:
        """The inverse of `to_dict`."""
        known = {"lr", "n_steps", "momentum", "nesterov", "weight_decay"}
        unknown = sorted(set(settings) - known)
        if unknown or "lr" not in settings:
            raise ConfigError(
                f"Steps need `lr` and know {', '.join(sorted(known))}; got {', '.join(sorted(settings))}."
            )
        facts = dict(settings)
        lr, n_steps = facts.pop("lr"), facts.pop("n_steps", None)
        rates = (lr,) * n_steps if isinstance(n_steps, int) else lr
        if not isinstance(rates, tuple | list):
            raise ConfigError(f"`lr` must be a list, or a number together with `n_steps`; got {lr!r}.")
        return cls(tuple(rates), **facts)  # type: ignore[arg-type]
