"""Planted label noise: wrong labels whose places are known, for judging whether a method finds them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.batches import Batch
from whence.checks import require_count
from whence.data.examples import Examples
from whence.errors import DataError, InputError, ShapeError
from whence.rng import torch_generator

Target = int | str


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Examples with planted wrong labels, and the truth about them.

    Args:
        examples: The same ids and inputs, some labels wrong.
        flipped: bool (n,), True where the label was changed.
        clean: (n,), the labels before.
    """

    examples: Examples
    flipped: Tensor
    clean: Tensor


def plant_label_noise(
    examples: Examples, *, fraction: float, n_classes: int, seed: int, target: Target = 1
) -> NoisyLabels:
    """Give `round(fraction * n)` examples, drawn at random, a different label, each other class equally likely.

    Args:
        examples: Examples with integer labels in 0..n_classes-1.
        fraction: Share of labels to make wrong, in [0, 1].
        n_classes: Number of classes, 2 at least.
        seed: Root of the draw.
        target: Where the labels are in a batch: position in a tuple, key of a dict or field of a dataclass.
    Raises:
        DataError: The batch has no such part, or its values are no labels.
        InputError: `fraction` or `n_classes` is out of range.
    """
    require_count(n_classes, "n_classes", minimum=2)
    if not 0 <= fraction <= 1:
        raise InputError(f"`fraction` must lie in [0, 1]; got {fraction!r}.")
    clean = _labels(examples.all(), target, n_classes)
    generator = torch_generator(seed, "label_noise")
    rows = torch.randperm(len(examples), generator=generator)[: round(fraction * len(examples))]
    shift = torch.randint(1, n_classes, rows.shape, generator=generator)  # never 0: the class always changes
    rows, shift = rows.to(clean.device), shift.to(clean.device)
    noisy, flipped = clean.clone(), torch.zeros_like(clean, dtype=torch.bool)
    # Widened first: in uint8, 255 + 1 would be 0.
    noisy[rows] = ((clean[rows].long() + shift) % n_classes).to(clean)
    flipped[rows] = True
    return NoisyLabels(examples.replace(_with_part(examples.all(), target, noisy)), flipped, clean.clone())


def _labels(batch: Batch, target: Target, n_classes: int) -> Tensor:
    labels = _part(batch, target)
    if not isinstance(labels, Tensor) or labels.ndim != 1:
        found = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ShapeError(f"The labels (`target={target!r}`) must be one tensor (n,); got {found}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"The labels (`target={target!r}`) must be integers; got {labels.dtype}.")
    if n_classes - 1 > torch.iinfo(labels.dtype).max:
        raise DataError(f"Labels of type {labels.dtype} cannot hold {n_classes} classes. Use int64 labels.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_classes:
        raise DataError(f"Labels must lie in 0..{n_classes - 1} for `n_classes={n_classes}`; found {low}..{high}.")
    return labels


def _part(batch: Batch, target: Target) -> Batch:
    try:
        if dataclasses.is_dataclass(batch) and isinstance(target, str):
            return getattr(batch, target)
        return batch[target]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"A batch of type {type(batch).__name__} has no part `target={target!r}`. "
            "Name the position, key or field of its labels."
        ) from error


def _with_part(batch: Batch, target: Target, part: Tensor) -> Batch:
    """The same batch with another tensor as its part `target`."""
    if isinstance(batch, dict):
        return {**batch, target: part}
    if isinstance(batch, tuple):
        parts = list(batch)
        parts[int(target)] = part
        return batch._make(parts) if hasattr(batch, "_make") else tuple(parts)
    return dataclasses.replace(batch, **{str(target): part})
