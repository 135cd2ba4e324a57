"""Influence functions on the few eigen-directions of largest curvature, found by Lanczos iteration (Arnoldi)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from whence.algebra import Damping, SymmetricOperator
from whence.algebra.filters import ResolvableFilter, SpectralFilter
from whence.algebra.ritz import RitzPairs, leading_pairs
from whence.checks import look_up
from whence.curvature import KrylovForm, hessian_operator
from whence.errors import InputError
from whence.gradients import loss_products
from whence.methods.filters import chosen_filter
from whence.methods.horizon import RecipeFilter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock

# Above this residual, relative to its eigenvalue, a kept pair counts as not converged: f of it may be off by as much.
CONVERGED = 1e-3


def arnoldi(
    inputs: Inputs,
    *,
    rank: int = 50,
    n_iterations: int = 200,
    curvature: str = "gauss_newton",
    damping: Damping | None = None,
    filter: ResolvableFilter | RecipeFilter | None = None,
    seed: int = 0,
) -> Result:
    """(o_q / n) sum_k (a_q . u_k) f(s_k) (u_k . b_i) over the `rank` eigenpairs of C of largest absolute value.

    All else is dropped: directions of small curvature too, along which a damped inverse would move furthest. So scores
    are not those of `influence_gn` unless the kept pairs span the train gradients; they agree where `rank` reaches the
    rank of C. The paper inverts without damping: take a small absolute one.

    Args:
        inputs: Task, train set, queries.
        rank: Eigenpairs kept.
        n_iterations: Lanczos iterations, at least `rank`. The settings say how far the kept pairs are from
            converged: `ritz_residuals`, |C u - s u| / |s| of each, and `unconverged`, how many are above 0.001.
        curvature: "gauss_newton" or "hessian".
        damping: f(s) = 1 / (s + damping); default a tenth of the mean eigenvalue of C. The Hessian has no default, and
            needs an absolute one that exceeds its most negative kept eigenvalue.
        filter: Instead of the damped inverse.
        seed: Of the start vector.
    Raises:
        InputError: `rank` above `n_iterations`; a Hessian without damping or filter.
        NotPositiveDefiniteError: The filter refuses a negative eigenvalue that is kept.
    Cost:
        n_iterations products with C and n_iterations + rank vectors of memory; then one pass over the train set, of
        which `rank` numbers an example are used.
    Reference:
        Schioppa et al. (2022), arXiv:2112.03052.
    """
    operator_of = look_up(OPERATORS, curvature, "curvature")
    used, operator = operator_of(inputs, _chosen(inputs, curvature, damping, filter))
    pairs = leading_pairs(operator, rank=rank, n_iterations=n_iterations, seed=seed)
    used.check(float(pairs.values.min()), float(pairs.values.max()))
    queries = inputs.query_gradients_in(operator.dtype) @ pairs.vectors.T
    weighted = inputs.orientation / inputs.n_train * queries.double() * used(pairs.values)

    def blocks() -> Iterator[ScoreBlock]:
        for part, products in loss_products(inputs.task, inputs.train, pairs.vectors, dtype=operator.dtype):
            yield ScoreBlock(part, weighted @ products)

    return Result(blocks, {**used.describe(), "curvature": curvature, "seed": seed, **_facts(pairs)})


def _chosen(
    inputs: Inputs, curvature: str, damping: Damping | None, filter: ResolvableFilter | RecipeFilter | None
) -> ResolvableFilter:
    if damping is None and filter is None and curvature == "hessian":
        raise InputError(
            "'arnoldi' with the Hessian needs `damping` or `filter`: a Hessian has negative eigenvalues away from a "
            "minimum. Use `damping=Damping.absolute(...)` above the most negative one, or curvature='gauss_newton'."
        )
    return chosen_filter(damping, filter, inputs.n_train)


def _gauss_newton(inputs: Inputs, filter: ResolvableFilter) -> tuple[SpectralFilter, SymmetricOperator]:
    fitted = inputs.gauss_newton("krylov")
    assert isinstance(fitted.form, KrylovForm)
    return fitted.resolve(filter), fitted.form.operator


def _hessian(inputs: Inputs, filter: ResolvableFilter) -> tuple[SpectralFilter, SymmetricOperator]:
    return filter.resolve(), hessian_operator(inputs.task, inputs.train)


def _facts(pairs: RitzPairs) -> dict[str, Any]:
    relative = pairs.relative_residuals
    return {
        "rank": len(pairs.values),
        "n_iterations": pairs.n_iterations,
        "largest_eigenvalue": float(pairs.values.max()),
        "smallest_kept_eigenvalue": float(pairs.values.min()),
        "ritz_residuals": [value if value < float("inf") else None for value in relative.tolist()],
        "unconverged": int(torch.count_nonzero(~(relative <= CONVERGED))),
    }


OPERATORS: dict[str, Callable[[Inputs, ResolvableFilter], tuple[SpectralFilter, SymmetricOperator]]] = {
    "gauss_newton": _gauss_newton,
    "hessian": _hessian,
}
ARNOLDI = Preset(
    "arnoldi",
    "influence function on the largest eigenpairs of the curvature, by Lanczos iteration",
    arnoldi,
    curvature="gauss_newton or hessian, largest eigenpairs",
    filter="damped_inverse",
    has_unit=True,
)
