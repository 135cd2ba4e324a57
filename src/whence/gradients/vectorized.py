"""Fast path: `vmap` of a vector-Jacobian product over the examples of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vjp, vmap

from whence.batches import Batch, flatten
from whence.task import Task


def pull_back_vmap(
    task: Task, trainable: dict[str, Tensor], fixed: dict[str, Tensor], batch: Batch, cotangents: Tensor
) -> Tensor:
    """`J_i^T v` for every example i and every cotangent v of it; same arguments and result as `pull_back_loop`.

    Cost:
        One vectorised forward and r vectorised backward passes of the chunk; memory b * r * n_params and the
        activations of b examples.
    """
    leaves, rebuild = flatten(batch)

    def one_example(cotangent: Tensor, *tensors: Tensor) -> Tensor:
        example = rebuild([x.unsqueeze(0) for x in tensors])

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            return task.call({**parameters, **fixed}, example).flatten()

        pull = vjp(outputs, trainable)[1]
        (grads,) = vmap(pull)(cotangent)
        return task.layout.flatten(grads, n_leading=1)

    rows: Tensor = vmap(one_example)(cotangents, *leaves)
    return rows


def push_forward(
    task: Task, trainable: dict[str, Tensor], fixed: dict[str, Tensor], batch: Batch, direction: Tensor
) -> Tensor:
    """`J_i d`: how the outputs of each example move when the parameters move along `direction` (n_params,).

    Returns:
        Same shape as the outputs, (b, ...).
    Cost:
        One forward-mode pass, about three forward passes.
    """

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        return task.call({**parameters, **fixed}, batch)

    tangents = task.layout.unflatten(direction)
    moved: Tensor = torch.func.jvp(outputs, (trainable,), (tangents,))[1]
    return moved
