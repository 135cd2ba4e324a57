"""What the factory of a run gives: task and data, and whatever else is known about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.batches import named_leaves
from whence.data import Examples
from whence.errors import ConfigError
from whence.gold import Initialize
from whence.task import Task


@final
@dataclass(frozen=True, eq=False)
class Setup:
    """What a factory returns when it knows more than `(task, train, queries)`.

    Attributes:
        task: The final model and its contract.
        train: Its train set.
        queries: What is to be explained, and what scores are judged by.
        learning_queries: What weights of parameter groups are learned from (`whence weigh`): held out from both.
        initialize: Seed -> state dict of a fresh model, for retraining (`whence evaluate`); without it every module's
            `reset_parameters`.
        clean: (n_train,) true labels, where some of those in `train` are known to be wrong.
    Raises:
        ConfigError: A part has the wrong type or size, or the learning queries are not held out.
    """

    task: Task
    train: Examples
    queries: Examples
    learning_queries: Examples | None = None
    initialize: Initialize | None = None
    clean: Tensor | None = None

    def __post_init__(self) -> None:
        for role, kind, advice in _PARTS:
            value = getattr(self, role)
            if not isinstance(value, kind):
                raise ConfigError(f"`{role}` must be of type {kind.__name__}, got {type(value).__name__}. {advice}")
        if self.learning_queries is not None:
            self._check_held_out(self.learning_queries)
        if self.clean is not None and tuple(self.clean.shape) != (len(self.train),):
            raise ConfigError(
                f"`clean` must hold one label for each of the {len(self.train)} train examples; got shape "
                f"{tuple(self.clean.shape)}."
            )

    def shared_rows(self) -> dict[str, int]:
        """How many learning queries are equal, number for number, to a row of the train set or of the queries."""
        if self.learning_queries is None:
            return {}
        known = {"train": set(_rows(self.train)), "queries": set(_rows(self.queries))}
        own = list(_rows(self.learning_queries))
        return {role: sum(row in rows for row in own) for role, rows in known.items()}

    def _check_held_out(self, learning: Examples) -> None:
        if not isinstance(learning, Examples):
            raise ConfigError(f"`learning_queries` must be Examples; got {type(learning).__name__}.")
        for role, count in self.shared_rows().items():
            # Real data has a few equal rows; most of them equal means the same examples were passed.
            if 2 * count > len(learning):
                raise ConfigError(
                    f"{count} of {len(learning)} learning queries are also in `{role}`. Weights must be learned on "
                    "examples that are neither trained on nor used to judge the result: pass others."
                )


_PARTS: tuple[tuple[str, type, str], ...] = (
    ("task", Task, "Wrap the model: whence.Task.classification(model), .regression(model) or whence.Task(...)."),
    ("train", Examples, "Wrap the data: whence.Examples(data)."),
    ("queries", Examples, "Wrap the data: whence.Examples(data)."),
)


def _rows(examples: Examples) -> Iterator[bytes]:
    """The bytes of every row, over all tensors of the batch."""
    leaves = [leaf.detach().cpu().reshape(len(examples), -1).contiguous() for _, leaf in named_leaves(examples.all())]
    flat = torch.cat([leaf.view(torch.uint8).reshape(len(examples), -1) for leaf in leaves], 1).numpy()
    return (row.tobytes() for row in flat)
