"""Scores by the name of a method."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from whence.checks import look_up, unknown_name
from whence.data import Examples
from whence.errors import InputError
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.table import METHODS
from whence.scores import BlockSource, ScoreMatrix
from whence.task import GroupWeights, Task
from whence.training import Recipe

Amounts = int | Sequence[int] | None


@overload
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    method: str = ...,
    *,
    at: int | None = ...,
    weights: GroupWeights | None = ...,
    **options: Any,
) -> ScoreMatrix: ...
@overload
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    method: str = ...,
    *,
    at: Sequence[int],
    weights: GroupWeights | None = ...,
    **options: Any,
) -> dict[int, ScoreMatrix]: ...
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    method: str = "horizon_ahead",
    *,
    at: Amounts = None,
    weights: GroupWeights | None = None,
    **options: Any,
) -> ScoreMatrix | dict[int, ScoreMatrix]:
    """Score every train example for every query.

    Args:
        task: The final model and its contract, in eval mode.
        train: The train set.
        queries: What is to be explained.
        method: A name in `METHODS`.
        at: For methods that follow further training: an amount in the recipe's unit, or several; default the
            recipe's whole amount.
        weights: Of parameter groups, put on the query side: (o_q / n) a_q^T Diag(w) f(C) b_i. Scores with weights that
            are not uniform have no unit: they only rank.
        options: Of the method, such as `damping`, `recipe`, `form`; each method's docstring lists its own.
    Returns:
        A matrix (n_query, n_train), or for several amounts a dict from amount to matrix. Scores are positive for
        examples that support the query: leaving them out makes it worse.
    Raises:
        UnknownNameError: No such method or option; the message names the nearest.
        InputError: Something does not fit; before any long work.
    Cost:
        See the method; weights cost nothing.
    """
    call = Call.of(method, at, options, linear=weights is not None)
    return _scored(call, Inputs(task, train, queries), weights, is_list=isinstance(at, Sequence))


def attribute_with(
    inputs: Inputs, method: str, *, at: Amounts = None, weights: GroupWeights | None = None, **options: Any
) -> ScoreMatrix | dict[int, ScoreMatrix]:
    """As `attribute`, on inputs that several methods share, so that curvature and query gradients are computed once."""
    call = Call.of(method, at, options, linear=weights is not None)
    return _scored(call, inputs, weights, is_list=isinstance(at, Sequence))


@dataclass(frozen=True)
class Call:
    """A method with its options, checked by name: what can be refused is refused before there are any inputs.

    Attributes:
        preset: The method.
        options: Its keyword arguments.
        amounts: Amounts of further training; None for methods that do not follow it.
    """

    preset: Preset
    options: dict[str, Any]
    amounts: tuple[int, ...] | None

    @classmethod
    def of(cls, method: str, at: Amounts, options: dict[str, Any], *, linear: bool = False) -> Call:
        """Check names and values.

        Args:
            method: A name in `METHODS`.
            at: As in `attribute`.
            options: As in `attribute`.
            linear: Whether the method must be linear in weights of parameter groups.
        Raises:
            UnknownNameError, InputError: See `attribute`.
        """
        preset = look_up(METHODS, method, "method")
        _check_options(preset, options)
        if linear and not preset.linear_in_w:
            able = ", ".join(name for name, one in METHODS.items() if one.linear_in_w)
            raise InputError(
                f"{method!r} is not linear in the query's gradient, so weights of parameter groups do not apply. "
                f"Methods that take them: {able}."
            )
        if not preset.by_amount and at is not None:
            raise InputError(f"{method!r} does not depend on the amount of training; leave out `at`.")
        return cls(preset, options, _amounts(preset, options, at) if preset.by_amount else None)

    def run(self, inputs: Inputs) -> dict[int | None, Result]:
        """What the method computed, by amount of training (None where it does not follow training)."""
        if self.amounts is None:
            return {None: self.preset.compute(inputs, **self.options)}
        return dict(self.preset.compute(inputs, at=self.amounts, **self.options))


def _scored(
    call: Call, inputs: Inputs, weights: GroupWeights | None, *, is_list: bool
) -> ScoreMatrix | dict[int, ScoreMatrix]:
    given = inputs if weights is None else inputs.weighted(weights)
    found = {
        amount: ScoreMatrix.from_blocks(block_source(call.preset, given, result, amount))
        for amount, result in call.run(given).items()
    }
    if is_list:
        return {amount: matrix for amount, matrix in found.items() if amount is not None}
    return next(iter(found.values()))


def block_source(preset: Preset, inputs: Inputs, result: Result, amount: int | None = None) -> BlockSource:
    """The scores of a method as a stream of blocks, for `ScoreMatrix.from_blocks` or `TopK.from_blocks`."""
    weights = inputs.weights
    changed = weights is not None and not weights.is_uniform
    facts: dict[str, Any] = {} if amount is None else {"amount": amount}
    if weights is not None:
        facts |= {"weights": {"name": weights.name, "values": weights.by_name()}}
    return BlockSource(
        blocks=result.blocks,
        query_ids=inputs.queries.ids,
        train_ids=inputs.train.ids,
        unit=inputs.task.measure.name if preset.has_unit and not changed else None,
        orientation=float(inputs.orientation),
        method=preset.name,
        provenance={**inputs.facts, **facts, "settings": result.settings},
    )


def _amounts(preset: Preset, options: dict[str, Any], at: Amounts) -> tuple[int, ...]:
    recipe = options.get("recipe")
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"{preset.name!r} follows further training: pass `recipe=whence.Recipe(...)`; got {type(recipe).__name__}."
        )
    wanted = [recipe.amount] if at is None else [at] if isinstance(at, int) else list(at)
    return recipe.check_points(wanted)


def _check_options(preset: Preset, options: dict[str, Any]) -> None:
    parameters = inspect.signature(preset.compute).parameters
    known = {name: p for name, p in parameters.items() if name not in ("inputs", "at")}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {preset.name!r}", name, known)
    missing = [n for n, p in known.items() if p.default is p.empty and n not in options and n != "recipe"]
    if missing:
        raise InputError(f"{preset.name!r} needs {', '.join(f'`{n}`' for n in missing)}; it has no default.")
