"""Influence functions with a Fisher matrix in the place of the Gauss-Newton matrix."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from whence.algebra import Damping
from whence.algebra.filters import ResolvableFilter
from whence.checks import require_count
from whence.curvature.fisher import fit_fisher
from whence.errors import InputError
from whence.methods.filters import chosen_filter
from whence.methods.horizon import RecipeFilter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole


def influence_fisher(
    inputs: Inputs,
    *,
    fisher: str = "empirical",
    n_samples: int = 1,
    n_seeds: int = 1,
    seed: int = 0,
    damping: Damping | None = None,
    filter: ResolvableFilter | RecipeFilter | None = None,
    form: str = "auto",
) -> Result:
    """(o_q / n) a_q^T f(F) b_i with F = (1/n) sum_i g_i g_i^T, exact, and f the damped inverse or any other filter.

    "empirical" takes each gradient at the example's own label. It is small where the model fits its train set, so that
    the scores are large, and they only rank. "sampled" takes it at drawn labels; more samples lead to `influence_gn`,
    which is the exact mean over labels for cross-entropy and squared error, and costs no more for a few classes.

    Args:
        inputs: Task, train set, queries.
        fisher: "empirical" or "sampled".
        n_samples: Labels drawn for each example.
        n_seeds: Scores are the mean over so many draws, from `seed` on. With two or more the settings hold
            `seed_agreement`: Pearson's correlation of the scores of one draw with another's, mean over queries and
            pairs of draws; None where scores are constant.
        seed: Of the first draw.
        damping: Default a tenth of F's mean eigenvalue.
        filter: Instead of the damped inverse.
        form: As in `influence_gn`.
    Raises:
        UnsupportedError: "sampled" of a loss that is no known likelihood.
        InputError: Samples or seeds of the one true label.
    Cost:
        See `fit_fisher`, times `n_seeds`; "empirical" has one row an example, whatever the number of outputs.
    Reference:
        Kunstner, Balles and Hennig (2019), arXiv:1905.12558; Grosse et al. (2023), arXiv:2308.03296, with
        sampled labels.
    """
    require_count(n_seeds, "n_seeds")
    if fisher == "empirical" and n_seeds != 1:
        raise InputError(f"Nothing is drawn for the empirical Fisher matrix; got n_seeds={n_seeds}.")
    chosen = chosen_filter(damping, filter, inputs.n_train)
    queries = inputs.query_gradients_in
    # Only the first is kept between methods: each may hold gigabytes of rows.
    first = inputs.fisher(fisher, form, n_samples=n_samples, seed=seed)
    values = [first.scores(chosen, queries(first.linear.dtype))]
    for other in range(seed + 1, seed + n_seeds):
        again = fit_fisher(inputs.task, inputs.train, fisher=fisher, n_samples=n_samples, seed=other, form=form)
        values.append(again.scores(chosen, queries(again.linear.dtype)))
    settings = {**first.resolve(chosen).describe(), "form": first.form_name, "fisher": fisher}
    if fisher == "sampled":
        settings |= {"n_samples": n_samples, "seeds": list(range(seed, seed + n_seeds))}
    if n_seeds > 1:
        settings["seed_agreement"] = mean_agreement(values)
    return whole(inputs.orientation * torch.stack(values).mean(0), settings)


def mean_agreement(values: list[Tensor]) -> float | None:
    """Pearson's correlation over train examples, mean over queries and pairs of draws; None where one is constant."""
    centered = [scores - scores.mean(1, keepdim=True) for scores in values]
    units = [scores / scores.norm(dim=1, keepdim=True) for scores in centered]
    found = torch.stack([(one * two).sum(1).mean() for one, two in itertools.combinations(units, 2)])
    mean = float(found.mean())
    return mean if math.isfinite(mean) else None


INFLUENCE_FISHER = Preset(
    "influence_fisher",
    "influence function, exact damped inverse of the empirical or a sampled Fisher matrix",
    influence_fisher,
    curvature="fisher",
    filter="damped_inverse",
)
