"""Self-influence: how much each train example supports itself; high for examples the model had to learn by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.algebra.filters import ResolvableFilter
from whence.curvature import fit_gauss_newton
from whence.data import Examples
from whence.gradients import loss_gradients
from whence.methods.filters import bound_filter
from whence.methods.horizon import RecipeFilter
from whence.task import GroupWeights, Task


def self_influence(
    task: Task,
    train: Examples,
    *,
    filter: ResolvableFilter | RecipeFilter | None = None,
    form: str = "auto",
    weights: GroupWeights | None = None,
) -> Tensor:
    """b_i^T Diag(w) f(C) b_i / n for every train example; without a filter the squared gradient norm b_i^T Diag(w) b_i.

    Args:
        task: The final model, in eval mode.
        train: Train examples.
        filter: Of the Gauss-Newton curvature, such as `horizon(recipe)`.
        form: As in `fit_gauss_newton`.
        weights: Of parameter groups.
    Returns:
        (n_train,) float64; non-negative, but for weights together with a filter. With a filter and no weights in the
        unit of the loss, else it only ranks.
    Cost:
        One pass of per-example gradients; with a filter also the curvature and f(C) of every gradient.
    Reference:
        Pruthi et al. (2020), arXiv:2002.08484, section 4.1; Koh and Liang (2017), arXiv:1703.04730, section 5.4;
        with weights Li et al. (2026), arXiv:2506.05647.
    """
    task.check(train.all(), train.ids)
    values = torch.empty(len(train), dtype=torch.float64)
    layout = task.layout
    scale = torch.ones(layout.n_params) if weights is None else weights.of_parameter(layout)
    scale = scale.to(task.device, torch.float64)
    if filter is None:
        for part, rows in loss_gradients(task, train):
            values[part] = (rows.double().square() @ scale).cpu()
        return values
    chosen = bound_filter(filter, len(train))
    curvature = fit_gauss_newton(task, train, form=form)
    known = curvature.resolve(chosen)
    for part, rows in loss_gradients(task, train, dtype=curvature.linear.dtype):
        solved = curvature.form.solve(known, rows)
        values[part] = ((solved * rows.double()) @ scale / len(train)).cpu()
    return values
