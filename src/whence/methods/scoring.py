"""Scores by the name of a method."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, overload

from whence.checks import look_up, unknown_name
from whence.data import Examples
from whence.errors import InputError
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.table import METHODS
from whence.scores import BlockSource, ScoreMatrix
from whence.task import Task
from whence.training import Recipe

Amounts = int | Sequence[int] | None


@overload
def attribute(
    task: Task, train: Examples, queries: Examples, method: str = ..., *, at: int | None = ..., **options: Any
) -> ScoreMatrix: ...
@overload
def attribute(
    task: Task, train: Examples, queries: Examples, method: str = ..., *, at: Sequence[int], **options: Any
) -> dict[int, ScoreMatrix]: ...
def attribute(
    task: Task, train: Examples, queries: Examples, method: str = "horizon_ahead", *, at: Amounts = None, **options: Any
) -> ScoreMatrix | dict[int, ScoreMatrix]:
    """Score every train example for every query.

    Args:
        task: The final model and its contract, in eval mode.
        train: The train set.
        queries: What is to be explained.
        method: A name in `METHODS`.
        at: For methods that follow further training: an amount in the recipe's unit, or several; default the
            recipe's whole amount.
        options: Of the method, such as `damping`, `recipe`, `form`; each method's docstring lists its own.
    Returns:
        A matrix (n_query, n_train), or for several amounts a dict from amount to matrix. Scores are positive for
        examples that support the query: leaving them out makes it worse.
    Raises:
        UnknownNameError: No such method or option; the message names the nearest.
        InputError: Something does not fit; before any long work.
    Cost:
        See the method.
    """
    return score(Inputs, task, train, queries, method, at, options)


def attribute_with(
    inputs: Inputs, method: str, *, at: Amounts = None, **options: Any
) -> ScoreMatrix | dict[int, ScoreMatrix]:
    """As `attribute`, on inputs that several methods share, so that curvature and query gradients are computed once."""
    return score(lambda *_: inputs, inputs.task, inputs.train, inputs.queries, method, at, options)


def score(
    make_inputs: Any, task: Task, train: Examples, queries: Examples, method: str, at: Amounts, options: dict[str, Any]
) -> ScoreMatrix | dict[int, ScoreMatrix]:
    """Check the names first, then the inputs, then compute."""
    preset = look_up(METHODS, method, "method")
    _check_options(preset, options)
    if not preset.by_amount:
        if at is not None:
            raise InputError(f"{method!r} does not depend on the amount of training; leave out `at`.")
        inputs = make_inputs(task, train, queries)
        return ScoreMatrix.from_blocks(block_source(preset, inputs, preset.compute(inputs, **options)))
    amounts = _amounts(preset, options, at)
    inputs = make_inputs(task, train, queries)
    found = preset.compute(inputs, at=amounts, **options)
    by_amount = {
        amount: ScoreMatrix.from_blocks(block_source(preset, inputs, result, amount))
        for amount, result in found.items()
    }
    return by_amount if isinstance(at, Sequence) else by_amount[amounts[0]]


def block_source(preset: Preset, inputs: Inputs, result: Result, amount: int | None = None) -> BlockSource:
    """The scores of a method as a stream of blocks, for `ScoreMatrix.from_blocks` or `TopK.from_blocks`."""
    when = {} if amount is None else {"amount": amount}
    return BlockSource(
        blocks=result.blocks,
        query_ids=inputs.queries.ids,
        train_ids=inputs.train.ids,
        unit=inputs.task.measure.name if preset.has_unit else None,
        orientation=float(inputs.orientation),
        method=preset.name,
        provenance={**inputs.facts, **when, "settings": result.settings},
    )


def _amounts(preset: Preset, options: dict[str, Any], at: Amounts) -> tuple[int, ...]:
    recipe = options.get("recipe")
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"{preset.name!r} follows further training: pass `recipe=whence.Recipe(...)`; got {type(recipe).__name__}."
        )
    wanted = [recipe.amount] if at is None else [at] if isinstance(at, int) else list(at)
    amounts = recipe.check_points(wanted)
    return amounts


def _check_options(preset: Preset, options: dict[str, Any]) -> None:
    parameters = inspect.signature(preset.compute).parameters
    known = {name: p for name, p in parameters.items() if name not in ("inputs", "at")}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {preset.name!r}", name, known)
    missing = [n for n, p in known.items() if p.default is p.empty and n not in options and n != "recipe"]
    if missing:
        raise InputError(f"{preset.name!r} needs {', '.join(f'`{n}`' for n in missing)}; it has no default.")
