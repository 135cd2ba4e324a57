"""A chunk of training runs that differ only in what they leave out, and what every engine does alike with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from whence.data import Examples
from whence.errors import InputError
from whence.task import Task
from whence.training.recipe import Recipe
from whence.training.sampler import StepBatch, batches_per_epoch, step_batches


@dataclass(frozen=True, eq=False)
class Job:
    """Runs of one seed, from one start, on one recipe.

    Args:
        task: The task on a training twin of the model (`training_twin`); its parameters are the start.
        train: All train examples.
        queries: Whose measures are recorded.
        recipe: How the runs train.
        seed: Seed of order and dropout.
        left_out: For each run, the train positions it lacks; empty for the run on all data.
        record_steps: After how many steps (of a run on all data) the measures are recorded, increasing.
        keep_parameters: Return the parameters at the last recorded step as well.
    Raises:
        InputError: The runs have different numbers of batches in an epoch, or one lacks every example.
    """

    task: Task
    train: Examples
    queries: Examples
    recipe: Recipe
    seed: int
    left_out: tuple[tuple[int, ...], ...]
    record_steps: tuple[int, ...]
    keep_parameters: bool = False

    def __post_init__(self) -> None:
        counts = {batches_per_epoch(len(self.train), len(s), self.recipe) for s in self.left_out}
        if len(counts) != 1:
            raise InputError(f"The runs of one job must have one number of batches in an epoch; got {sorted(counts)}.")
        if max(len(s) for s in self.left_out) >= len(self.train):
            raise InputError(f"A run cannot leave out all {len(self.train)} train examples.")

    @property
    def n_runs(self) -> int:
        """How many runs the job has."""
        return len(self.left_out)

    def steps(self, left_out: Sequence[Sequence[int]]) -> Iterator[StepBatch]:
        """The batches of some of the runs, up to the last recorded step."""
        return step_batches(len(self.train), left_out, self.recipe, self.seed, self.record_steps[-1])

    def lr_at(self, step: int) -> float:
        """Learning rate of a step."""
        return self.recipe.lr_at(step, len(self.train))


@dataclass(frozen=True, eq=False)
class JobResult:
    """What an engine returns.

    Attributes:
        measures: float64 (n_points, n_runs, n_query), from outputs cast to float64.
        distances: float64 (n_points, n_runs): Euclidean distance of the parameters from the start.
        parameters: name -> (n_runs, ...) at the last recorded step, where asked for.
    """

    measures: Tensor
    distances: Tensor
    parameters: dict[str, Tensor] = field(default_factory=dict)


RunJob = Callable[[Job], JobResult]


def start_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trainable parameters a run starts from, and everything it keeps fixed."""
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return trainable, fixed | {name: b.detach() for name, b in model.named_buffers()}
