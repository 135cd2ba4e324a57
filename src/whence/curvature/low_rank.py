"""The Hessian of the train loss as an operator, for methods that only take its products."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.algebra import CallbackOperator
from whence.batches import cast_batch
from whence.curvature.hessian import BATCH, hessian_products
from whence.data import Examples
from whence.gradients import can_vmap
from whence.task import Task, model_state, working_dtype


def hessian_operator(task: Task, train: Examples, *, dtype: torch.dtype | None = None) -> CallbackOperator:
    """The Hessian of the mean train loss at the final parameters, applied to rows (m, n_params).

    Args:
        task: The final model, in eval mode.
        train: The train set.
        dtype: Precision; default the model's own.
    Cost:
        An application is a pass over the train set with a Hessian-vector product for each row.
    """
    precision = working_dtype(task.model, dtype)
    trainable, fixed = model_state(task.model, precision)
    vectorized = can_vmap(task, train)

    def product(rows: Tensor) -> Tensor:
        total = torch.zeros_like(rows)
        for _, found in train.batches(BATCH):
            batch = cast_batch(found, precision, task.device)
            total += hessian_products(task, trainable, fixed, batch, rows, vectorized=vectorized)
        return total / len(train)

    return CallbackOperator(task.layout.n_params, product, precision, task.device)
