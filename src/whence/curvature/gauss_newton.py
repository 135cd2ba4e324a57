"""The Gauss-Newton curvature of the train loss, in the form that fits its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from whence.algebra import ResolvableFilter, SpectralFilter, Steps
from whence.checks import look_up, require_finite
from whence.curvature.dual import DualForm
from whence.curvature.krylov import KrylovForm
from whence.curvature.linearized import LinearizedTrain
from whence.curvature.primal import PrimalForm
from whence.data import Examples
from whence.errors import InputError
from whence.task import Task, working_dtype

LARGEST_DENSE = 6000  # rows or parameters up to which an eigen-decomposition is taken: 0.3 GB and about a minute


class Form(Protocol):
    """One way to apply functions of C = (1/n) sum_i J_i^T V_i J_i."""

    @property
    def linear(self) -> LinearizedTrain:
        """The linearised train set."""
        ...

    @property
    def mean_eigenvalue(self) -> float:
        """trace(C) / n_params."""
        ...

    @property
    def largest_eigenvalue(self) -> float:
        """Largest eigenvalue of C."""
        ...

    def solve(self, filter: ResolvableFilter, rows: Tensor) -> Tensor:
        """f(C) applied to rows (m, n_params)."""
        ...

    def scores(self, filter: ResolvableFilter, queries: Tensor, contrasts: Tensor) -> Tensor:
        """a_q^T f(C) J_i^T H t_i for query gradients (m, n_params) and slopes t (n, r): (m, n)."""
        ...

    def look_ahead_rows(self, steps: Steps, queries: Tensor, gradient: Tensor) -> Tensor:
        """Second term of the exact look-ahead for each row of A; (m, n_params), (n_params,) -> (m, n k)."""
        ...


FORMS: dict[str, Callable[[LinearizedTrain], Form]] = {"dual": DualForm, "primal": PrimalForm, "krylov": KrylovForm}


@dataclass(frozen=True, eq=False)
class GaussNewton:
    """The Gauss-Newton curvature of a task on its train set; fitted once, filtered as often as wanted.

    Its rows may be preconditioned (`LinearizedTrain.scale`, the root of P): then C, its eigenvalues and filters are
    those of P^(1/2) C P^(1/2), while query gradients and displacements come and go in the parameters' own units:
    P^(1/2) f(P^(1/2) C P^(1/2)) P^(1/2) stands in the place of f(C). A Fisher matrix (`fit_fisher`) has other rows.

    Attributes:
        form: How functions of it are applied.
        form_name: "dual", "primal" or "krylov".
    """

    form: Form
    form_name: str

    @property
    def linear(self) -> LinearizedTrain:
        """The linearised train set."""
        return self.form.linear

    def resolve(self, filter: ResolvableFilter) -> SpectralFilter:
        """The filter with its damping in absolute numbers."""
        # Each statistic costs a pass over the Jacobian rows.
        mean = self.form.mean_eigenvalue if "mean_eigenvalue" in filter.needs else None
        msg = self.linear.mean_square_gradient if "mean_square_gradient" in filter.needs else None
        return filter.resolve(mean_eigenvalue=mean, mean_square_gradient=msg)

    def scores(self, filter: ResolvableFilter, queries: Tensor, contrasts: Tensor | None = None) -> Tensor:
        """(1/n) a_q^T f(C) b_i: the change of each query's measure when example i's weight falls by one.

        Args:
            filter: How far training goes along each eigen-direction.
            queries: (n_query, n_params), gradients of the measures.
            contrasts: (n, r), loss slopes in the loss's basis; default those of the final model.
        Returns:
            (n_query, n_train), float64.
        """
        t = self.linear.contrast_slopes if contrasts is None else contrasts
        return self.form.scores(self.resolve(filter), self.linear.scaled(queries), t) / self.linear.n_train

    def displacement(self, filter: ResolvableFilter, weight_decay: float = 0.0) -> Tensor:
        """-f(C) grad R: where further training on all data takes the parameters; (n_params,) float64."""
        moved = self.form.solve(self.resolve(filter), self.pull_of_training(weight_decay)[None])[0]
        return -self.linear.scaled(moved)

    def slopes_after(self, displacement: Tensor) -> Tensor:
        """Loss slopes (n, r) at the outputs that a displacement of the parameters (n_params,) leads to."""
        scale = self.linear.scale
        shift = self.linear.push((displacement if scale is None else displacement / scale)[None])[0]
        return self.linear.slopes_at(shift)

    def pull_of_training(self, weight_decay: float = 0.0) -> Tensor:
        """Gradient of the mean train loss with its decay term, in the units of the rows; (n_params,) float64."""
        gradient = self.linear.mean_gradient
        return gradient + weight_decay * self.linear.parameters() if weight_decay else gradient

    def look_ahead(self, steps: Steps, queries: Tensor) -> Tensor:
        """What the motion of the model during further training takes from each score; see `horizon_ahead`.

        Returns:
            (n_query, n_train), float64, in the unit of `scores`, to be subtracted from them.
        """
        pull = self.pull_of_training(steps.weight_decay)
        rows = self.form.look_ahead_rows(steps, self.linear.scaled(queries), pull)
        return rows.reshape(len(queries), self.linear.n_train, self.linear.n_roots).sum(-1)


def fit_gauss_newton(
    task: Task,
    train: Examples,
    *,
    form: str = "auto",
    dtype: torch.dtype | None = None,
    preconditioner: Tensor | None = None,
) -> GaussNewton:
    """Fit C = (1/n) sum_i J_i^T V_i J_i, V_i the Hessian of example i's loss in its outputs.

    Args:
        task: The final model, in eval mode; squared error, cross-entropy, or a loss with `output_hessian`.
        train: The train set.
        form: "dual" (eigenvalues of the n r x n r Gram matrix), "primal" (of the n_params x n_params matrix),
            "krylov" (products only), or "auto": the smaller of the first two up to 6,000, else the last.
        dtype: Precision of Jacobian rows; see `LinearizedTrain.of`.
        preconditioner: Diagonal of P (n_params,), positive, by which an optimizer multiplies its gradients; see
            `GaussNewton`.
    Raises:
        UnsupportedError: The loss has no known Hessian.
        UnknownNameError: No such form.
    Cost:
        One pass of per-example Jacobians with r rows each (r = outputs, one less for cross-entropy), kept in memory up
        to 4 GiB; then one eigen-decomposition, or a product per Lanczos step.
    Reference:
        Schraudolph (2002), Neural Computation 14(7); the dual and primal forms share all non-zero eigenvalues.
    """
    check_form(form)
    linear = LinearizedTrain.of(task, train, dtype=dtype)
    if preconditioner is not None:
        require_finite(preconditioner, "`preconditioner`")
        if preconditioner.shape != (linear.n_params,) or bool((preconditioner <= 0).any()):
            raise InputError(
                f"`preconditioner` must hold one positive number for each of the {linear.n_params} parameters; got "
                f"shape {tuple(preconditioner.shape)}, smallest entry {float(preconditioner.min()):.6g}."
            )
        linear = replace(linear, scale=preconditioner.to(linear.task.device, torch.float64).sqrt())
    return in_form(linear, form, exact_dtype=dtype is not None)


def check_form(form: str) -> None:
    """Refuse an unknown form, before any work."""
    look_up({"auto": None, **FORMS}, form, "curvature form")


def in_form(linear: LinearizedTrain, form: str, *, exact_dtype: bool = False) -> GaussNewton:
    """The curvature of linearised rows in one of the forms, or for "auto" in the one that fits their number.

    Args:
        linear: Rows and roots.
        form: As in `fit_gauss_newton`.
        exact_dtype: Keep the precision of the rows even where Lanczos does not need it.
    """
    name = choose_form(linear.n_rows, linear.n_params) if form == "auto" else form
    if name == "krylov" and not exact_dtype:
        linear = replace(linear, dtype=working_dtype(linear.task.model))  # its tolerance is far above float32 rounding
    return GaussNewton(FORMS[name](linear), name)


def choose_form(n_rows: int, n_params: int) -> str:
    """The form for a factor of n_rows x n_params."""
    if min(n_rows, n_params) > LARGEST_DENSE:
        return "krylov"
    return "dual" if n_rows <= n_params else "primal"
