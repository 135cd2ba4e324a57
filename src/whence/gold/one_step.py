"""What one training step on one example alone does to queries: the truth behind tail-patch scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, final

import torch
from torch import Tensor
from torch.func import vmap

from whence.batches import Batch, cast_batch, flatten, map_tensors
from whence.checks import look_up
from whence.data import Examples
from whence.errors import InputError, NonFiniteError, ShapeError, UnsupportedError
from whence.gradients import can_vmap, loss_gradients
from whence.gradients.passes import fitting_outputs
from whence.task import Task, model_state, working_dtype
from whence.training import Recipe
from whence.training.updates import advance, initial_state

StepEngine = Literal["auto", "stacked", "loop"]
FORWARD_ROWS: Final = 4096  # queries of all models in one forward pass, at most


@final
@dataclass(frozen=True, eq=False)
class OneStep:
    """Measures of queries before and after single steps.

    Attributes:
        before: float64 (n_query,), at the final model.
        after: float64 (n_pairs,), of the query of each pair after a step on its train example.
        n_steps: Steps taken: the distinct train examples.
    """

    before: Tensor
    after: Tensor
    n_steps: int


@dataclass(frozen=True, eq=False)
class _Steps:
    """What is to be stepped on, and who looks.

    Attributes:
        positions: Distinct train positions, those that most queries look at first.
        watching: For each of them, the positions of its queries.
    """

    task: Task
    train: Examples
    queries: Examples
    recipe: Recipe
    dtype: torch.dtype
    positions: tuple[int, ...]
    watching: tuple[Tensor, ...]


def one_step(
    task: Task,
    train: Examples,
    queries: Examples,
    recipe: Recipe,
    pairs: Tensor,
    *,
    engine: StepEngine = "auto",
    dtype: torch.dtype | None = None,
) -> OneStep:
    """Take one optimizer step from the final model on one train example alone, for each that a pair names.

    The step is the first of a fresh optimizer: of the recipe it takes the optimizer with its constants, `lr` and
    `clip_norm`, not the schedule, and dropout is off. Weight decay, which all steps share, is part of it. A first step
    of Adam moves every parameter by about `lr`, however small its gradient.

    Args:
        task: The final model and its contract, in eval mode; not changed.
        train: Train examples.
        queries: Whose measures are taken.
        recipe: Optimizer and learning rate.
        pairs: int64 (n_pairs, 2): query position, train position.
        engine: "stacked" moves many models at once, "loop" steps a copy of the model with `torch.optim`, example by
            example, the slow reference; "auto" is "stacked" where the model can be vmapped.
        dtype: Precision; default the parameters' own, never below float32. Changes that are small beside the measure
            need float64.
    Raises:
        InputError: Something does not fit, or a position does not exist; before any step.
        NonFiniteError: A step gave a measure that is NaN or infinite; the pair is named.
    Cost:
        Per distinct train example a forward and a backward pass of it, and a forward pass of the queries it has pairs
        with.
    """
    look_up(dict.fromkeys(("auto", *_ENGINES)), engine, "engine of single steps")
    _check_pairs(pairs, len(queries), len(train))
    examples, counts = torch.unique(pairs[:, 1], return_counts=True)
    task.check(train.batch(examples), [train.ids[i] for i in examples.tolist()])
    task.check(queries.all(), queries.ids, role="query")
    groups = torch.split(pairs[:, 1].argsort(stable=True), counts.tolist())
    by_width = sorted(range(len(groups)), key=lambda j: -len(groups[j]))  # alike side by side: little padding
    steps = _Steps(
        task,
        train,
        queries,
        recipe,
        working_dtype(task.model, dtype),
        tuple(int(examples[j]) for j in by_width),
        tuple(pairs[groups[j], 0] for j in by_width),
    )
    if engine == "auto":
        engine = "stacked" if can_vmap(task, queries) else "loop"
    after = torch.empty(len(pairs), dtype=torch.float64)
    for j, measures in zip(by_width, _ENGINES[engine](steps), strict=True):
        after[groups[j]] = measures.cpu()
    _require_finite(after, pairs, train, queries, recipe)
    return OneStep(_before(steps), after, len(steps.positions))


def _check_pairs(pairs: Tensor, n_query: int, n_train: int) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0 or pairs.dtype != torch.int64:
        raise ShapeError(
            f"`pairs` must be int64 (n_pairs, 2), query and train positions; got {pairs.dtype} {tuple(pairs.shape)}."
        )
    least, most = pairs.amin(0).tolist(), pairs.amax(0).tolist()
    if min(least) < 0 or most[0] >= n_query or most[1] >= n_train:
        raise InputError(
            f"`pairs` must lie in 0..{n_query - 1} (queries) and 0..{n_train - 1} (train examples); got {least} to "
            f"{most}."
        )


def _require_finite(after: Tensor, pairs: Tensor, train: Examples, queries: Examples, recipe: Recipe) -> None:
    bad = (~torch.isfinite(after)).nonzero().flatten()
    if len(bad):
        query, example = pairs[int(bad[0])].tolist()
        raise NonFiniteError(
            f"A step on train example {train.ids[example]!r} gave a NaN or infinite measure for query "
            f"{queries.ids[query]!r}. The learning rate {recipe.lr} may be too large for single examples: lower it."
        )


@torch.no_grad()
def _before(steps: _Steps) -> Tensor:
    trainable, fixed = model_state(steps.task.model, steps.dtype)
    parts = torch.arange(len(steps.queries)).split(_fitting(steps))  # type: ignore[no-untyped-call]
    found = []
    for part in parts:
        batch = cast_batch(steps.queries.batch(part), steps.dtype, steps.task.device)
        found.append(_measure(steps.task, steps.task.call({**trainable, **fixed}, batch), batch))
    return torch.cat(found).cpu()


def _fitting(steps: _Steps) -> int:
    """Queries whose outputs may exist at once."""
    return min(FORWARD_ROWS, fitting_outputs(steps.task, steps.queries, steps.dtype))


def _measure(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    """In float64: differences of losses of a sure model are far below float32."""
    return task.measure(outputs.double(), map_tensors(lambda x: x.double() if x.is_floating_point() else x, batch))


# --- the slow reference -----------------------------------------------------------------------------------------------


def _loop(steps: _Steps) -> Iterator[Tensor]:
    """One example after the other: a copy of the model, one step of `torch.optim`."""
    for position, queries in zip(steps.positions, steps.watching, strict=True):
        model = copy.deepcopy(steps.task.model).to(steps.dtype)
        _step(steps, model, position)
        parts = queries.split(_fitting(steps))  # type: ignore[no-untyped-call]
        yield torch.cat([_measures_of(steps, model, part) for part in parts])


def _step(steps: _Steps, model: torch.nn.Module, position: int) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = steps.recipe.make_optimizer(parameters)
    optimizer.zero_grad()
    for p in parameters:
        p.grad = torch.zeros_like(p)  # what the example does not touch decays all the same
    batch = cast_batch(steps.train.batch([position]), steps.dtype, steps.task.device)
    steps.task.loss(steps.task.outputs(model, batch), batch).sum().backward()  # type: ignore[no-untyped-call]
    if steps.recipe.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, steps.recipe.clip_norm)
    optimizer.step()


@torch.no_grad()
def _measures_of(steps: _Steps, model: torch.nn.Module, queries: Tensor) -> Tensor:
    batch = cast_batch(steps.queries.batch(queries), steps.dtype, steps.task.device)
    return _measure(steps.task, steps.task.outputs(model, batch), batch)


# --- many models at once ----------------------------------------------------------------------------------------------


def _stacked(steps: _Steps) -> Iterator[Tensor]:
    """Blocks of per-example gradients, each turned into parameters after its step, and forward passes of them all."""
    task, recipe = steps.task, steps.recipe
    trainable, fixed = model_state(task.model, steps.dtype)
    start = initial_state(recipe, task.layout.flatten(trainable))
    moved = vmap(lambda gradient: advance(recipe, start, gradient, 0, recipe.lr)[0])
    for part, rows in loss_gradients(task, steps.train.subset(steps.positions), dtype=steps.dtype):
        yield from _measures_of_all(steps, moved(rows), fixed, steps.watching[part])


@torch.no_grad()
def _measures_of_all(
    steps: _Steps, parameters: Tensor, fixed: dict[str, Tensor], watching: tuple[Tensor, ...]
) -> list[Tensor]:
    """Measures under each row of `parameters` (b, n_params) of its own queries."""
    width = max(len(queries) for queries in watching)
    padded = torch.stack([queries[torch.arange(width).clamp_max(len(queries) - 1)] for queries in watching])
    models = min(len(padded), _fitting(steps))
    wide = max(1, _fitting(steps) // models)
    found = [
        torch.cat([_forward(steps, few, fixed, part) for part in own.split(wide, dim=1)], dim=1)
        for few, own in zip(parameters.split(models), padded.split(models), strict=True)  # type: ignore[no-untyped-call]
    ]
    measures = torch.cat(found)
    return [row[: len(queries)] for row, queries in zip(measures, watching, strict=True)]


def _forward(steps: _Steps, parameters: Tensor, fixed: dict[str, Tensor], queries: Tensor) -> Tensor:
    """Measures (b, w) of `queries` (b, w), each row under its own `parameters` (b, n_params)."""
    task = steps.task
    batch = cast_batch(steps.queries.batch(queries), steps.dtype, task.device)
    tensors, rebuild = flatten(batch)

    def one_model(own: Tensor, *parts: Tensor) -> Tensor:
        return task.call({**task.layout.unflatten(own), **fixed}, rebuild(parts))

    try:
        outputs: Tensor = vmap(one_model)(parameters, *tensors)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedError(
            f"This model cannot be moved in many copies at once, since torch.func.vmap cannot run it: {error} Use "
            'engine="loop".'
        ) from error
    found = _measure(task, outputs.flatten(0, 1), map_tensors(lambda x: x.flatten(0, 1), batch))
    return found.reshape(queries.shape)


_ENGINES: dict[str, Callable[[_Steps], Iterator[Tensor]]] = {"stacked": _stacked, "loop": _loop}
