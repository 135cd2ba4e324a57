"""Checkpoints of a task's model: checked before any work, held one at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from whence.checks import require_positive
from whence.errors import DataError, InputError
from whence.methods.inputs import Inputs
from whence.task import Task, fingerprint, model_state, working_dtype
from whence.task.checkpoint import fit_state, read_checkpoint

Checkpoint = Mapping[str, Tensor] | str | Path


@final
@dataclass(frozen=True, eq=False)
class Models:
    """The final model, or every checkpoint.

    Each is read when it is looked at and again whenever its turn comes, but for the first: the last one looked at, its
    model is kept for the first walk. Fewer readings would mean a model in memory for each checkpoint, or that a file
    which cannot be read, does not fit or holds NaN is found only after the work on those before it.

    Attributes:
        inputs: Task, train set, queries.
        checkpoints: State dicts or files of them; None for the final model.
        marks: Name, fingerprint and what was changed of each checkpoint, for provenance; None for the final model.
        kept: The model of the first checkpoint, until the first walk takes it.
    """

    inputs: Inputs
    checkpoints: list[Checkpoint] | None
    marks: list[dict[str, Any]] | None
    kept: list[nn.Module] = field(default_factory=list)

    @classmethod
    def of(cls, inputs: Inputs, checkpoints: Sequence[Checkpoint] | None) -> Models:
        """Look at every checkpoint.

        Raises:
            DataError: A file cannot be read or does not fit the model.
            InputError: No checkpoint, or a state dict that does not fit the model.
            NonFiniteError: A checkpoint holds NaN or infinity.
        """
        if checkpoints is None:
            return cls(inputs, None, None)
        found = _listed(checkpoints)
        model = copy.deepcopy(inputs.task.model)
        marks: dict[int, dict[str, Any]] = {}
        for k in (*range(1, len(found)), 0):
            changed = _load(model, found[k], k)
            model_state(model, working_dtype(model))  # refuses NaN
            marks[k] = {"checkpoint": _name(found[k], k), "fingerprint": fingerprint(model), **changed}
        return cls(inputs, found, [marks[k] for k in range(len(found))], [model])

    def __len__(self) -> int:
        return 1 if self.checkpoints is None else len(self.checkpoints)

    def __iter__(self) -> Iterator[Task]:
        """The task at each model, in order; a checkpoint is read when its turn comes."""
        task = self.inputs.task
        if self.checkpoints is None:
            yield task
            return
        for k, checkpoint in enumerate(self.checkpoints):
            if self.kept:
                model = self.kept.pop()
            else:
                model = copy.deepcopy(task.model)
                _load(model, checkpoint, k)
            yield task.with_model(model)

    def query_gradients(self, task: Task, dtype: torch.dtype | None = None) -> Tensor:
        """Gradients of the queries' measure at one of these models, (m, n_params)."""
        if self.checkpoints is None and dtype is not None:
            return self.inputs.query_gradients_in(dtype)
        return self.inputs.query_gradients_of(task, dtype)


def rates_of(learning_rates: float | Sequence[float], n: int) -> list[float]:
    """The learning rate of each of n checkpoints.

    Raises:
        InputError: Another number of them, or one that is not positive.
    """
    rates = list(learning_rates) if isinstance(learning_rates, Sequence) else [learning_rates] * n
    if len(rates) != n:
        raise InputError(f"`learning_rates` must be one number, or one for each of {n} checkpoints; got {len(rates)}.")
    for k, rate in enumerate(rates):
        require_positive(rate, f"learning_rates[{k}]")
    return [float(rate) for rate in rates]


def _listed(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    single = isinstance(checkpoints, str | Path | Mapping)
    if single or not isinstance(checkpoints, Sequence) or not len(checkpoints):
        what = "a single one" if single else repr(checkpoints)
        raise InputError(
            f"`checkpoints` must be a list of state dicts or of paths to them, one at least; got {what}. "
            "Of a single one write `[checkpoint]`, of a folder `sorted(folder.glob(...))`."
        )
    for k, checkpoint in enumerate(checkpoints):
        if not isinstance(checkpoint, str | Path | Mapping):
            raise InputError(
                f"Checkpoint {k} must be a state dict or a path to one; got a {type(checkpoint).__name__}. "
                "Of a model, pass `model.state_dict()`; copy it if training goes on."
            )
    return list(checkpoints)


def _name(checkpoint: Checkpoint, k: int) -> str:
    return f"state dict {k}" if isinstance(checkpoint, Mapping) else str(checkpoint)


def _load(model: nn.Module, checkpoint: Checkpoint, k: int) -> dict[str, Any]:
    """Give `model` the parameters and buffers of a checkpoint; facts of what was changed to make them fit."""
    if isinstance(checkpoint, Mapping):
        return fit_state(model, checkpoint, f"Checkpoint {k}")
    try:
        return fit_state(model, read_checkpoint(checkpoint), str(checkpoint), error=DataError)
    except DataError as error:
        raise DataError(f"Checkpoint {k}: {error}") from error
