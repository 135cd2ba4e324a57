"""Influence functions with the Gauss-Newton curvature, exact."""

from __future__ import annotations

from whence.algebra import Damping
from whence.algebra.filters import ResolvableFilter
from whence.methods.filters import chosen_filter
from whence.methods.horizon import RecipeFilter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole


def influence_gn(
    inputs: Inputs,
    *,
    damping: Damping | None = None,
    filter: ResolvableFilter | RecipeFilter | None = None,
    form: str = "auto",
) -> Result:
    """(o_q / n) a_q^T (C + damping I)^-1 b_i, or with any other filter f(C) in the place of the inverse.

    Args:
        inputs: Task, train set, queries.
        damping: Default a tenth of C's mean eigenvalue.
        filter: Instead of the damped inverse, for instance `horizon(recipe)`.
        form: "auto", "dual", "primal" or "krylov"; all give the same scores.
    Cost:
        See `fit_gauss_newton`; then one product per query, whatever the filter.
    Reference:
        Koh and Liang (2017), arXiv:1703.04730; for any final model, stationary or not, Wei et al. (2025),
        arXiv:2412.03906, Corollary 2 without its correction term.
    """
    chosen = chosen_filter(damping, filter, inputs.n_train)
    curvature = inputs.gauss_newton(form)
    used = curvature.resolve(chosen)
    values = curvature.scores(used, inputs.query_gradients_in(curvature.linear.dtype))
    return whole(inputs.orientation * values, {**used.describe(), "form": curvature.form_name})


INFLUENCE_GN = Preset(
    "influence_gn",
    "influence function, exact damped Gauss-Newton inverse",
    influence_gn,
    curvature="gauss_newton",
    filter="damped_inverse",
    has_unit=True,
)
