"""What makes learned weights safer: contributions without hubs, weights that are not too concentrated, and a guard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from whence.errors import InputError
from whence.task import GroupWeights
from whence.weights.by_group import Contributions
from whence.weights.stream import ContributionStream

Either = TypeVar("Either", Contributions, ContributionStream)
PRECISION = 1e-9  # of the share that an entropy floor mixes in


def without_hubs(found: Either) -> Either:
    """Contributions less their mean over the queries, for each train example and group.

    A train example that scores high with every query, because of a large gradient for instance, says nothing about any
    of them, and is what the objective rewards most. For learning only: scores keep it.

    Args:
        found: At least two queries.
    Raises:
        InputError: There is one query.
    """
    if len(found.query_ids) < 2:
        raise InputError("Hubs are seen over several queries; there is one. Use more learning queries.")
    if isinstance(found, Contributions):
        return replace(found, values=found.values - found.values.mean(0, keepdim=True))
    whole = found.blocks

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        for part, block in whole():
            yield part, block - block.mean(1, keepdim=True)

    return replace(found, blocks=blocks)


def with_entropy_floor(weights: GroupWeights, floor: float) -> GroupWeights:
    """Weights moved towards uniform ones until their entropy is at least `floor` (1 is uniform, 0 a single group).

    Raises:
        InputError: `floor` is outside [0, 1].
    """
    if not 0 <= floor <= 1:
        raise InputError(f"`floor` must be in [0, 1], where 1 means uniform weights; got {floor!r}.")
    if weights.entropy >= floor:
        return weights
    low, high = 0.0, 1.0  # share of uniform weights: too little, enough
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if _mixed(weights, middle).entropy >= floor else (middle, high)
    return _mixed(weights, high)


def _mixed(weights: GroupWeights, share: float) -> GroupWeights:
    values = torch.lerp(weights.values, torch.ones_like(weights.values), share)
    return replace(weights, values=values, facts={**weights.facts, "uniform_share": share})


def guarded(candidates: Sequence[GroupWeights]) -> GroupWeights:
    """The candidate with the lowest loss on the held-out learning queries; the first of equal ones.

    Put the safe choices first: `guarded([uniform, rms, learned])` learns only where that helps on queries it was not
    learned from. The loss is the objective's own, so that where the objective is wrong the guard is blind too.

    Args:
        candidates: From `learn_weights` on the same contributions with the same settings.
    Returns:
        One of them; its facts say what was chosen from (`guard`).
    Raises:
        InputError: A candidate has no loss on held-out queries.
    """
    losses = {}
    for k, one in enumerate(candidates):
        loss = (one.facts.get("held_out") or {}).get("loss")
        if loss is None:
            raise InputError(
                f"The weights {one.name!r} have no loss on held-out queries. Learn them with `holdout` above 0."
            )
        losses[k] = float(loss["weights"])
    if not losses:
        raise InputError("`candidates` is empty: there is nothing to choose from.")
    best = min(losses, key=losses.__getitem__)
    names = [one.name for one in candidates]
    facts = {"chosen": names[best], "losses": [[name, losses[k]] for k, name in enumerate(names)]}
    return replace(candidates[best], facts={**candidates[best].facts, "guard": facts})
