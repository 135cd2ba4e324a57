"""A training run that can be read backwards: states kept every few steps, those between computed again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.func import grad

from whence.batches import Batch, flatten
from whence.data import Examples
from whence.errors import NonFiniteError
from whence.task import Task, model_state, working_dtype
from whence.training.dropout import keyed_layers, set_key, training_twin
from whence.training.kept_states import KeptStates, packing
from whence.training.recipe import Recipe
from whence.training.sampler import StepBatch, step_batches
from whence.training.updates import State, advance, initial_state

DEFAULT_MEMORY = 2**30  # bytes for the states of a trajectory


@final
class Trajectory:
    """The run on all data of one seed, with the batches and dropout masks of the gold standard's run of that seed.

    Args:
        task: Its parameters are the start; in eval mode.
        train: Train examples.
        recipe: How the run trains.
        seed: Of order and dropout.
        n_steps: How many optimizer steps.
        dtype: Precision; default the parameters' own, never below float32.
        memory: Bytes for kept states. Where they do not fit, every k-th is kept, and the others are computed again.
        keep: "full", or "bfloat16" for about half the bytes: kept states are then a little off (`rounding`), and so are
            those computed from them; `end` is not.
        spill: Folder. Every state is kept, and what does not fit `memory` is on disk until `close`.
    Attributes:
        every: Of every how many steps the state before it is kept.
        end: The state after the last step.
    Raises:
        NonFiniteError: The run diverged.
        StoreWriteError: `spill` cannot take the states; before the run, or where it is full after all.
    Cost:
        One training; reading backwards costs a second one where not every state is kept.
    """

    def __init__(
        self,
        task: Task,
        train: Examples,
        recipe: Recipe,
        seed: int,
        n_steps: int,
        *,
        dtype: torch.dtype | None = None,
        memory: int = DEFAULT_MEMORY,
        keep: str = "full",
        spill: str | Path | None = None,
    ) -> None:
        self.task = training_twin(task, recipe.dropout)
        self.recipe, self.seed, self.n_steps, self.n_train = recipe, seed, n_steps, len(train)
        self.dtype = working_dtype(task.model, dtype)
        trainable, self._fixed = model_state(self.task.model, self.dtype)
        self._dropout = keyed_layers(self.task.model)
        self._data, self._rebuild = flatten(train.to(task.device, self.dtype).all())
        start = initial_state(recipe, self.task.layout.flatten(trainable))
        kept = packing(keep)
        self.every = _spacing(n_steps, memory, kept.nbytes, start) if spill is None else 1
        self.batches = tuple(step_batches(len(train), ((),), recipe, seed, n_steps))
        self._kept = KeptStates(start, -(-n_steps // self.every), memory=memory, keep=keep, spill=spill)
        try:
            self.end = self._run(start)
        except BaseException:
            self.close()
            raise

    @property
    def rounding(self) -> dict[str, float]:
        """Largest relative error of a kept state (`KeptStates.rounding`)."""
        return self._kept.rounding

    def close(self) -> None:
        """Let go of the states, and remove what is on disk. Only `end` can be read afterwards."""
        self._kept.close()

    def batch(self, step: StepBatch) -> tuple[Batch, Tensor]:
        """The examples of a step, and their weights (b,) in its loss."""
        rows = step.indices[0].to(self.task.device)
        return self._rebuild([x[rows] for x in self._data]), step.weights[0].to(self.task.device, self.dtype)

    def losses(self, parameters: Tensor, batch: Batch, step: int) -> Tensor:
        """Per-example losses (b,) at flat parameters, with the dropout masks of a step."""
        set_key(self._dropout, (self.seed, step))
        state = {**self.task.layout.unflatten(parameters), **self._fixed}
        return self.task.loss(self.task.call(state, batch), batch)

    def gradient(self, parameters: Tensor, step: StepBatch) -> Tensor:
        """Gradient (n_params,) of a step's loss."""
        batch, weights = self.batch(step)
        found: Tensor = grad(lambda p: (weights * self.losses(p, batch, step.step)).sum())(parameters)
        return found

    def after(self, state: State, step: StepBatch) -> State:
        """The state after a step."""
        gradient = self.gradient(state[0], step)
        return advance(self.recipe, state, gradient, step.step, self.recipe.lr_at(step.step, self.n_train))

    def backwards(self) -> Iterator[tuple[StepBatch, State]]:
        """Each step with the state before it, the last step first."""
        for first in range((self.n_steps - 1) // self.every * self.every, -1, -self.every):
            segment = self.batches[first : first + self.every]
            states = [self._kept.get(first // self.every)]
            for step in segment[:-1]:
                states.append(self.after(states[-1], step))
            yield from zip(reversed(segment), reversed(states), strict=True)

    def at(self, n_steps: int) -> Tensor:
        """Parameters (n_params,) after some steps."""
        if n_steps == self.n_steps:
            return self.end[0]
        first = n_steps // self.every * self.every
        state = self._kept.get(first // self.every)
        for step in self.batches[first:n_steps]:
            state = self.after(state, step)
        return state[0]

    def task_at(self, n_steps: int) -> Task:
        """The task with the parameters after some steps, dropout off."""
        set_key(self._dropout, None)
        model = copy.deepcopy(self.task.model).to(self.dtype)
        named = dict(model.named_parameters())
        for name, values in self.task.layout.unflatten(self.at(n_steps)).items():
            named[name].data.copy_(values)
        return self.task.with_model(model)

    def _run(self, state: State) -> State:
        for k, step in enumerate(self.batches):
            if k % self.every == 0:
                self._kept.put(k // self.every, state)
            state = self.after(state, step)
            if not bool(torch.isfinite(state[0]).all()):
                raise NonFiniteError(
                    f"Further training (seed {self.seed}) gave NaN or infinite parameters at step {k + 1}. The "
                    f"learning rate {self.recipe.lr} may be too large for this model: lower it, or clip gradients."
                )
        return state


def _spacing(n_steps: int, memory: int, nbytes: Callable[[State, int], int], state: State) -> int:
    """Every how many steps a state is kept, so that kept states and those of one segment take at most `memory`.

    Where that cannot be, the spacing that takes least, near the square root.
    """
    whole = sum(x.nbytes for x in state)

    def taken(every: int) -> int:
        return nbytes(state, -(-n_steps // every)) + (every * whole if every > 1 else 0)

    spacings = range(1, n_steps + 1)
    return next((k for k in spacings if taken(k) <= memory), min(spacings, key=taken))
