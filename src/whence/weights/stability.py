"""How alike weights are: between folds of the learning queries, between methods, between data sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import pandas as pd
import torch
from torch import Tensor

from whence.checks import require_count
from whence.errors import InputError
from whence.rng import torch_generator
from whence.task import GroupWeights
from whence.weights.by_group import Contributions
from whence.weights.learning import learn_weights


@dataclass(frozen=True)
class Likeness:
    """Two weightings of the same groups beside each other.

    Attributes:
        cosine: Of the weights. Near 1 for any two: weights have no negative entries.
        centered: Cosine of what is left without the part that uniform weights share; NaN where one is uniform.
        spearman: Correlation of their ranks; NaN where one is uniform.
    """

    cosine: float
    centered: float
    spearman: float


def likeness(first: GroupWeights, second: GroupWeights) -> Likeness:
    """How alike two weightings are.

    Raises:
        InputError: They are of other groups.
    """
    if first.groups.names != second.groups.names:
        raise InputError(
            f"{first.name!r} has {len(first.groups)} groups, {second.name!r} {len(second.groups)}, and not the same. "
            "Compare weights of one grouping of one kind of model."
        )
    a, b = first.values, second.values
    ranks = [torch.tensor(pd.Series(x.numpy()).rank().to_numpy()) for x in (a, b)]
    return Likeness(_cosine(a, b), _cosine(a - a.mean(), b - b.mean()), _cosine(*(r - r.mean() for r in ranks)))


def _cosine(a: Tensor, b: Tensor) -> float:
    size = a.norm() * b.norm()
    return float(a @ b / size) if float(size) > 0 else float("nan")


@final
@dataclass(frozen=True, eq=False)
class Stability:
    """Weights learned on parts of the queries.

    Attributes:
        folds: One weighting for each fold, learned without it.
        table: A row for each group: group, mean, std, low, high over the folds.
        likeness: Mean over pairs of folds.
    """

    folds: tuple[GroupWeights, ...]
    table: pd.DataFrame
    likeness: Likeness

    @classmethod
    def of(cls, folds: Sequence[GroupWeights]) -> Stability:
        """Of the weights of at least two folds."""
        return cls(tuple(folds), _spread(folds), _mean_likeness(folds))

    @classmethod
    def by(
        cls, learn: Callable[[Contributions], GroupWeights], found: Contributions, *, folds: int = 5, seed: int = 0
    ) -> Stability:
        """Of what `learn` makes of the queries without one fold after the other; as `stability`."""
        return cls.of([learn(part) for part in _parts(found, folds, seed)])


def stability(
    found: Contributions, solver: str = "nnls", *, folds: int = 5, seed: int = 0, **options: Any
) -> Stability:
    """Learn as often as there are folds, each time without one of them.

    Args:
        found: Contributions of the learning queries.
        solver, options: As in `learn_weights`.
        folds: At least 2.
        seed: Of the split into folds.
    Raises:
        InputError: Fewer queries than folds.
    Cost:
        `folds` times that of `learn_weights`.
    """
    return Stability.by(lambda rows: learn_weights(rows, solver, holdout=0.0, **options), found, folds=folds, seed=seed)


def _parts(found: Contributions, folds: int, seed: int) -> Iterator[Contributions]:
    """The queries that are left when one fold after the other is taken away."""
    require_count(folds, "folds", minimum=2)
    n_query = len(found.query_ids)
    if n_query < folds:
        raise InputError(f"{n_query} queries cannot be split into {folds} folds. Use fewer folds.")
    order = torch.randperm(n_query, generator=torch_generator(seed, "folds")).tolist()
    away = [set(order[k::folds]) for k in range(folds)]
    for one in away:
        yield found.rows([q for q in range(n_query) if q not in one])


def _spread(weights: Sequence[GroupWeights]) -> pd.DataFrame:
    values = torch.stack([one.values for one in weights])
    return pd.DataFrame(
        {
            "group": weights[0].groups.names,
            "mean": values.mean(0).numpy(),
            "std": values.std(0).numpy(),
            "low": values.amin(0).numpy(),
            "high": values.amax(0).numpy(),
        }
    )


def _mean_likeness(weights: Sequence[GroupWeights]) -> Likeness:
    pairs = [likeness(a, b) for a, b in itertools.combinations(weights, 2)]
    return Likeness(
        *(sum(getattr(one, name) for one in pairs) / len(pairs) for name in ("cosine", "centered", "spearman"))
    )
