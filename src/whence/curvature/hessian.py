"""The Hessian of the train loss itself, for models small enough to hold it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from whence.algebra import PrimalSpectrum
from whence.batches import Batch, cast_batch
from whence.curvature.gauss_newton import LARGEST_DENSE
from whence.data import Examples
from whence.errors import UnsupportedError
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
        matrix += hessian_products(task, trainable, fixed, cast_batch(rows, torch.float64, task.device), identity)
    matrix /= len(train)
    return (matrix + matrix.T) / 2


def hessian_products(
    task: Task,
    trainable: dict[str, Tensor],
    fixed: dict[str, Tensor],
    batch: Batch,
    rows: Tensor,
    *,
    vectorized: bool = True,
) -> Tensor:
    """Hessian of the summed loss of a batch applied to rows (m, n_params), by forward over reverse differentiation.

    Args:
        task: Model and loss.
        trainable, fixed: As `model_state` gives them.
        batch: In the precision of `rows`.
        rows: The vectors.
        vectorized: False for models that `vmap` cannot run: one vector at a time.
    """

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return task.loss(task.call({**parameters, **fixed}, batch), batch).sum()

    def image(direction: Tensor) -> Tensor:
        tangent = task.layout.unflatten(direction)
        moved: dict[str, Tensor] = jvp(grad(loss), (trainable,), (tangent,))[1]
        return task.layout.flatten(moved)

    if vectorized:
        images: Tensor = vmap(image, chunk_size=VECTORS)(rows)
        return images.detach()
    return torch.stack([image(row) for row in rows]).detach()


def fit_hessian(task: Task, train: Examples) -> PrimalSpectrum:
    """Eigenvalues and eigenvectors of the Hessian of the mean train loss; see `hessian_matrix` for limits and cost."""
    return PrimalSpectrum.from_matrix(hessian_matrix(task, train))
