"""Influence functions with the Gauss-Newton curvature, solved by conjugate gradients."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from whence.algebra import CGResult, DampedInverse, Damping, SymmetricOperator, block_krylov, conjugate_gradient
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
    """(o_q / n) a_q^T (C + damping I)^-1 b_i by conjugate gradients, all queries at once.

    All queries share one block Krylov space, which takes far fewer products a query than a space for each. Where it
    outgrows its memory (see `block_krylov`), or a number of iterations is asked for, each has its own.

    Args:
        inputs: Task, train set, queries.
        damping: Default a tenth of C's mean eigenvalue.
        tolerance: Residual over the norm of the query's gradient.
        max_iterations: Of each query in a space of its own; default ten times the number of parameters.
        allow_unconverged: Return what was reached, with the residual in the provenance, instead of raising.
    Raises:
        ConvergenceError: The tolerance was not reached.
    Cost:
        One product with C for each vector of the shared space; then see `loss_products`.
    Reference:
        O'Leary (1980), doi:10.1016/0024-3795(80)90247-5; Martens (2010), Deep learning via Hessian-free optimization;
        Koh and Liang (2017), arXiv:1703.04730.
    """
    chosen = damping_filter(DEFAULT_DAMPING if damping is None else damping)
    curvature = inputs.gauss_newton("krylov")
    assert isinstance(curvature.form, KrylovForm)
    used = curvature.resolve(chosen)
    assert isinstance(used, DampedInverse)
    dtype = curvature.linear.dtype
    queries, operator = inputs.query_gradients_in(dtype), curvature.form.operator
    solved = None if max_iterations is not None else _in_one_space(operator, queries, used.damping, tolerance)
    is_shared = solved is not None
    if solved is None:
        solved = conjugate_gradient(
            operator,
            queries,
            [used.damping],
            tolerance=tolerance,
            max_iterations=max_iterations,
            allow_unconverged=allow_unconverged,
        )
    directions = inputs.orientation * solved.solutions[0] / inputs.n_train

    def blocks() -> Iterator[ScoreBlock]:
        for part, products in loss_products(inputs.task, inputs.train, directions, dtype=dtype):
            yield ScoreBlock(part, products)

    residual = float(solved.relative_residuals.max())
    facts = {"iterations": solved.iterations, "shared_space": is_shared, "worst_relative_residual": residual}
    return Result(blocks, {**used.describe(), **facts})


def _in_one_space(operator: SymmetricOperator, queries: Tensor, shift: float, tolerance: float) -> CGResult | None:
    """None for a single query, and where the space was full before the tolerance was reached."""
    if len(queries) == 1:
        return None
    found = block_krylov(operator, queries, [shift], tolerance=tolerance, allow_unconverged=True)
    return found if bool(found.converged.all()) else None


INFLUENCE_CG = Preset(
    "influence_cg",
    "influence function, damped Gauss-Newton inverse by conjugate gradients",
    influence_cg,
    curvature="gauss_newton",
    filter="damped_inverse",
    has_unit=True,
)
