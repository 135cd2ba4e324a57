"""Tail-patch: does one more training step on a proponent alone help the query it is a proponent of?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from torch import Tensor

from whence.checks import require_count, require_positive
from whence.data import Examples
from whence.errors import InputError
from whence.evaluation.query_means import SUMMARY, QueryDraws
from whence.evaluation.rankings import RANDOM, named, random_order, ranked
from whence.gold import StepEngine, one_step
from whence.scores import ScoreMatrix
from whence.task import Task
from whence.training import Recipe

BOTTOM = ", bottom"


@final
@dataclass(frozen=True, eq=False)
class TailPatch:
    """Tail-patch scores of one or several score matrices, with controls.

    Attributes:
        table: One row per score matrix, one per matrix for its bottom-k ("name, bottom"), and "random examples":
            name; value, the mean over queries; low, high; over_random and its interval, the paired difference to random
            examples; n_query, n_undefined, note.
        per_query: name -> (n_query,) float64, mean over the k examples.
        gains: name -> (n_query, k) float64, by rank.
        before: (n_query,) float64, the measure at the final model.
        k: Examples of each query.
        scale: What measures were multiplied by.
        n_steps: Training steps taken: distinct train examples.
        measure: Name of the measure.
        draws: Of the bootstrap.
    """

    table: pd.DataFrame
    per_query: dict[str, Tensor]
    gains: dict[str, Tensor]
    before: Tensor
    k: int
    scale: float
    n_steps: int
    measure: str
    draws: QueryDraws

    def to_dict(self) -> dict[str, list[float]]:
        """{name: [value, low, high]}."""
        return {row["name"]: [row["value"], row["low"], row["high"]] for row in self.table.to_dict("records")}

    def difference(self, first: str, second: str) -> list[float]:
        """[value, low, high] of `first` minus `second`: paired, on the same queries and bootstrap draws.

        Raises:
            UnknownNameError: A name is not in the table.
        """
        return self.draws.difference(self.per_query, first, second)


def tail_patch(
    task: Task,
    train: Examples,
    queries: Examples,
    scores: ScoreMatrix | Mapping[str, ScoreMatrix],
    recipe: Recipe,
    *,
    k: int = 10,
    scale: float = 1.0,
    engine: StepEngine = "auto",
    dtype: torch.dtype | None = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> TailPatch:
    """Train the final model for one step on each proponent alone, and see how much better its query became.

    Better is a lower loss or a higher log-probability, as the measure has it, so that good scores give positive values:
    value[q] = -o_q * scale * mean over the k proponents of (measure after - measure before). The controls say what a
    step on random examples, and on the k with the lowest scores, does. A tail-patch says what examples *add* now, which
    favours those not yet learned, and is no leave-out effect.

    For language models the published number is a mean per-token log-probability times 100: build the task with
    `reduction="mean"` and `measure="log_probability"`, and pass `scale=100`.

    Args:
        task: The final model and its contract, in eval mode; not changed.
        train: Train examples.
        queries: Whose measures are taken.
        scores: One matrix, or several by name. Ids are matched; extra ones are ignored.
        recipe: The step: optimizer, learning rate and constants; see `one_step` for what else of it counts. Use the
            rate of the end of training; Adam's fresh first step is large.
        k: Proponents of each query: the k highest scores, whatever their sign.
        scale: Factor on the measure.
        engine: As in `one_step`.
        dtype: As in `one_step`; float64 where changes are small beside the measure.
        n_bootstrap: Replicates; queries are resampled.
        confidence: Coverage the interval aims at.
        seed: Of the bootstrap and of the random examples.
    Returns:
        Values in units of the measure times `scale`. With one query there is no interval.
    Raises:
        InputError: Something does not fit; before any step.
        DataError: A query or a train example has no scores.
        NonFiniteError: A step gave a measure that is NaN or infinite.
    Cost:
        (number of distinct examples taken) x (one forward and backward pass of it, and a forward pass of the queries
        that it was taken for).
    Reference:
        Chang et al. (2024), arXiv:2410.17413, the tail-patch score.
    """
    require_count(k, "k")
    require_positive(scale, "scale")
    if k > len(train):
        raise InputError(f"`k`={k} examples of each query were asked for; there are {len(train)} train examples.")
    draws = QueryDraws.of(len(queries), n_bootstrap, confidence, seed)
    by_name = named(scores, [RANDOM])
    taken = {name: ranked(matrix, queries, train, k) for name, matrix in by_name.items()}
    lowest = {name + BOTTOM: ranked(m, queries, train, k, lowest=True) for name, m in by_name.items()}
    clash = lowest.keys() & taken.keys()
    if clash:
        raise InputError(f"{clash.pop()!r} is the name of a control. Call these scores something else.")
    taken = {**taken, **lowest, RANDOM: random_order(queries, train, k, seed)}
    gains, before, n_steps = _gains(task, train, queries, recipe, taken, engine, dtype)
    gains = {name: scale * found for name, found in gains.items()}
    per_query = {name: found.mean(1) for name, found in gains.items()}
    rows = [
        {"name": name, **draws.summary(values, None if name == RANDOM else per_query[RANDOM])}
        for name, values in per_query.items()
    ]
    table = pd.DataFrame(rows, columns=["name", *SUMMARY])
    return TailPatch(table, per_query, gains, before, k, scale, n_steps, task.measure.name, draws)


def _gains(
    task: Task,
    train: Examples,
    queries: Examples,
    recipe: Recipe,
    taken: Mapping[str, Tensor],
    engine: StepEngine,
    dtype: torch.dtype | None,
) -> tuple[dict[str, Tensor], Tensor, int]:
    """How much better each query became by a step on each example taken for it; every pair is looked at once."""
    rows = torch.arange(len(queries))[:, None] * len(train)
    asked = torch.cat([rows + columns for columns in taken.values()], dim=1)
    codes, places = torch.unique(asked, return_inverse=True)
    pairs = torch.stack([codes // len(train), codes % len(train)], dim=1)
    found = one_step(task, train, queries, recipe, pairs, engine=engine, dtype=dtype)
    better = -task.measure.orientation * (found.after - found.before[pairs[:, 0]])
    widths = [columns.shape[1] for columns in taken.values()]
    parts = better[places].split(widths, dim=1)  # type: ignore[no-untyped-call]
    return dict(zip(taken, parts, strict=True)), found.before, found.n_steps
