"""The Hessian of the train loss itself, for models small enough to hold it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from whence.algebra import PrimalSpectrum
from whence.curvature.gauss_newton import LARGEST_DENSE
from whence.data import Examples
from whence.errors import UnsupportedError
from whence.gradients import cast_batch
from whence.task import Task, model_state

BATCH = 512  # train examples differentiated at once
VECTORS = 64  # columns of the Hessian computed at once


def hessian_matrix(task: Task, train: Examples) -> Tensor:
    """Hessian of the mean train loss at the final parameters, (n_params, n_params) float64, symmetric, indefinite.

    Raises:
        UnsupportedError: More than 6,000 parameters.
    Cost:
        n_params Hessian-vector products, each a pass over the train set.
    """
    n_params = task.layout.n_params
    if n_params > LARGEST_DENSE:
        raise UnsupportedError(
            f"influence_hessian holds the whole Hessian: {n_params} parameters are more than {LARGEST_DENSE}. "
            "Use influence_gn, influence_cg or horizon_ahead."
        )
    trainable, fixed = model_state(task.model, torch.float64)
    matrix = torch.zeros(n_params, n_params, dtype=torch.float64, device=task.device)
    identity = torch.eye(n_params, dtype=torch.float64, device=task.device)
    for _, rows in train.batches(BATCH):
        batch = cast_batch(rows, torch.float64, task.device)

        def loss(parameters: dict[str, Tensor], batch: object = batch) -> Tensor:
            return task.loss(task.call({**parameters, **fixed}, batch), batch).sum()

        def column(direction: Tensor, loss: object = loss) -> Tensor:
            tangent = task.layout.unflatten(direction)
            moved: dict[str, Tensor] = jvp(grad(loss), (trainable,), (tangent,))[1]  # type: ignore[arg-type]
            return task.layout.flatten(moved)

        for first in range(0, n_params, VECTORS):
            matrix[first : first + VECTORS] += vmap(column)(identity[first : first + VECTORS])
    matrix /= len(train)
    return (matrix + matrix.T) / 2


def fit_hessian(task: Task, train: Examples) -> PrimalSpectrum:
    """Eigenvalues and eigenvectors of the Hessian of the mean train loss; see `hessian_matrix` for limits and cost."""
    return PrimalSpectrum.from_matrix(hessian_matrix(task, train))
