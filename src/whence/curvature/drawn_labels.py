"""Labels drawn from the model's own predictive distribution, for Fisher matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.rng import torch_generator
from whence.task import Task


def drawn_slopes(task: Task, outputs: Tensor, *, n_samples: int = 1, seed: int = 0) -> Tensor:
    """Slopes of the loss, in the outputs, at labels drawn for a whole train set.

    All labels come from one stream, which `seed` decides: first one label for every example in order, then the second
    for every example, and so on. The same outputs and seed give the same labels to whatever is computed from them, and
    blocks of the train set have no part in it.

    Args:
        task: Its loss is cross-entropy, squared error, or another with `sample_slopes`.
        outputs: (n, ...), of every train example.
        n_samples: Labels for each example.
        seed: Of the stream.
    Returns:
        (n, c, n_samples), in the dtype and on the device of `outputs`, with c flattened outputs.
    Raises:
        UnsupportedError: The loss is no known likelihood.
    """
    generator, flat = torch_generator(seed, "fisher labels"), outputs.flatten(1)
    return torch.stack([task.loss.sample_slopes(flat, generator) for _ in range(n_samples)], 2)
