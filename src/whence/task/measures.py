"""What is explained about a query: its loss, margin, log-probability, a logit, or any callable.

Every measure says whether a lower value is better, because the sign of a score is defined by "better".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from whence.batches import Batch
from whence.checks import look_up
from whence.errors import InputError
from whence.task.losses import Loss, PerExample, Target, logit_margin


class Measure(ABC):
    """A scalar per query, called as `measure(outputs (b, ...), batch) -> (b,)`, and the direction that is better."""

    name: str
    lower_is_better: bool

    @property
    def orientation(self) -> int:
        """+1 where a lower measure is better (a loss), -1 otherwise."""
        return 1 if self.lower_is_better else -1

    @abstractmethod
    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The measure of each query (b,)."""


@dataclass(frozen=True)
class LossMeasure(Measure):
    """The query's own loss."""

    loss: Loss
    name = "loss"
    lower_is_better = True

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.loss(outputs, batch)


@dataclass(frozen=True)
class LogProbability(Measure):
    """log p_y of the true class: the cross-entropy with its sign turned."""

    loss: Loss
    name = "log_probability"
    lower_is_better = False

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        return -self.loss(outputs, batch)


@dataclass(frozen=True)
class Margin(Measure):
    """log(p_y / (1 - p_y)) of the true class, TRAK's model output (Park et al. 2023, arXiv:2303.14186)."""

    target: Target
    name = "margin"
    lower_is_better = False

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        return logit_margin(outputs, self.target(batch))


@dataclass(frozen=True)
class Logit(Measure):
    """The true class's own logit z_y."""

    target: Target
    name = "logit"
    lower_is_better = False

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.gather(1, self.target(batch)[:, None])[:, 0]


@dataclass(frozen=True)
class CallableMeasure(Measure):
    """A user's own measure."""

    fn: PerExample
    lower_is_better: bool

    @property
    def name(self) -> str:  # type: ignore[override]
        """The callable's own name."""
        return getattr(self.fn, "__name__", "measure")

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.fn(outputs, batch)


MEASURES: dict[str, Callable[[Loss, Target], Measure]] = {
    "loss": lambda loss, target: LossMeasure(loss),
    "log_probability": lambda loss, target: LogProbability(loss),
    "margin": lambda loss, target: Margin(target),
    "logit": lambda loss, target: Logit(target),
}


def make_measure(
    measure: str | Measure | PerExample, lower_is_better: bool | None, loss: Loss, target: Target | None
) -> Measure:
    """A `Measure` from a name, a `Measure`, or a callable with its direction.

    Raises:
        UnknownNameError: The name is in no table.
        InputError: A callable came without `lower_is_better`, a named measure came with one, or a measure of
            classifiers was asked of another loss.
    """
    if isinstance(measure, Measure):
        if lower_is_better is not None:
            raise InputError(f"`lower_is_better` is fixed for the measure {measure.name!r}; leave it out.")
        return measure
    if not isinstance(measure, str):
        if lower_is_better is None:
            raise InputError("A callable measure needs `lower_is_better=True` or `False`: the sign depends on it.")
        return CallableMeasure(measure, lower_is_better)
    build = look_up(MEASURES, measure, "measure")
    if lower_is_better is not None:
        raise InputError(f"`lower_is_better` is fixed for the measure {measure!r}; leave it out.")
    if measure == "loss":
        return LossMeasure(loss)
    if target is None or loss.name != "cross_entropy":
        raise InputError(
            f"The measure {measure!r} needs class labels and cross-entropy; this task's loss is {loss.name!r}. "
            "Build the task with Task.classification, or pass a callable measure."
        )
    return build(loss, target)
