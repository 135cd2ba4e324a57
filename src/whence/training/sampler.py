"""Which examples each step of each run sees.

The reference's order: one `torch.Generator` per run, seeded with the seed, and torch's `RandomSampler` draws **two**
permutations from it per epoch, of which the first is used. A run that leaves examples out takes the same permutation,
deletes them, and cuts batches from what is left: the same order, not the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.training.recipe import Recipe


def epoch_orders(n_train: int, seed: int) -> Iterator[Tensor]:
    """Permutations (n_train,) of the epochs of one seed, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n_train, generator=generator)
        torch.randperm(n_train, generator=generator)  # RandomSampler draws one more, for an empty remainder
        yield order


@dataclass(frozen=True)
class StepBatch:
    """What the runs of a chunk see in one step.

    Attributes:
        step: Number of the step, counted from 0 as in a run on all data.
        indices: (n_runs, b) train positions.
        weights: (n_runs, b) float64: the loss of a run is the weighted sum; padding has weight 0.
    """

    step: int
    indices: Tensor
    weights: Tensor


def batches_per_epoch(n_train: int, n_left_out: int, recipe: Recipe) -> int:
    """Batches one epoch gives a run that lacks `n_left_out` examples."""
    missing = n_left_out if recipe.sampler == "same_order" else 0
    return recipe.steps_per_epoch(n_train - missing)


def step_batches(
    n_train: int, left_out: Sequence[Sequence[int]], recipe: Recipe, seed: int, n_steps: int
) -> Iterator[StepBatch]:
    """The batches of several runs of one seed, step by step.

    All runs must have the same number of batches in an epoch (`batches_per_epoch`): a step in which the shortened
    epochs have no batch is left out for all of them.

    Args:
        n_train: Size of the train set.
        left_out: For each run, the positions it lacks; empty for the run on all data.
        recipe: Batch size and sampler.
        seed: Seed of the order.
        n_steps: Where to stop, in steps of a run on all data.
    """
    per_epoch = recipe.steps_per_epoch(n_train)
    build = _deleted if recipe.sampler == "same_order" else _down_weighted
    for epoch, order in enumerate(epoch_orders(n_train, seed)):
        first = epoch * per_epoch
        for k, (indices, weights) in enumerate(build(order, left_out, recipe.batch_size)):
            if first + k >= n_steps:
                return
            yield StepBatch(first + k, indices, weights)
        if first + per_epoch >= n_steps:
            return


def _deleted(order: Tensor, left_out: Sequence[Sequence[int]], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    n_runs, n = len(left_out), order.shape[0]
    place = torch.empty_like(order)
    place[order] = torch.arange(n)
    kept = torch.ones(n_runs, n, dtype=torch.bool)
    for r, indices in enumerate(left_out):
        kept[r, place[torch.as_tensor(list(indices), dtype=torch.int64)]] = False
    counts = kept.sum(1)
    longest = int(counts.max())
    # Stable sort by "deleted": each run's remaining order comes first, what it lacks goes to the end as padding.
    positions = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    runs = order[positions]
    real = torch.arange(longest) < counts[:, None]
    # Padding has weight 0, but 0 times an infinite loss is NaN: repeat an example the run does have.
    runs = torch.where(real, runs, runs[:, :1])
    for start in range(0, longest, batch_size):
        valid = real[:, start : start + batch_size].double()
        yield runs[:, start : start + batch_size], valid / valid.sum(1, keepdim=True)


def _down_weighted(
    order: Tensor, left_out: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    n_runs, n = len(left_out), order.shape[0]
    width = max(len(indices) for indices in left_out)
    extra = torch.zeros(n_runs, width, dtype=torch.int64)
    extra_weights = torch.zeros(n_runs, width, dtype=torch.float64)
    for r, indices in enumerate(left_out):
        extra[r, : len(indices)] = torch.as_tensor(list(indices), dtype=torch.int64)
        extra_weights[r, : len(indices)] = -1.0 / n
    for start in range(0, n, batch_size):
        batch = order[start : start + batch_size].expand(n_runs, -1)
        mean = torch.full(batch.shape, 1.0 / batch.shape[1], dtype=torch.float64)
        yield torch.cat([batch, extra], 1), torch.cat([mean, extra_weights], 1)
