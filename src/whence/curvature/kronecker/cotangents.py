"""What is sent back through the model for each kind of Fisher matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whence.batches import Batch
from whence.curvature.drawn_labels import drawn_slopes
from whence.data import Examples
from whence.gradients import Cotangents, outputs_of, slope_of
from whence.task import Task
from whence.task.losses import hessian_root, output_basis


def exact(task: Task, train: Examples, seed: int) -> Cotangents:
    """Roots of the output Hessian: the Gauss-Newton matrix itself, which for a likelihood is the Fisher matrix.

    As many cotangents as outputs, one less for cross-entropy.
    """

    def roots(outputs: Tensor, batch: Batch, part: slice) -> Tensor:
        flat = outputs.flatten(1).double()
        basis = output_basis(task.loss, flat.shape[1], torch.float64, flat.device)
        return hessian_root(task.loss.hessian(flat, batch), basis).transpose(1, 2) @ basis.T

    return roots


def sampled(task: Task, train: Examples, seed: int) -> Cotangents:
    """Slopes at one label drawn for each example; see `drawn_slopes`.

    Cost:
        One forward pass, in float64.
    """
    slopes = drawn_slopes(task, outputs_of(task, train, dtype=torch.float64), seed=seed).transpose(1, 2)
    return lambda outputs, batch, part: slopes[part]


def empirical(task: Task, train: Examples, seed: int) -> Cotangents:
    """Slopes at the given labels; no Fisher matrix, though often called one (Kunstner et al., arXiv:1905.12558)."""
    return slope_of(task.loss)


FISHERS: dict[str, Callable[[Task, Examples, int], Cotangents]] = {
    "exact": exact,
    "sampled": sampled,
    "empirical": empirical,
}
