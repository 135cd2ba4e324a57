"""Which train examples are taken for each query: those a score matrix ranks first or last, and random ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import InputError
from whence.rng import numpy_generator
from whence.scores import ScoreMatrix

RANDOM: Final = "random examples"
SAME_CLASS: Final = "random examples of the class"


def named(scores: ScoreMatrix | Mapping[str, ScoreMatrix], reserved: Iterable[str]) -> dict[str, ScoreMatrix]:
    """Score matrices by name; a single one goes by its method.

    Raises:
        InputError: There is none, or one has the name of a control.
    """
    found = {scores.method: scores} if isinstance(scores, ScoreMatrix) else dict(scores)
    if not found:
        raise InputError("`scores` holds no score matrix: pass at least one.")
    taken = [name for name in reserved if name in found]
    if taken:
        raise InputError(f"{taken[0]!r} is the name of a control. Call these scores something else.")
    return found


def ranked(scores: ScoreMatrix, queries: Examples, train: Examples, k: int, *, lowest: bool = False) -> Tensor:
    """(n_query, k) train positions, highest score first (or lowest), equal scores by position, whatever their sign.

    Raises:
        DataError: A query or a train example has no scores.
    """
    values = scores.select(query_ids=queries.ids, train_ids=train.ids).values
    return values.sort(dim=1, descending=not lowest, stable=True).indices[:, :k]


def random_order(queries: Examples, train: Examples, k: int, seed: int) -> Tensor:
    """(n_query, k) random train positions of each query; they depend on ids alone, not on the order of the data."""
    return torch.stack([torch.tensor(_shuffled(_by_id(train), seed, id)[:k]) for id in queries.ids])


def random_of_class(
    queries: Examples, train: Examples, query_labels: Tensor, train_labels: Tensor, k: int, seed: int
) -> list[Tensor]:
    """For each query at most `k` random train positions of its own class, as many as there are; ids as above."""
    ordered = _by_id(train)
    labels = train_labels.tolist()
    orders = []
    for id, label in zip(queries.ids, query_labels.tolist(), strict=True):
        pool = [i for i in ordered if labels[i] == label]
        orders.append(torch.tensor(_shuffled(pool, seed, id, "class")[:k], dtype=torch.int64))
    return orders


def _by_id(train: Examples) -> list[int]:
    return sorted(range(len(train)), key=lambda i: train.ids[i])


def _shuffled(pool: list[int], seed: int, *names: object) -> list[int]:
    order = numpy_generator(seed, "random examples", *names).permutation(len(pool))
    return [pool[i] for i in order.tolist()]
