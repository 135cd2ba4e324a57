"""Relative influence: contributions as they would be if the gradients of all train examples had norm 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import InputError, ShapeError
from whence.gradients import loss_gradients
from whence.methods import Inputs
from whence.methods.checkpoints import Checkpoint, Models, rates_of
from whence.scores import ScoreMatrix
from whence.task import Task
from whence.weights.by_group import Contributions
from whence.weights.quotient import inverse
from whence.weights.stream import ContributionStream

Either = TypeVar("Either", Contributions, ContributionStream, ScoreMatrix)


def gradient_norms(
    task: Task,
    train: Examples,
    *,
    checkpoints: Sequence[Checkpoint] | None = None,
    learning_rates: float | Sequence[float] = 1.0,
) -> Tensor:
    """Norms (n_train,) of the loss gradients of train examples, over all parameters.

    Args:
        task: The final model.
        train: The train set.
        checkpoints: Those of a method that adds up over checkpoints, such as TracIn. The norm is then that of what it
            takes products of: the gradients of all checkpoints, one after another, each times the square root of its
            learning rate. The final model's alone would be wrong: what is fitted by then has hardly a gradient left,
            but had one before.
        learning_rates: One for all checkpoints, or one for each.
    Raises:
        DataError, InputError, NonFiniteError: A checkpoint, or the learning rates, as in `tracin`.
    Cost:
        One pass of gradients for each checkpoint.
    """
    models = Models.of(Inputs(task, train, train), checkpoints)
    rates = rates_of(learning_rates, len(models))
    squares = torch.zeros(len(train), dtype=torch.float64)
    for model, rate in zip(models, rates, strict=True):
        squares += rate * torch.cat([rows.double().square().sum(1).cpu() for _, rows in loss_gradients(model, train)])
    return squares.sqrt()


def norms_with(inputs: Inputs, options: Mapping[str, Any]) -> Tensor:
    """`gradient_norms` for a method with these options, those that norms do not depend on among them."""
    along = {name: options[name] for name in ("checkpoints", "learning_rates") if name in options}
    return gradient_norms(inputs.task, inputs.train, **along)


def relative_to_norms(found: Either, norms: Tensor) -> Either:
    """Contributions with those of each train example divided by the norm of its features; or scores so divided.

    A train example with a large gradient, an outlier or one with a high loss, changes every query; divided by the norm
    it counts for what it does to this query in particular. The norm is that of the whole gradient, not of one group's
    part: groups keep their shares of each score. Weights and `lds` then see the relative scores.

    Args:
        found: Contributions, in memory or streamed; or scores, such as those of a teacher.
        norms: (n_train,), of `gradient_norms`, of `GradientShards.norms`, or of the features of a method.
    Returns:
        The same without a unit: they only rank. An example with norm 0 has no direction, and contributes 0.
    Raises:
        ShapeError: Not one norm for each train example.
        InputError: A norm is negative or not finite.
    Reference:
        Barshan et al. (2020), arXiv:2003.11630; with the identity as curvature both of its constraints are this one.
    """
    n_train = len(found.train_ids)
    if tuple(norms.shape) != (n_train,):
        raise ShapeError(f"`norms` must be (n_train,) = ({n_train},); got {tuple(norms.shape)}.")
    bad = ~(torch.isfinite(norms) & (norms >= 0))
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise InputError(
            f"The norm of train example {found.train_ids[at]!r} is {float(norms[at])}. Norms are finite and not "
            "negative; look at its gradient."
        )
    factors = inverse(norms.double())
    facts: dict[str, Any] = {**found.provenance, "relative": True}
    if isinstance(found, ScoreMatrix):
        return replace(found, values=found.values * factors.to(found.values), unit=None, provenance=facts)
    if isinstance(found, Contributions):
        return replace(found, values=found.values * factors.to(found.values)[:, None], unit=None, provenance=facts)
    whole = found.blocks

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        for part, block in whole():
            yield part, block * factors[part].to(block)

    return replace(found, blocks=blocks, unit=None, provenance=facts)
