"""Influence functions with the Gauss-Newton curvature, solved by conjugate gradients."""

from __future__ import annotations

from collections.abc import Iterator

from whence.algebra import Damping, conjugate_gradient
from whence.curvature import KrylovForm
from whence.gradients import loss_products
from whence.methods.filters import DEFAULT_DAMPING, damping_filter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock


def influence_cg(
    inputs: Inputs,
    *,
    damping: Damping | None = None,
    tolerance: float = 1e-5,
    max_iterations: int | None = None,
    allow_unconverged: bool = False,
) -> Result:
    """(o_q / n) a_q^T (C + damping I)^-1 b_i with one Krylov space per query, all queries at once.

    Args:
        inputs: Task, train set, queries.
        damping: Default a tenth of C's mean eigenvalue.
        tolerance: Residual over the norm of the query's gradient.
        max_iterations: Default ten times the number of parameters.
        allow_unconverged: Return what was reached, with the residual in the provenance, instead of raising.
    Raises:
        ConvergenceError: The tolerance was not reached.
    Cost:
        One product with C per iteration for all queries, then one pass over the train set.
    Reference:
        Martens (2010), Deep learning via Hessian-free optimization; Koh and Liang (2017), arXiv:1703.04730.
    """
    chosen = damping_filter(DEFAULT_DAMPING if damping is None else damping)
    curvature = inputs.gauss_newton("krylov")
    assert isinstance(curvature.form, KrylovForm)
    used = curvature.resolve(chosen).resolve()
    shift = float(used.describe()["damping"])  # type: ignore[arg-type]
    dtype = curvature.linear.dtype
    solved = conjugate_gradient(
        curvature.form.operator,
        inputs.query_gradients_in(dtype),
        [shift],
        tolerance=tolerance,
        max_iterations=max_iterations,
        allow_unconverged=allow_unconverged,
    )
    directions = inputs.orientation * solved.solutions[0] / inputs.n_train

    def blocks() -> Iterator[ScoreBlock]:
        for part, products in loss_products(inputs.task, inputs.train, directions, dtype=dtype):
            yield ScoreBlock(part, products)

    residual = float(solved.relative_residuals.max())
    return Result(blocks, {**used.describe(), "iterations": solved.iterations, "worst_relative_residual": residual})


INFLUENCE_CG = Preset(
    "influence_cg",
    "influence function, damped Gauss-Newton inverse by conjugate gradients",
    influence_cg,
    curvature="gauss_newton",
    filter="damped_inverse",
    has_unit=True,
)
