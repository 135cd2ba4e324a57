"""What decides the numbers of a sweep, as JSON, so that a store of other settings is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from whence.data import Examples
from whence.errors import InputError
from whence.task import Task, fingerprint, working_dtype
from whence.training import Recipe


def sweep_facts(
    kind: str,
    task: Task,
    train: Examples,
    queries: Examples,
    recipe: Recipe,
    seeds: Sequence[int],
    points: Sequence[int],
) -> dict[str, Any]:
    """Model, data, measure, recipe, seeds and points."""
    return {
        "kind": kind,
        "model": fingerprint(task.model),
        "loss": task.loss.name,
        "measure": task.measure.name,
        "orientation": task.measure.orientation,
        "dtype": str(working_dtype(task.model)).removeprefix("torch."),
        "train": train.fingerprint,
        "queries": queries.fingerprint,
        "recipe": asdict(recipe),
        "seeds": list(seeds),
        "points": list(points),
    }


def parameter_eps(task: Task) -> float:
    """Machine epsilon of the coarsest trainable parameter."""
    return max(torch.finfo(p.dtype).eps for p in task.model.parameters() if p.requires_grad)


def seed_list(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Seeds 0, 1, ... for a count, or the seeds given.

    Raises:
        InputError: There is none, one repeats, or one is negative.
    """
    given = tuple(range(seeds)) if isinstance(seeds, int) else tuple(int(s) for s in seeds)
    if not given or len(set(given)) < len(given) or min(given) < 0:
        raise InputError(f"`seeds` must be a positive count, or distinct non-negative integers; got {seeds!r}.")
    return given
