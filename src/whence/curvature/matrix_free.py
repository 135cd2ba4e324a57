"""Products with C that never form a Jacobian row: forward along the direction, through the roots, and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

from whence.batches import cast_batch
from whence.curvature.linearized import LinearizedTrain
from whence.gradients import can_vmap
from whence.task import model_state

EXAMPLES, DIRECTIONS = 512, 32  # at once
PASSES = (
    4  # forward passes that one direction costs: a tangent, and a pull-back of about twice a forward pass, and slack
)


def prefers_matrix_free(linear: LinearizedTrain) -> bool:
    """Whether products without rows take fewer operations, or rows do not fit the memory.

    A row costs 4 n_params operations for each direction; a pass through a network that uses a parameter at s positions
    about 2 s n_params. So rows win where there are few of them, and in convolutions.
    """
    if not can_vmap(linear.task, linear.train):
        return False
    return not linear.fits_memory or PASSES * _forward_operations(linear) < 4 * linear.n_roots * linear.n_params


def matrix_free_product(linear: LinearizedTrain, rows: Tensor, positions: Tensor | None = None) -> Tensor:
    """C applied to rows (m, n_params): the mean over examples i of J_i^T H_i S_i S_i^T H_i^T J_i.

    Args:
        linear: The linearised train set; its scale applies.
        rows: In any floating precision, which the passes have too.
        positions: (b,), of the examples that the mean is over, with repetitions; default all.
    Cost:
        One forward pass of the examples, and for each direction one forward-mode and one backward pass.
    """
    wanted = torch.arange(linear.n_train) if positions is None else positions.cpu()
    scale = None if linear.scale is None else linear.scale.to(rows.dtype)
    directions = rows if scale is None else rows * scale
    parts = [_summed(linear, some, wanted) for some in torch.split(directions, DIRECTIONS)]
    total = torch.cat(parts) / len(wanted)
    return total if scale is None else total * scale


def _summed(linear: LinearizedTrain, directions: Tensor, positions: Tensor) -> Tensor:
    task, dtype = linear.task, directions.dtype
    trainable, fixed = model_state(task.model, dtype)
    tangents = task.layout.unflatten(directions)
    total = torch.zeros_like(directions)
    for part in torch.split(positions, EXAMPLES):
        batch = cast_batch(linear.train.batch(part), dtype, task.device)
        at = part.to(linear.roots.device)
        basis = linear.basis if linear.basis.ndim == 2 else linear.basis[at]
        factor = (basis @ linear.roots[at]).to(task.device, dtype)  # (b, c, k)

        def outputs(parameters: dict[str, Tensor], batch=batch) -> Tensor:  # type: ignore[no-untyped-def]
            return task.call({**parameters, **fixed}, batch).flatten(1)

        pull = vjp(outputs, trainable)[1]

        def product(tangent: dict[str, Tensor], outputs=outputs, pull=pull, factor=factor) -> Tensor:  # type: ignore[no-untyped-def]
            moved = jvp(outputs, (trainable,), (tangent,))[1]  # (b, c)
            curved = torch.einsum("bck,bdk,bd->bc", factor, factor, moved)
            return task.layout.flatten(pull(curved)[0])

        total += vmap(product)(tangents)
    return total


def _forward_operations(linear: LinearizedTrain) -> float:
    """Floating-point operations of one forward pass of one example."""
    task = linear.task
    trainable, fixed = model_state(task.model, linear.dtype)
    one = cast_batch(linear.train.batch(range(1)), linear.dtype, task.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.call({**trainable, **fixed}, one)
    return float(counter.get_total_flops())
