"""Horizon with look-ahead: the model also moves while it trains without the example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from whence.algebra import Horizon, Steps
from whence.checks import look_up
from whence.curvature import GaussNewton
from whence.gradients import moved_outputs
from whence.methods.horizon import curvature_settings
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole
from whence.training import Recipe

LookAhead = Literal["exact", "both_shifts"]


def horizon_ahead(
    inputs: Inputs,
    *,
    recipe: Recipe,
    at: tuple[int, ...],
    look_ahead: LookAhead = "exact",
    form: str = "auto",
) -> dict[int, Result]:
    """Scores of the linearised model's own further training: no constant gradient, no fixed point.

    Leaving out i changes step t by (lr/n) b_i(theta_t), with b_i taken where training on all data has moved the
    outputs by then, and the query is measured where they end:

        (o_q / n) a_q^T [ f(C) b_i - sum_ab u_a F_ab (u_a^T J_i^T V_i J_i u_b) (u_b^T grad R) ],  a_q at f_q + J_q Delta

    with Delta = -f(C) grad R and F the second divided difference of (1 - lr s)^T (momentum and schedules by their
    recurrence). Exact to rounding for a linear model with squared error; for cross-entropy the loss's slope along the
    way is expanded to first order. "both_shifts" takes b_i at the predicted *final* outputs instead: one product
    less, and no expansion of the slope. For Adam all of this is in coordinates scaled by its second moment, as in
    `horizon`: exact for a linear model with squared error, if the second moment were constant.

    Args:
        inputs: Task, train set, queries.
        recipe: Further training, as in `horizon`.
        at: Amounts of training, in the recipe's unit.
        look_ahead: "exact" or "both_shifts".
        form: As in `influence_gn`.
    Raises:
        NumericalError: lr times the largest eigenvalue is 2 or more.
        UnsupportedError: Gradients are clipped, or a decay is not followed; see `horizon`.
    Cost:
        As `horizon`, and per amount one pass of query gradients and, for "exact", one product with the eigenvectors.
    Reference:
        Proposition 1 of Wei et al. (2025), arXiv:2412.03906, has the gradient after further training on all data in
        its correction term; the sum over the steps is worked out here.
    """
    score = look_up(LOOK_AHEADS, look_ahead, "look_ahead")
    runs = {amount: recipe.scaled_dynamics(amount, inputs.n_train) for amount in at}
    curvature = inputs.curvature_of(recipe, form)
    results = {}
    for amount, steps in runs.items():
        motion = curvature.displacement(Horizon(steps), steps.weight_decay)
        dtype = curvature.linear.dtype
        ahead = moved_outputs(inputs.task, inputs.queries, motion, dtype=dtype)
        queries = inputs.query_side(ahead, dtype)
        values = inputs.orientation * score(curvature, steps, queries, motion)
        settings = {**Horizon(steps).describe(), **curvature_settings(curvature), "look_ahead": look_ahead}
        results[amount] = whole(values, settings)
    return results


def _exact(curvature: GaussNewton, steps: Steps, queries: Tensor, motion: Tensor) -> Tensor:
    return curvature.scores(Horizon(steps), queries) - curvature.look_ahead(steps, queries)


def _both_shifts(curvature: GaussNewton, steps: Steps, queries: Tensor, motion: Tensor) -> Tensor:
    return curvature.scores(Horizon(steps), queries, curvature.slopes_after(motion))


LOOK_AHEADS: dict[str, Callable[[GaussNewton, Steps, Tensor, Tensor], Tensor]] = {
    "exact": _exact,
    "both_shifts": _both_shifts,
}
HORIZON_AHEAD = Preset(
    "horizon_ahead",
    "horizon that follows the model's own motion during further training",
    horizon_ahead,
    curvature="gauss_newton",
    filter="horizon",
    train_side="loss gradient, looked ahead",
    has_unit=True,
    by_amount=True,
)
