"""What scores predict for each left-out set, laid out like the outcomes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from whence.errors import InputError
from whence.scores import Id, Outcomes, ScoreMatrix, center


def method_name(scores: ScoreMatrix | Mapping[int, ScoreMatrix]) -> str:
    """The one method that all matrices come from."""
    names = {scores.method} if isinstance(scores, ScoreMatrix) else {matrix.method for matrix in scores.values()}
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "nothing"
        raise InputError(f"Scores for several amounts must come from one method; got {found}. Compare one at a time.")
    return names.pop()


def predict(scores: ScoreMatrix | Mapping[int, ScoreMatrix], outcomes: Outcomes) -> Tensor:
    """The score of a left-out set is the sum of its members' scores. -> (n_points, n_query, n_sets) float64.

    Rows and columns are found by id. One matrix serves all points; a mapping has one for each.

    Raises:
        InputError: The mapping lacks a point of the outcomes.
        DataError: A query or a left-out example has no scores; the missing ids are listed.
    """
    if isinstance(scores, ScoreMatrix):
        return _set_scores(scores, outcomes).expand(len(outcomes.points), -1, -1)
    missing = [point for point in outcomes.points if point not in scores]
    if missing:
        raise InputError(
            f"The outcomes were measured at {list(outcomes.points)} {outcomes.point_unit}; scores for "
            f"{missing} are missing. Pass `at=gold.points` to `attribute`."
        )
    return torch.stack([_set_scores(scores[point], outcomes) for point in outcomes.points])


def _set_scores(scores: ScoreMatrix, outcomes: Outcomes) -> Tensor:
    members: list[Id] = list(dict.fromkeys(x for ids in outcomes.left_out for x in ids))
    values = scores.select(query_ids=outcomes.query_ids, train_ids=members).values.double()
    position = {x: i for i, x in enumerate(members)}
    # Set by set, not one product: sums of equally many equal scores must stay equal to the last bit.
    sums = [values[:, [position[x] for x in ids]].sum(1) for ids in outcomes.left_out]
    return torch.stack(sums, dim=1)


def adjusted(effects: Tensor, outcomes: Outcomes) -> Tensor:
    """`effects` (..., n_sets) as they are compared: centered among sets of one size under the `mean` adjustment.

    Averages over seeds of centered effects are centered already; this makes it hold to rounding for every subset.
    """
    return center(effects, outcomes.set_sizes) if outcomes.adjustment == "mean" else effects
