"""Weights part of the way from uniform: half of the scores as they are, half as learned."""

from __future__ import annotations

from dataclasses import replace

import torch

from whence.errors import InputError
from whence.task import GroupWeights
from whence.weights.by_group import Contributions
from whence.weights.spread import centered_squares
from whence.weights.stream import ContributionStream


def mixed_with_uniform(
    weights: GroupWeights, found: Contributions | ContributionStream, share: float = 0.5
) -> GroupWeights:
    """Weights whose scores are a sum of unweighted and weighted ones, each in units of its own spread.

        w = share * 1 / s(1) + (1 - share) * w / s(w),    s(v)^2 = sum over q, i of (t_qi - mean_i t_qi)^2, t = C v

    A weighting that a label-free objective gets wrong then costs little, and one that it gets right is half gained: the
    mean of two estimates that err in different ways is often better than both.

    Args:
        weights: To be mixed in.
        found: Contributions that they were learned from, or others of the same groups.
        share: Of the unweighted scores, in [0, 1].
    Raises:
        InputError: The share is out of range, the weights are of other groups, or one of the two scores is constant.
    Cost:
        One pass over the contributions.
    Reference:
        Worked out here; see `docs/weights.md` for what it gains.
    """
    if not 0 <= share <= 1:
        raise InputError(f"`share` must be in [0, 1], where 1 means uniform weights; got {share!r}.")
    if weights.groups != found.groups:
        raise InputError(f"The weights {weights.name!r} are of other groups. Use the grouping of the contributions.")
    both = torch.stack([torch.ones_like(weights.values), weights.values])
    spread = centered_squares(found, lambda block: torch.einsum("rg,gqb->rqb", both, block)).sqrt()
    if not bool((spread > 0).all()):
        raise InputError("Scores that are the same for all train examples have no spread. Use other queries.")
    values = torch.tensor([share, 1 - share], dtype=torch.float64) / spread @ both
    return replace(weights, values=values, facts={**weights.facts, "unweighted_share": share})
