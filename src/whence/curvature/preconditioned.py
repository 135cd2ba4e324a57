"""The diagonal by which Adam multiplies its gradients, as a final model and its train set foretell it."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import NumericalError
from whence.gradients import loss_gradients
from whence.task import Task


def second_moment(task: Task, train: Examples, batch_size: int) -> Tensor:
    """E[g_B^2] of a mini-batch gradient at the final parameters, one number a parameter; (n_params,) float64.

    A batch of b examples drawn without replacement has E[g_B^2] = gbar^2 + c (E[g_i^2] - gbar^2) with
    c = (n - b) / (b (n - 1)), averaged over the batches of an epoch, the last of which may be smaller.

    Cost:
        One pass of per-example gradients.
    """
    n, n_params = len(train), task.layout.n_params
    total = torch.zeros(n_params, dtype=torch.float64, device=task.device)
    squares = torch.zeros_like(total)
    for _, rows in loss_gradients(task, train):
        wide = rows.double()
        total += wide.sum(0)
        squares += wide.square().sum(0)
    share = variance_share(n, batch_size)
    # As a mean with two positive weights: E[g_i^2] - gbar^2 would cancel.
    return (1 - share) * (total / n).square() + share * squares / n


def variance_share(n_train: int, batch_size: int) -> float:
    """Variance of a mini-batch gradient over that of one example's, the mean over an epoch's batches; in [0, 1]."""
    if batch_size >= n_train:
        return 0.0
    sizes = [batch_size] * (n_train // batch_size)
    rest = n_train % batch_size
    sizes += [rest] if rest else []
    return sum((n_train - b) / (b * (n_train - 1)) for b in sizes) / len(sizes)


def adam_preconditioner(task: Task, train: Examples, batch_size: int, eps: float) -> Tensor:
    """P = 1 / (sqrt(v) + eps) with v the second moment of mini-batch gradients at the final parameters.

    This is what a fresh Adam divides by once its average has settled, if gradients stay the size they are. It is an
    approximation in three ways: v follows the gradients as they change along the run; in the first 1 / (1 - beta2)
    steps it is the mean of few squares; and that v would differ without the example is neglected.

    Args:
        task: The final model, in eval mode.
        train: The train set.
        batch_size: Examples a step.
        eps: Of Adam.
    Returns:
        Diagonal of P (n_params,), float64, positive. Where no example has a gradient it is 1 / eps, as in Adam.
    Raises:
        NumericalError: No example has a gradient in some parameter, and `eps` is 0.
    Reference:
        Kingma and Ba (2015), arXiv:1412.6980, algorithm 1.
    """
    size = second_moment(task, train, batch_size).sqrt() + eps
    dead = (size == 0).nonzero().flatten()
    if len(dead):
        place = torch.tensor(task.layout.offsets[1:])
        name = task.layout.names[int(torch.searchsorted(place, dead[0].cpu(), right=True))]
        raise NumericalError(
            f"{len(dead)} parameters, the first in {name!r}, have no gradient on any train example, and with eps=0 "
            "Adam divides by zero there. Use a positive `eps`."
        )
    return 1 / size
