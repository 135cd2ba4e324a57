"""Horizon: the filter of exactly the further training that is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from whence.algebra import Flow, Horizon, SpectralFilter
from whence.curvature import GaussNewton
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole
from whence.training import Recipe


@dataclass(frozen=True)
class RecipeFilter:
    """A horizon that still has to know the size of the train set, since epochs are counted in it."""

    recipe: Recipe
    amount: int
    flow: bool

    def bind(self, n_train: int) -> SpectralFilter:
        """The filter for a train set of `n_train` examples."""
        steps = self.recipe.dynamics(self.amount, n_train)
        return Flow.matching(steps) if self.flow else Horizon(steps)


def horizon_filter(recipe: Recipe, amount: int | None = None, *, flow: bool = False) -> RecipeFilter:
    """The filter of further training by `recipe`, for `attribute(..., method="influence_gn", filter=...)`.

    Adam has none, since it also scales the curvature: use the method `horizon`.

    Args:
        recipe: Plain or momentum SGD.
        amount: In the recipe's unit; default all of it.
        flow: The gradient flow of the same length, which accepts any learning rate.
    """
    (checked,) = recipe.check_points([recipe.amount if amount is None else amount])
    return RecipeFilter(recipe, checked, flow)


def horizon(
    inputs: Inputs, *, recipe: Recipe, at: tuple[int, ...], flow: bool = False, form: str = "auto"
) -> dict[int, Result]:
    """(o_q / n) a_q^T f(C) b_i with f the steps of the recipe run on each eigen-direction of the Gauss-Newton matrix.

    With plain gradient descent f(s) = (1 - (1 - lr s)^T) / s: little training is Grad-Dot, much training an influence
    function, and nothing is tuned. The model's own motion is neglected; `horizon_ahead` follows it.

    Adam divides each parameter's gradient by sqrt(v) + eps. With v taken as constant (`adam_preconditioner` says where
    that fails) it is momentum descent on P^(1/2) C P^(1/2), P = 1 / (sqrt(v) + eps), and the scores are

        (o_q / n) a_q^T P^(1/2) f(P^(1/2) C P^(1/2)) P^(1/2) b_i.

    Args:
        inputs: Task, train set, queries.
        recipe: Further training; plain or momentum SGD, any schedule, weight decay; Adam without weight decay, with any
            schedule; AdamW, with decay at a constant learning rate. Mini-batches count as their mean.
        at: Amounts of training, in the recipe's unit.
        flow: Use the gradient flow of the same length, which accepts any learning rate.
        form: As in `influence_gn`.
    Raises:
        NumericalError: lr times the largest eigenvalue is 2 or more: training diverges, and the filter with it.
        UnsupportedError: Gradients are clipped, or a decay as above is not followed.
    Cost:
        One curvature for all amounts; see `fit_gauss_newton`. For Adam one more pass of per-example gradients.
    """
    runs = {amount: recipe.scaled_dynamics(amount, inputs.n_train) for amount in at}
    curvature = inputs.curvature_of(recipe, form)
    queries = inputs.query_gradients_in(curvature.linear.dtype)
    results = {}
    for amount, steps in runs.items():
        used: SpectralFilter = Flow.matching(steps) if flow else Horizon(steps)
        values = inputs.orientation * curvature.scores(used, queries)
        results[amount] = whole(values, {**used.describe(), **curvature_settings(curvature)})
    return results


def curvature_settings(curvature: GaussNewton) -> dict[str, Any]:
    """Facts of a curvature for the settings of scores: its form, and the preconditioner where there is one."""
    settings: dict[str, Any] = {"form": curvature.form_name}
    if curvature.linear.scale is not None:
        diagonal = curvature.linear.scale.square()
        facts = {"mean": diagonal.mean(), "min": diagonal.min(), "max": diagonal.max()}
        settings["preconditioner"] = {name: float(value) for name, value in facts.items()}
    return settings


HORIZON = Preset(
    "horizon",
    "Gauss-Newton filtered by the further training itself",
    horizon,
    curvature="gauss_newton",
    filter="horizon",
    has_unit=True,
    by_amount=True,
)
