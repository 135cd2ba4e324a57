"""Fitting K-FAC and EK-FAC: two passes over the train set."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from whence.checks import look_up, require_count
from whence.curvature.kronecker.checked import checked_blocks
from whence.curvature.kronecker.cotangents import FISHERS
from whence.curvature.kronecker.eigen import Eigen
from whence.curvature.kronecker.moments import moments_of
from whence.curvature.kronecker.spectrum import KroneckerSpectrum, LayerSpectrum
from whence.curvature.kronecker.squares import squares_of
from whence.data import Examples
from whence.errors import UnsupportedError
from whence.gradients import layer_plan, loss_gradients
from whence.gradients.sites import Site, sites_of
from whence.task import ParameterLayout, Task, working_dtype

Pairs = dict[Site, tuple[Eigen, Eigen]]  # of inputs, of output gradients


def fit_kronecker(
    task: Task,
    train: Examples,
    *,
    fisher: str = "exact",
    corrected: bool = True,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> KroneckerSpectrum:
    """Fit K-FAC, or with `corrected` EK-FAC, to the mean curvature over the train set.

    For each layer with weight (o, i) and inputs a, output gradients g at its positions s:
    A = mean over examples and positions of a a^T, G = mean over examples of the sum over positions of g g^T, with
    eigenvectors U_A, U_G. K-FAC has the eigenvalues of G (x) A. EK-FAC has instead the mean over examples of the
    squared entries of U_G^T (sum_s g_s a_s^T) U_A: the true diagonal of C in that basis. Parameters that are no such
    matrix have the diagonal of C itself. Different layers are taken as independent. Positions to which no gradient
    comes back, such as padding, do not count.

    EK-FAC is exact for one linear layer with squared error, and its trace is always that of C.

    Args:
        task: Model and loss, in eval mode.
        train: Train examples.
        fisher: "exact" (the Gauss-Newton matrix, by as many backward passes as outputs), "sampled" (one label drawn for
            each example, or token of a language model), or "empirical" (the given labels).
        corrected: EK-FAC.
        seed: Of drawn labels; see `drawn_labels`. `fit_fisher` draws the same.
        dtype: Precision of the passes; default the parameters' own, never below float32. Sums over blocks and
            eigen-decompositions are in float64.
    Raises:
        UnsupportedError: The loss has no known Hessian or distribution, which this Fisher matrix needs; "exact" of more
            outputs than `whence.task.losses.LARGEST_BASIS`, as language models have; or the model treats some examples
            in another way than the first three.
        NonFiniteError: Something in a layer is NaN or infinite; it is named.
    Cost:
        Two passes over the train set, and for "sampled" a forward pass; memory sum over layers of i^2 + o^2 + i o.
    Reference:
        Martens and Grosse (2015), arXiv:1503.05671; for convolutions Grosse and Martens (2016), arXiv:1602.01407; for
        shared weights the "expand" form of Eschenhagen et al. (2023), arXiv:2311.00636; George et al. (2018),
        arXiv:1806.03884, algorithm 1.
    """
    cotangents_of = look_up(FISHERS, fisher, "Fisher matrix")
    require_count(seed, "seed", minimum=0)
    if fisher == "exact" and not task.loss.has_hessian:
        raise UnsupportedError(
            f"The loss {task.loss.name!r} has no known Hessian in the outputs, which fisher='exact' needs. Pass "
            "`output_hessian=` to Task, or use fisher='empirical'."
        )
    n_train, layout = len(train), task.layout
    cotangents = cotangents_of(task, train, seed)
    plan = layer_plan(task, train)
    passed = partial(checked_blocks, task, train, cotangents, plan, working_dtype(task.model, dtype))
    sites = sites_of(plan, layout)
    rest = frozenset(layout.names).difference(*(site.names for site in sites))
    moments = moments_of(passed("moments of layers"), sites, layout)
    pairs = {site: moment.eigen(site, n_train) for site, moment in moments.items()}
    bases = {site: (a.vectors, g.vectors) for site, (a, g) in pairs.items()} if corrected else {}
    rotated, plain = squares_of(passed("eigenvalues of layers"), bases, rest) if corrected or rest else ({}, {})
    layers = tuple(
        LayerSpectrum(site, a.vectors, g.vectors, _eigenvalues(site, (a, g), rotated, n_train))
        for site, (a, g) in pairs.items()
    )
    zeros = {name: torch.zeros(size) for name, size in zip(layout.names, layout.sizes, strict=True)}
    diagonal = {name: (plain.get(name, zeros[name]) / n_train).double() for name in layout.names if name in rest}
    facts = {"fisher": fisher, **({"seed": seed} if fisher == "sampled" else {}), **_coverage(layout, pairs, rest)}
    return KroneckerSpectrum(layout, layers, diagonal, facts, partial(_mean_square_gradient, task, train))


def _eigenvalues(site: Site, pair: tuple[Eigen, Eigen], rotated: dict[Site, Tensor], n_train: int) -> Tensor:
    """(o, i): measured in the eigenbasis, or products of the factors' own."""
    products = torch.outer(pair[1].values, pair[0].values)
    return rotated[site] / n_train if site in rotated else products  # the same, 0, where no gradient comes back


def _coverage(layout: ParameterLayout, pairs: Pairs, rest: frozenset[str]) -> dict[str, Any]:
    covered = sum(len(a.values) * len(g.values) for a, g in pairs.values())
    return {
        "kronecker_percent": 100.0 * covered / layout.n_params,
        "diagonal": [name for name in layout.names if name in rest],
        "other_eigensolver": [site.weight for site, pair in pairs.items() if any(one.is_fallback for one in pair)],
    }


def _mean_square_gradient(task: Task, train: Examples) -> float:
    """Mean squared entry of the per-example loss gradients: the published unit of damping."""
    total = sum(float(rows.double().square().sum()) for _, rows in loss_gradients(task, train))
    return total / (len(train) * task.layout.n_params)
