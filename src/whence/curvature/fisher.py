"""Fisher matrices: mean outer products of loss gradients, at the true labels or at labels drawn from the model."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.batches import cast_batch
from whence.checks import look_up, require_count
from whence.curvature.drawn_labels import drawn_labels, slopes_at_labels
from whence.curvature.gauss_newton import GaussNewton, check_form, in_form
from whence.curvature.linearized import LinearizedTrain, rows_dtype
from whence.data import Examples
from whence.errors import InputError
from whence.gradients import outputs_of, slopes
from whence.task import Task
from whence.task.losses import hessian_root, n_contrasts, output_basis

FISHERS = {"empirical": "at the labels of the train set", "sampled": "at labels drawn from the model"}


def fit_fisher(
    task: Task,
    train: Examples,
    *,
    fisher: str = "empirical",
    n_samples: int = 1,
    seed: int = 0,
    form: str = "auto",
    dtype: torch.dtype | None = None,
) -> GaussNewton:
    """Fit C = (1/n) sum_i g_i g_i^T, or with several labels an example the mean over them.

    "empirical": g_i is the gradient b_i at the example's own label. Where the model fits its train set, slopes vanish
    and with them this matrix, though not the curvature; and it is not the Fisher matrix of any distribution.

    "sampled": g_i is the gradient at a label drawn from the model's own prediction, of cross-entropy or squared error
    (a normal distribution). The expectation over labels is the Gauss-Newton matrix, exactly; so a few classes are
    better not sampled: with r = classes - 1 rows an example `fit_gauss_newton` has all of them.

    Args:
        task: The final model, in eval mode; "sampled" needs squared error or cross-entropy.
        train: The train set.
        fisher: "empirical" or "sampled".
        n_samples: Labels drawn for each example.
        seed: Of the labels; see `drawn_labels`. `fit_kronecker` draws the same.
        form: As in `fit_gauss_newton`; a factor has one row a sample and example, and never more than r an example.
        dtype: Precision of Jacobian rows; default float64 where they fit 1 GiB, else the model's own.
    Returns:
        The same operator as `fit_gauss_newton`, with other rows.
    Raises:
        UnsupportedError: "sampled" of a loss that is no known likelihood.
        InputError: Several samples of the one true label.
    Cost:
        A forward pass, two for "sampled"; one pass of per-example gradients, n_samples + 1 an example, or r if that is
        less ("empirical": one); then as `fit_gauss_newton`. All outputs are in memory, and refused above 4 GiB.
    Reference:
        Kunstner, Balles and Hennig (2019), arXiv:1905.12558.
    """
    look_up(FISHERS, fisher, "Fisher matrix")
    check_form(form)
    require_count(n_samples, "n_samples")
    if fisher == "empirical" and n_samples != 1:
        raise InputError(f"The empirical Fisher matrix has one label an example; got n_samples={n_samples}.")
    outputs = outputs_of(task, train, dtype=torch.float64)
    own = slopes(task.loss, outputs, train)
    drawn = own[:, :, None] if fisher == "empirical" else _drawn(task, train, outputs, n_samples, seed)
    basis, roots, contrasts = _factored(task, own, drawn, only_own=fisher == "empirical")
    precision = dtype or rows_dtype(task, len(train) * basis.shape[-1])
    linear = LinearizedTrain(task, train, precision, outputs, basis, roots, contrasts)
    return in_form(linear, form, exact_dtype=dtype is not None)


def _drawn(task: Task, train: Examples, outputs: Tensor, n_samples: int, seed: int) -> Tensor:
    """(n, c, n_samples), slopes at drawn labels."""
    labels = drawn_labels(task, train, n_samples=n_samples, seed=seed)
    batch = cast_batch(train.all(), outputs.dtype, outputs.device)
    return slopes_at_labels(task, labels)(outputs, batch, slice(0, len(train))).transpose(1, 2)


def _factored(task: Task, own: Tensor, drawn: Tensor, *, only_own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Basis, roots and slopes in the basis, with as few directions an example as will do.

    Args:
        task: Model and loss.
        own: (n, c), slopes at the true labels.
        drawn: (n, c, k), slopes whose outer products are averaged.
        only_own: They are the same.
    """
    n, c, k = drawn.shape
    if only_own:
        ones = own.new_ones(n, 1)
        return drawn, ones[:, :, None], ones
    rank = n_contrasts(task.loss, c)
    if k + 1 < rank:
        roots = torch.eye(k + 1, k, dtype=own.dtype, device=own.device).expand(n, -1, -1) / k**0.5
        own_direction = torch.eye(k + 1, dtype=own.dtype, device=own.device)[-1].expand(n, -1)
        return torch.cat([drawn, own[:, :, None]], 2), roots, own_direction
    shared = output_basis(task.loss, c, own.dtype, own.device)
    if k < rank:
        return shared, shared.T @ drawn / k**0.5, own @ shared
    return shared, hessian_root(drawn @ drawn.transpose(1, 2) / k, shared), own @ shared
