"""TracIn: gradient products at checkpoints of the training run, summed with its learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from whence.gradients import loss_products
from whence.methods.checkpoints import Checkpoint, Models, rates_of
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole
from whence.progress import stage


def tracin(
    inputs: Inputs, *, checkpoints: Sequence[Checkpoint], learning_rates: float | Sequence[float] = 1.0
) -> Result:
    """o_q sum_c lr_c a_q(theta_c) . b_i(theta_c) over checkpoints c: first order along the path of training.

    It only ranks: between checkpoints there are many steps, and the batches they were made on are not known. With the
    final model as the only checkpoint it is grad_dot times the learning rate. Measure and loss are those of the task,
    and its model is left as it is.

    Args:
        inputs: Task, train set, queries; weights of parameter groups apply at every checkpoint.
        checkpoints: State dicts of the task's model, or files of them (`.safetensors`, `.pt`), read one at a time. A
            cast of half precision, and a prefix of a wrapped model, are noted in the settings.
        learning_rates: One for all, or one for each checkpoint: that of the steps around it.
    Raises:
        DataError: A file cannot be read or does not fit the model; before any gradient.
        InputError: No checkpoint, a state dict that does not fit the model, or another number of learning rates; before
            any gradient.
        NonFiniteError: A checkpoint holds NaN or infinity.
    Cost:
        For each checkpoint one pass of per-example gradients, in blocks; memory one copy of the model and all scores.
    Reference:
        Pruthi et al. (2020), arXiv:2002.08484, eq. (1), for checkpoints.
    """
    models = Models.of(inputs, [] if checkpoints is None else checkpoints)
    rates = rates_of(learning_rates, len(models))
    total = torch.zeros(0)
    with stage("checkpoints", total=len(models), unit="checkpoints") as progress:
        for k, (task, rate) in enumerate(zip(models, rates, strict=True)):
            directions = rate * models.query_gradients(task)
            values = torch.cat([products for _, products in loss_products(task, inputs.train, directions)], 1)
            total = values if k == 0 else total + values
            progress.advance()
    settings: dict[str, Any] = {"checkpoints": models.marks, "learning_rates": rates}
    return whole(inputs.orientation * total, settings)


TRACIN = Preset(
    "tracin",
    "gradient products summed over checkpoints of training",
    tracin,
    train_side="loss gradients at checkpoints",
)
