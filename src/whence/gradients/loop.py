"""Reference path: one example at a time, one ordinary backward pass per cotangent."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.batches import Batch, take
from whence.task import Task


def pull_back_loop(
    task: Task, trainable: dict[str, Tensor], fixed: dict[str, Tensor], batch: Batch, cotangents: Tensor
) -> Tensor:
    """`J_i^T v` for every example i and every cotangent v of it.

    Args:
        task: How the model is run.
        trainable: Tracked parameters, named as in `task.layout`.
        fixed: Frozen parameters and buffers.
        batch: `b` examples.
        cotangents: (b, r, c), vectors in the space of the c flattened outputs.
    Returns:
        (b, r, n_params).
    Cost:
        b forward passes and b * r backward passes of one example.
    """
    leaves = {name: x.detach().requires_grad_() for name, x in trainable.items()}
    rows: list[dict[str, Tensor]] = []
    for i in range(cotangents.shape[0]):
        outputs = task.call({**leaves, **fixed}, take(batch, torch.tensor([i]))).flatten()
        rows.extend(_one_row(outputs, leaves, v) for v in cotangents[i])
    flat = torch.stack([task.layout.flatten(row) for row in rows])
    return flat.reshape(*cotangents.shape[:2], -1)


def _one_row(outputs: Tensor, leaves: dict[str, Tensor], v: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(outputs, list(leaves.values()), v, retain_graph=True, allow_unused=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(leaves.items(), grads, strict=True)}


def loss_gradients_loop(
    task: Task, trainable: dict[str, Tensor], fixed: dict[str, Tensor], batch: Batch, n: int
) -> Tensor:
    """Gradient of each example's own loss by plain autograd through the loss: the reference for every fast path.

    Returns:
        (n, n_params).
    """
    leaves = {name: x.detach().requires_grad_() for name, x in trainable.items()}
    rows = []
    for i in range(n):
        one = take(batch, torch.tensor([i]))
        loss = task.loss(task.call({**leaves, **fixed}, one), one)
        rows.append(task.layout.flatten(_one_row(loss, leaves, torch.ones_like(loss))))
    return torch.stack(rows)
