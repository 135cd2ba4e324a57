"""One step of training read backwards: how what is measured later depends on the state before, and on each loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from whence.checks import look_up
from whence.training.sampler import StepBatch
from whence.training.trajectory import Trajectory
from whence.training.updates import State, advance

Products = Callable[[Trajectory, Tensor, StepBatch, Tensor], tuple[Tensor, Tensor]]
ROWS_MEMORY = 2**28  # bytes of flat vectors that the rows of one product may take
COPIES = 6  # flat vectors of one row that live at once


def pull_back_step(
    run: Trajectory, state: State, step: StepBatch, adjoint: State, *, products: str = "forward"
) -> tuple[State, Tensor]:
    """Adjoints before a step from those after it.

    Args:
        run: The trajectory.
        state: Before the step.
        step: Its batch.
        adjoint: For m measures, their derivatives in every part of the state after the step, (m, n_params) each.
        products: A name in `PRODUCTS`.
    Returns:
        The derivatives in the state before the step, and (m, b): in the weight of each example of the step's batch.
    Cost:
        m Hessian-vector products of the batch, all at once.
    """
    lr = run.recipe.lr_at(step.step, run.n_train)
    gradient = run.gradient(state[0], step)
    pull = vjp(lambda *parts: advance(run.recipe, parts[:-1], parts[-1], step.step, lr), *state, gradient)[1]
    *before, along = vmap(pull)(adjoint)
    find = look_up(PRODUCTS, products, "way to compute products")
    size = max(1, ROWS_MEMORY // (COPIES * along.shape[1] * along.element_size()))
    blocks = [find(run, state[0], step, rows) for rows in along.split(size)]
    before[0] = before[0] + torch.cat([curved for curved, _ in blocks])
    return tuple(before), torch.cat([by_example for _, by_example in blocks])


def forward_products(run: Trajectory, parameters: Tensor, step: StepBatch, along: Tensor) -> tuple[Tensor, Tensor]:
    """The Hessian of a step's loss times m vectors (m, n_params), and each example's share of gradient . vector (m, b).

    The derivative of the gradient along each vector, and of the losses, by forward mode: the forward pass at the
    parameters themselves is shared by all vectors.
    """
    batch, weights = run.batch(step)

    def loss(p: Tensor) -> tuple[Tensor, Tensor]:
        losses = weights * run.losses(p, batch, step.step)
        return losses.sum(), losses

    def one(vector: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = jvp(grad(loss, has_aux=True), (parameters,), (vector,))[1]
        return found

    return vmap(one)(along)


def reverse_products(run: Trajectory, parameters: Tensor, step: StepBatch, along: Tensor) -> tuple[Tensor, Tensor]:
    """The same by reverse mode twice, vector by vector and example by example: slow, and works for every model."""
    batch, weights = run.batch(step)
    leaf = parameters.detach().requires_grad_()
    losses = weights * run.losses(leaf, batch, step.step)
    rows = torch.stack([torch.autograd.grad(x, leaf, create_graph=True)[0] for x in losses])
    by_example = along @ rows.T
    curved = [torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in by_example.sum(1)]
    return torch.stack(curved), by_example.detach()


PRODUCTS: dict[str, Products] = {"forward": forward_products, "reverse": reverse_products}
