"""Few-shot supervision: weights that make scores predict a few outcomes, of retraining or of further training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from whence.checks import require_positive
from whence.errors import DataError, InputError
from whence.scores import Outcomes
from whence.task import GroupWeights
from whence.weights.by_group import Contributions
from whence.weights.quotient import inverse
from whence.weights.solvers.nnls import non_negative_least_squares

ROUNDS = 50
TOLERANCE = 1e-10
PARTS = 5
Choice = tuple[int, float]  # which weights to stay near, and the ridge
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)  # times the mean diagonal of the normal equations


def fit_weights(
    found: Contributions,
    outcomes: Outcomes,
    *,
    point: int | None = None,
    ridge: float | None = None,
    towards: GroupWeights | Sequence[GroupWeights] | None = None,
) -> GroupWeights:
    """Non-negative weights whose summed scores come nearest to what leaving sets out did.

    For each query q and left-out set S the scores of group j add up to P[q, S, j]. Both these and the outcomes are
    taken as differences from their mean over the sets. Only their correlation counts, query by query: outcomes have
    norm 1, and so has P_q x at the weights x of the round before:

        min_{x >= 0} sum_q |y_q - P_q x|^2 + ridge |x - c p|^2

    with groups in units of their root mean square, and c p the multiple of the weights `towards` that fits best: with
    few outcomes the weights stay near these. With outcomes of further training the weights make a method follow that.

    Args:
        found: Contributions of the queries that `outcomes` has; others are left out.
        outcomes: Of `retrain` or `further_train`, for train sets that no evaluation uses.
        point: Amount of training; default the last.
        ridge: Times the mean diagonal of the normal equations; default chosen among 0.01 to 100 by leaving out a fifth
            of the sets at a time.
        towards: Weights of the same groups to stay near; default RMS weights. Of several those are taken that, with
            their ridge, predict left-out fifths of the sets best: outcomes tell label-free weights apart that no
            label-free loss can.
    Returns:
        Weights with mean 1. `facts`: queries, sets, ridge, what they stay near, and the share of the variance
        explained, also by uniform and by RMS weights.
    Raises:
        InputError: Fewer than 5 sets, no common queries, no outcome that varies, or no contribution that does; or
            `towards` is empty, of other groups, or has weight only where nothing contributes.
        DataError: A left-out example has no contributions.
    Cost:
        n_query x n_sets x n_groups, and small systems.
    Reference:
        Worked out here; the joint use of the papers of Wei et al. (2025), arXiv:2412.03906, and Li et al. (2026),
        arXiv:2506.05647.
    """
    if ridge is not None:
        require_positive(ridge, "ridge")
    near = _candidates(towards, found)
    sums, effects = _aligned(found, outcomes, point)
    sizes = sums.square().mean((0, 1)).sqrt()
    scale = inverse(sizes)
    predicted, truth = _varying(sums * scale, effects)
    priors = [_prior(one, sizes) for one in near]
    ridges = RIDGES if ridge is None else (ridge,)
    choices = [(p, strength) for p in range(len(priors)) for strength in ridges]
    p, chosen = _by_cross_validation(predicted, truth, priors, choices) if len(choices) > 1 else choices[0]
    x = _fitted(predicted, truth, chosen, priors[p])
    explained = {
        "uniform": _explained(predicted, truth, sizes),
        "rms": _explained(predicted, truth, (scale > 0).double()),
        "weights": _explained(predicted, truth, x),
    }
    facts: dict[str, Any] = {
        "solver": "few_shot",
        "queries": len(truth),
        "sets": truth.shape[1],
        "ridge": chosen,
        "towards": "rms" if (taken := near[p]) is None else taken.name,
        "explained": explained,
    }
    return GroupWeights(x * scale, found.groups, "few_shot", found.method, facts)


def _candidates(
    towards: GroupWeights | Sequence[GroupWeights] | None, found: Contributions
) -> Sequence[GroupWeights | None]:
    """Weights to stay near, None for RMS weights."""
    if towards is None:
        return [None]
    near = [towards] if isinstance(towards, GroupWeights) else list(towards)
    if not near:
        raise InputError("`towards` is empty. Give weights to stay near, or None for RMS weights.")
    for one in near:
        if one.groups != found.groups:
            raise InputError(f"The weights {one.name!r} are of other groups. Use the grouping of the contributions.")
    return near


def _prior(towards: GroupWeights | None, sizes: Tensor) -> Tensor:
    """(n_groups,) in units of the root mean squares `sizes`, with sum 1."""
    prior = (sizes > 0).double() if towards is None else towards.values * sizes
    if not bool(prior.any()):
        raise InputError("`towards` has weight only in groups that contribute nothing. Use other weights.")
    return prior / prior.sum()


def _aligned(found: Contributions, outcomes: Outcomes, point: int | None) -> tuple[Tensor, Tensor]:
    """Sums of contributions over each left-out set (q, s, g), and effects (q, s), less their means over sets."""
    n_sets = len(outcomes.left_out)
    if n_sets < 5:
        raise InputError(f"Weights are fitted to at least 5 left-out sets; the outcomes have {n_sets}.")
    if point is not None and point not in outcomes.points:
        raise InputError(f"No outcomes at {point}; there are {list(outcomes.points)}.")
    p = len(outcomes.points) - 1 if point is None else outcomes.points.index(point)
    where = {id: q for q, id in enumerate(found.query_ids)}
    ours = [(where[id], k) for k, id in enumerate(outcomes.query_ids) if id in where and bool(outcomes.defined(p)[k])]
    if not ours:
        raise InputError("Contributions and outcomes share no query that reacts. Use the same learning queries.")
    rows, columns = map(list, zip(*ours, strict=True))
    values = found.values[rows].double()
    places = {id: i for i, id in enumerate(found.train_ids)}
    missing = [id for ids in outcomes.left_out for id in ids if id not in places]
    if missing:
        raise DataError(f"Left-out example {missing[0]!r} has no contributions. Use those of the whole train set.")
    sums = torch.stack([values[:, [places[id] for id in ids]].sum(1) for ids in outcomes.left_out], 1)
    effects = outcomes.effects[:, p].mean(0)[columns]
    return sums - sums.mean(1, keepdim=True), effects - effects.mean(1, keepdim=True)


def _varying(sums: Tensor, effects: Tensor) -> tuple[Tensor, Tensor]:
    """The queries whose outcomes and sums differ between sets; outcomes with norm 1."""
    size = effects.norm(dim=1)
    use = (size > 0) & (sums.flatten(1).norm(dim=1) > 0)
    if not bool(use.any()):
        raise InputError("No outcome, or no contribution, varies between the left-out sets. Use other sets or queries.")
    return sums[use], effects[use] / size[use, None]


def _fitted(sums: Tensor, truth: Tensor, ridge: float, prior: Tensor) -> Tensor:
    """x >= 0 (g,) with sum 1, each round with predictions of norm 1 at the weights before.

    Raises:
        InputError: No group predicts the outcomes.
    """
    x = prior
    for _ in range(ROUNDS):
        size = (sums @ x).norm(dim=1)
        new = _solve(sums / torch.where(size > 0, size, torch.inf)[:, None, None], truth, ridge, prior)
        total = float(new.sum())
        if total <= 0:
            raise InputError("No group predicts these outcomes. Use more sets, more seeds, or another method.")
        moved, x = float((new / total - x).abs().sum()), new / total
        if moved < TOLERANCE:
            break
    return x


def _solve(predicted: Tensor, truth: Tensor, ridge: float, prior: Tensor) -> Tensor:
    """x >= 0, (g,)."""
    rows, y = predicted.flatten(0, 1), truth.flatten()
    a, b = rows.T @ y, rows.T @ rows
    whole = rows @ prior
    level = float((whole @ y) / whole.square().sum()) if bool(whole.any()) else 0.0
    strength = ridge * float(b.diagonal().mean())
    n = len(a)
    return non_negative_least_squares(
        b + strength * torch.eye(n, dtype=b.dtype), a + strength * max(level, 0.0) * prior
    )


def _by_cross_validation(sums: Tensor, truth: Tensor, priors: Sequence[Tensor], choices: Sequence[Choice]) -> Choice:
    """The choice whose weights predict sets best that they were not fitted to; every fifth set is one part."""
    n_sets = truth.shape[1]
    gains = dict.fromkeys(choices, 0.0)
    for first in range(PARTS):
        away = torch.arange(first, n_sets, PARTS)
        kept = torch.tensor([s for s in range(n_sets) if s % PARTS != first])
        for choice in choices:
            x = _fitted(sums[:, kept], truth[:, kept], choice[1], priors[choice[0]])
            size = (sums[:, kept] @ x).norm(dim=1)  # of these predictions: those of the sets away have no other scale
            predicted = sums[:, away] @ x / torch.where(size > 0, size, torch.inf)[:, None]
            gains[choice] -= float((truth[:, away] - predicted).square().sum())
    return max(gains, key=gains.__getitem__)


def _explained(predicted: Tensor, truth: Tensor, x: Tensor) -> float:
    """Mean over queries of the squared correlation of summed scores and outcomes, with the sign of the correlation."""
    found = predicted @ x
    size = found.norm(dim=1) * truth.norm(dim=1)
    r = torch.where(size > 0, (found * truth).sum(1) / size, 0.0)
    return float((r * r.abs()).mean())
