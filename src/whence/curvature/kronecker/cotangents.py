"""What is sent back through the model for each kind of Fisher matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whence.batches import Batch
from whence.gradients import Cotangents, slope_of
from whence.rng import torch_generator
from whence.task import Task
from whence.task.losses import hessian_root, output_basis


def exact(task: Task, seed: int) -> Cotangents:
    """Roots of the output Hessian: the Gauss-Newton matrix itself, which for a likelihood is the Fisher matrix.

    As many cotangents as outputs, one less for cross-entropy.
    """

    def roots(outputs: Tensor, batch: Batch, part: slice) -> Tensor:
        flat = outputs.flatten(1).double()
        basis = output_basis(task.loss, flat.shape[1], torch.float64, flat.device)
        return hessian_root(task.loss.hessian(flat, batch), basis).transpose(1, 2) @ basis.T

    return roots


def sampled(task: Task, seed: int) -> Cotangents:
    """Slopes at one label drawn from the model's own distribution; each example has a stream of its own."""

    def roots(outputs: Tensor, batch: Batch, part: slice) -> Tensor:
        flat = outputs.flatten(1).double()
        streams = [torch_generator(seed, "fisher labels", i) for i in range(part.start, part.stop)]
        drawn = [task.loss.sample_slopes(one[None], stream) for one, stream in zip(flat, streams, strict=True)]
        return torch.stack(drawn)

    return roots


def empirical(task: Task, seed: int) -> Cotangents:
    """Slopes at the given labels; no Fisher matrix, though often called one (Kunstner et al., arXiv:1905.12558)."""
    return slope_of(task.loss)


FISHERS: dict[str, Callable[[Task, int], Cotangents]] = {"exact": exact, "sampled": sampled, "empirical": empirical}
