"""Which function of the model's outputs the loss is a function of, as TRAK needs it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import UnsupportedError
from whence.gradients import outputs_of, slopes
from whence.task import CrossEntropy, SquaredError, Task
from whence.task.losses import logit_margin


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """f of every train example, by its slope: r numbers for each example, functions of its c model outputs.

    Attributes:
        name: "margin" or "output".
        cotangents: (n, r, c), d f / d outputs.
        loss_slopes: (n, r), d loss / d f.
    """

    name: str
    cotangents: Tensor
    loss_slopes: Tensor

    @classmethod
    def of(cls, task: Task, train: Examples) -> ModelOutput:
        """The output function that the task's loss is a function of.

        Raises:
            UnsupportedError: There is none.
        """
        now = outputs_of(task, train, dtype=torch.float64)
        if isinstance(task.loss, CrossEntropy):
            target = task.loss.target
            margins = slopes(lambda z, batch: logit_margin(z, target(batch)), now, train)
            batch = train.all()
            labels = target(batch).to(now.device)
            # loss = log(1 + exp(-margin)): its slope is -(1 - p), without the difference that rounds to 0.
            return cls("margin", margins[:, None], -torch.sigmoid(-logit_margin(now, labels))[:, None])
        slope = slopes(task.loss, now, train)
        n_outputs = slope.shape[1]
        if n_outputs == 1 or isinstance(task.loss, SquaredError):
            each = torch.eye(n_outputs, dtype=now.dtype, device=now.device).expand(len(train), -1, -1)
            return cls("output", each, slope)
        raise UnsupportedError(
            "trak needs a model output that the loss is a function of: the margin for cross-entropy, or the outputs "
            f"for squared error or a model with one output. For the loss {task.loss.name!r} of {n_outputs} outputs "
            "none is known. Build the task with Task.classification or Task.regression, or use grad_dot, or "
            "influence_gn with `output_hessian=` in the task."
        )

    @property
    def n_rows(self) -> int:
        """Rows of Phi."""
        return self.loss_slopes.numel()
