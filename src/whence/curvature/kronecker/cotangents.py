"""What is sent back through the model for each kind of Fisher matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whence.batches import Batch
from whence.curvature.drawn_labels import drawn_labels, slopes_at_labels
from whence.data import Examples
from whence.gradients import Cotangents, n_outputs, slope_of
from whence.task import Task
from whence.task.losses import hessian_root, output_basis, require_few_outputs


def exact(task: Task, train: Examples, seed: int) -> Cotangents:
    """Roots of the output Hessian: the Gauss-Newton matrix itself, which for a likelihood is the Fisher matrix.

    As many cotangents as outputs, one less for cross-entropy.

    Raises:
        UnsupportedError: There are too many outputs, as language models have.
    """
    require_few_outputs(n_outputs(task, train))

    def roots(outputs: Tensor, batch: Batch, part: slice) -> Tensor:
        flat = outputs.flatten(1).double()
        basis = output_basis(task.loss, flat.shape[1], torch.float64, flat.device)
        return hessian_root(task.loss.hessian(flat, batch), basis).transpose(1, 2) @ basis.T

    return roots


def sampled(task: Task, train: Examples, seed: int) -> Cotangents:
    """Slopes at one label drawn for each example, of a language model for each token; see `drawn_labels`.

    Cost:
        One forward pass, in float64.
    """
    return slopes_at_labels(task, drawn_labels(task, train, seed=seed))


def empirical(task: Task, train: Examples, seed: int) -> Cotangents:
    """Slopes at the given labels; no Fisher matrix, though often called one (Kunstner et al., arXiv:1905.12558)."""
    return slope_of(task.loss)


FISHERS: dict[str, Callable[[Task, Examples, int], Cotangents]] = {
    "exact": exact,
    "sampled": sampled,
    "empirical": empirical,
}
