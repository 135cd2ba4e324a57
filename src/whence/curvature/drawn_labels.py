"""Labels drawn from the model's own predictive distribution, for Fisher matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.batches import Batch
from whence.data import Examples
from whence.gradients import Cotangents, output_blocks
from whence.rng import torch_generator
from whence.task import Task


def drawn_labels(task: Task, train: Examples, *, n_samples: int = 1, seed: int = 0) -> Tensor:
    """Labels for a whole train set, drawn block by block.

    Each sample has a stream of its own, which `seed` and its number decide, and takes one label for every example (of
    a language model, for every token) in order. The same model, train set and seed give the same labels to whatever is
    computed from them; blocks of the train set have no part in it.

    Args:
        task: Its loss is cross-entropy, squared error, or another with `sample_labels`.
        train: The train set.
        n_samples: Labels for each example.
        seed: Of the streams.
    Returns:
        (n_samples, n, ...), of the shape of labels, on the task's device.
    Raises:
        UnsupportedError: The loss is no known likelihood.
    Cost:
        One forward pass, in float64.
    """
    generators = [torch_generator(seed, "fisher labels", k) for k in range(n_samples)]
    blocks = [
        torch.stack([task.loss.sample_labels(outputs, batch, generator) for generator in generators])
        for _, outputs, batch in output_blocks(task, train, dtype=torch.float64)
    ]
    return torch.cat(blocks, 1)


def slopes_at_labels(task: Task, labels: Tensor) -> Cotangents:
    """Slopes of the loss in the outputs, (b, n_samples, c), at `drawn_labels`."""

    def cotangents(outputs: Tensor, batch: Batch, part: slice) -> Tensor:
        slopes = [task.loss.slopes_at(outputs, batch, one[part]).flatten(1) for one in labels]
        return torch.stack(slopes, 1)

    return cotangents
