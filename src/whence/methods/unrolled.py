"""Unrolled: the derivative of the further-training run itself in the weight of every example."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.errors import InputError, NonFiniteError
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole
from whence.progress import stage
from whence.task import Task
from whence.task.checkpoint import fit_state
from whence.training import Recipe, refuse_functional_dropout
from whence.training.adjoint import pull_back_step
from whence.training.trajectory import DEFAULT_MEMORY, Trajectory
from whence.training.updates import State, initial_state


def unrolled(
    inputs: Inputs,
    *,
    recipe: Recipe,
    at: tuple[int, ...],
    seeds: int | tuple[int, ...] = 1,
    start: Mapping[str, Tensor] | None = None,
    products: str = "forward",
    memory: int = DEFAULT_MEMORY,
    keep: str = "full",
    spill: str | Path | None = None,
) -> dict[int, Result]:
    """-o_q d measure_q(theta_T) / d weight_i, exactly, for all train examples by one pass backwards through the run.

    One run on all data is recorded (any optimizer, its state included; clipping, schedule, dropout). Then the
    derivative of each query's measure is taken back through the steps: at every step the examples of its batch get
    their share, and a Hessian-vector product leads to the step before. The mean over seeds is over orders of the data.

    The weight of an example is its factor in the batches it is in, their normaliser fixed. A run without the example
    ("same_order") also moves the others between batches, which only the mean over seeds removes. Leaving out is a
    finite change: with large learning rates, or in the first steps of Adam, it may part from the derivative.

    Args:
        inputs: Task, train set, queries.
        recipe: Further training.
        at: Amounts of training, in the recipe's unit; all come from one run.
        seeds: How many seeds, from 0, or which. Take others than those of the gold standard to be judged by it.
        start: State dict to begin at instead of the final model, for instance the initialisation; with the original
            recipe the scores are then the derivative of the whole training run. Its values are cast to the model's
            dtype and a prefix of a wrapped model is dropped, as the settings then say.
        products: "forward", or "reverse" for models without forward-mode derivatives (much slower).
        memory: Bytes for kept states of the run. Where they do not fit, every k-th is kept, the others computed again.
        keep: "full", or "bfloat16" for about half the bytes. The derivative is then taken beside the run; how far is in
            the settings, "rounding": the largest relative error of a kept state's parameters, and of its buffers.
        spill: Folder for the states that do not fit `memory`, instead of computing them again; emptied at the end.
    Raises:
        InputError: `start` does not fit the model.
        NonFiniteError: The run diverged, or its derivative did.
        StoreWriteError: `spill` cannot be written to or has too little space; before the run.
        UnsupportedError: Dropout that is no module.
    Cost:
        Per seed one training, a second one where its states do not fit `memory`, and per step one Hessian-vector
        product of the batch for each query and each amount not yet passed. It does not grow with n_train.
    Reference:
        Hara et al. (2019), arXiv:1906.08473, for SGD; Bae et al. (2024), arXiv:2405.12186, for its approximation.
    """
    which = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not which or len(set(which)) < len(which):
        raise InputError(f"`seeds` must be a positive count or distinct seeds; got {seeds!r}.")
    task, changed = _begun_at(inputs.task, start)
    if recipe.dropout:
        refuse_functional_dropout(task, inputs.train.batch(range(min(2, inputs.n_train))))
    settings: dict[str, Any] = {"seeds": which, "products": products, "start": "final model", "keep": keep}
    if start is not None:
        settings |= {"start": "given", **{f"start_{what}": how for what, how in changed.items()}}
    total = {amount: torch.zeros(0) for amount in at}
    rounding: dict[str, float] = {}
    for seed in which:
        n_steps = recipe.steps_at(max(at), inputs.n_train)
        with closing(
            Trajectory(task, inputs.train, recipe, seed, n_steps, memory=memory, keep=keep, spill=spill)
        ) as run:
            for amount, values in _derivatives(inputs, run, at, products).items():
                total[amount] = total[amount] + values if len(total[amount]) else values
        rounding = {part: max(error, rounding.get(part, 0.0)) for part, error in run.rounding.items()}
    settings |= {"rounding": rounding} if rounding else {}
    return {amount: whole(-inputs.orientation * total[amount] / len(which), settings) for amount in at}


def _derivatives(inputs: Inputs, run: Trajectory, at: tuple[int, ...], products: str) -> dict[int, Tensor]:
    """d measure / d weight, (m, n_train) float64 for each amount."""
    amounts = {run.recipe.steps_at(amount, inputs.n_train): amount for amount in at}
    passed: list[int] = []
    adjoint: State = ()
    derivative = torch.zeros(0, inputs.n_train, dtype=torch.float64)
    with stage(f"unrolling seed {run.seed}", total=run.n_steps, unit="steps") as progress:
        for step, state in run.backwards():
            if step.step + 1 in amounts:
                passed.append(amounts[step.step + 1])
                measured = _adjoint_at_end(inputs, run, step.step + 1)
                adjoint = measured if not adjoint else tuple(map(_stacked, adjoint, measured))
                derivative = _stacked(derivative, derivative.new_zeros(len(measured[0]), inputs.n_train))
            adjoint, by_example = pull_back_step(run, state, step, adjoint, products=products)
            _require_finite(by_example, run.seed, step.step)
            derivative.index_add_(1, step.indices[0], by_example.double().cpu())
            progress.advance()
    return dict(zip(passed, derivative.chunk(len(passed)), strict=True))


def _adjoint_at_end(inputs: Inputs, run: Trajectory, n_steps: int) -> State:
    """Derivatives of the measures in the state after `n_steps`: in the parameters (m, n_params), none in buffers."""
    return initial_state(run.recipe, inputs.query_gradients_of(run.task_at(n_steps)))


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second])


def _begun_at(task: Task, start: Mapping[str, Tensor] | None) -> tuple[Task, dict[str, Any]]:
    """The task at its start, and what was changed to make the start fit."""
    if start is None:
        return task, {}
    model = copy.deepcopy(task.model)
    changed = fit_state(model, start, "`start`")
    return task.with_model(model), changed


def _require_finite(values: Tensor, seed: int, step: int) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            f"The derivative of further training (seed {seed}) is NaN or infinite at step {step}, read backwards. The "
            "run is too unstable for its derivative: lower the learning rate, clip gradients, or compute in float64."
        )


UNROLLED = Preset(
    "unrolled",
    "exact derivative of the further-training run in each example's weight",
    unrolled,
    curvature="the run's own",
    filter="the run itself",
    train_side="loss gradients along the run",
    has_unit=True,
    by_amount=True,
)
