"""TracIn: gradient products at checkpoints of the training run, summed with its learning rates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.algebra import pairwise
from whence.checks import require_positive
from whence.errors import DataError, InputError
from whence.gradients import loss_gradients
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole
from whence.progress import stage
from whence.task import fingerprint, load_checkpoint, model_state, working_dtype

Checkpoint = Mapping[str, Tensor] | str | Path


def tracin(
    inputs: Inputs, *, checkpoints: Sequence[Checkpoint], learning_rates: float | Sequence[float] = 1.0
) -> Result:
    """o_q sum_c lr_c a_q(theta_c) . b_i(theta_c) over checkpoints c: first order along the path of training.

    It only ranks: between checkpoints there are many steps, and the batches they were made on are not known. With the
    final model as the only checkpoint it is grad_dot times the learning rate. Measure and loss are those of the task,
    and its model is left as it is.

    Args:
        inputs: Task, train set, queries; weights of parameter groups apply at every checkpoint.
        checkpoints: State dicts of the task's model, or files of them (`.safetensors`, `.pt`), read one at a time.
        learning_rates: One for all, or one for each checkpoint: that of the steps around it.
    Raises:
        DataError: A file cannot be read or does not fit the model; before any gradient.
        InputError: No checkpoint, a state dict that does not fit the model, or another number of learning rates; before
            any gradient.
        NonFiniteError: A checkpoint holds NaN or infinity.
    Cost:
        For each checkpoint one pass of per-example gradients, in blocks; memory one copy of the model and all scores.
    Reference:
        Pruthi et al. (2020), arXiv:2002.08484, eq. (1), for checkpoints.
    """
    found = _listed(checkpoints)
    rates = _rates(learning_rates, len(found))
    model = copy.deepcopy(inputs.task.model)
    marks = []
    for k, checkpoint in enumerate(found):  # all are looked at before the first gradient
        _load(model, checkpoint, k)
        model_state(model, working_dtype(model))  # refuses NaN
        marks.append({"checkpoint": _name(checkpoint, k), "fingerprint": fingerprint(model)})
    total = torch.zeros(0)
    with stage("checkpoints", total=len(found), unit="checkpoints") as progress:
        for k, (checkpoint, rate) in enumerate(zip(found, rates, strict=True)):
            _load(model, checkpoint, k)
            values = rate * _products(inputs, model)
            total = values if k == 0 else total + values
            progress.advance()
    settings: dict[str, Any] = {"checkpoints": marks, "learning_rates": rates}
    return whole(inputs.orientation * total, settings)


def _products(inputs: Inputs, model: nn.Module) -> Tensor:
    """a_q . b_i at the parameters of `model`, (m, n_train) float64."""
    task = inputs.task.with_model(model)
    queries = inputs.query_gradients_of(task)
    return torch.cat([pairwise(queries, rows) for _, rows in loss_gradients(task, inputs.train)], 1)


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


def _rates(learning_rates: float | Sequence[float], n: int) -> list[float]:
    rates = list(learning_rates) if isinstance(learning_rates, Sequence) else [learning_rates] * n
    if len(rates) != n:
        raise InputError(f"`learning_rates` must be one number, or one for each of {n} checkpoints; got {len(rates)}.")
    for k, rate in enumerate(rates):
        require_positive(rate, f"learning_rates[{k}]")
    return [float(rate) for rate in rates]


def _name(checkpoint: Checkpoint, k: int) -> str:
    return f"state dict {k}" if isinstance(checkpoint, Mapping) else str(checkpoint)


def _load(model: nn.Module, checkpoint: Checkpoint, k: int) -> None:
    """Give `model` the parameters and buffers of a checkpoint."""
    if not isinstance(checkpoint, Mapping):
        try:
            load_checkpoint(model, checkpoint)
        except DataError as error:
            raise DataError(f"Checkpoint {k}: {error}") from error
        return
    own = model.state_dict()
    misshaped = [
        f"{name} is {tuple(x.shape)} for {tuple(own[name].shape)}"
        for name, x in checkpoint.items()
        if name in own and isinstance(x, Tensor) and x.shape != own[name].shape
    ]
    missing, unexpected = sorted(set(own) - set(checkpoint)), sorted(set(checkpoint) - set(own))
    problems = {"missing": missing, "not in the model": unexpected, "of another shape": misshaped}
    if any(problems.values()):
        told = "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in problems.items() if names)
        raise InputError(f"Checkpoint {k} does not fit the model. Parameters {told}. Pass state dicts of this model.")
    model.load_state_dict(dict(checkpoint))


TRACIN = Preset(
    "tracin",
    "gradient products summed over checkpoints of training",
    tracin,
    train_side="loss gradients at checkpoints",
)
