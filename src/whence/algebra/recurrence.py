"""The optimizer as a scalar recurrence per eigenvalue: exact for any `Steps`, one pass over the steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from whence.algebra.steps import Steps


class ScalarRun:
    """Displacement d of one coordinate of a quadratic with curvature s, while an optimizer runs.

    The gradient of step t is `(s + weight_decay) * d - force`; d and the momentum buffer start at 0. Elementwise.
    """

    def __init__(self, s: Tensor, steps: Steps) -> None:
        self._s = s + steps.weight_decay
        self._steps = steps
        self.displacement = torch.zeros_like(self._s)
        self._buffer = torch.zeros_like(self._s)

    def step(self, lr: float, force: Tensor | float) -> None:
        """One optimizer step under `force`, a tensor that broadcasts to the shape of the run, or a number."""
        gradient = self._s * self.displacement - force
        self._buffer = self._steps.momentum * self._buffer + gradient
        direction = gradient + self._steps.momentum * self._buffer if self._steps.nesterov else self._buffer
        self.displacement = self.displacement - lr * direction


def unit_response(s: Tensor, steps: Steps) -> Tensor:
    """f_T(s): displacement after all steps under a constant unit force. float64, shape of `s`."""
    run = ScalarRun(s, steps)
    for lr in steps.lr:
        run.step(lr, 1.0)
    return run.displacement


def unit_path(s: Tensor, steps: Steps) -> Iterator[Tensor]:
    """f_0(s), f_1(s), ..., f_{T-1}(s): the displacement that each step starts from."""
    run = ScalarRun(s, steps)
    for lr in steps.lr:
        yield run.displacement
        run.step(lr, 1.0)


def forced_response(s: Tensor, s_force: Tensor, steps: Steps) -> Tensor:
    """Displacement at eigenvalue `s` under the force f_t(`s_force`) at step t.

    Equals `(f_T(s_force) - f_T(s)) / (s - s_force)` without its cancellation, and is symmetric. Shapes broadcast.
    """
    run = ScalarRun(s + torch.zeros_like(s_force), steps)  # the shape of the pairs
    for lr, force in zip(steps.lr, unit_path(s_force, steps), strict=True):
        run.step(lr, force)
    return run.displacement


def impulse_responses(s: Tensor, steps: Steps) -> Iterator[Tensor]:
    """Effect on the last displacement of a unit force at step T-1, then T-2, ..., 0 (last step first).

    The adjoint of `ScalarRun.step`, run backwards in time; each is a tensor of the shape of `s`.
    """
    s = s + steps.weight_decay
    by_displacement, by_buffer = torch.ones_like(s), torch.zeros_like(s)
    share = steps.momentum if steps.nesterov else 1.0  # of the new buffer in the direction
    for lr in reversed(steps.lr):
        by_buffer = by_buffer - lr * share * by_displacement
        by_gradient = by_buffer - lr * by_displacement if steps.nesterov else by_buffer
        yield -by_gradient
        by_displacement = by_displacement + s * by_gradient
        by_buffer = steps.momentum * by_buffer
