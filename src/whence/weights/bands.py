"""Contributions of bands of eigenvalues: weights of bands are a spectral filter learned from the data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from whence.algebra import Damping
from whence.algebra.filters import Banded, SpectralFilter
from whence.checks import look_up, require_count
from whence.data import Examples
from whence.errors import InputError
from whence.methods import Inputs, attribute_with
from whence.methods.ekfac import kronecker_spectrum
from whence.methods.filters import chosen_filter
from whence.task import GroupWeights, ParameterGroups, Task
from whence.weights.by_group import Contributions

CORRECTED = {"ekfac": True, "kfac": False}  # methods whose eigenvalues are all known
DECADE = 10.0


def band_contributions(
    task: Task,
    train: Examples,
    queries: Examples,
    method: str = "ekfac",
    *,
    n_bands: int = 6,
    edges: Sequence[float] | None = None,
    damping: Damping | None = None,
    fisher: str = "exact",
    seed: int = 0,
) -> Contributions:
    """Take the scores of a method apart by the eigenvalues of its curvature, over all layers together.

        values[q, i, k] = (o_q / n) a_q^T U 1_k(s) f(s) U^T b_i,    1_k(s) is 1 for eigenvalues s in band k

    The groups are bands, lowest eigenvalues first, with the number of eigenvalues as their size. `banded_filter` makes
    weights of bands a filter. Damping is part of it: weights that are small for low bands are as much damping there.

    Args:
        task, train, queries: As in `contributions`.
        method: "ekfac" or "kfac".
        n_bands: Bands, each a decade wide, from the largest eigenvalue down; the lowest holds all that is left.
        edges: Of the bands, ascending, in the place of `n_bands`.
        damping, fisher, seed: As in `ekfac`.
    Raises:
        UnknownNameError: The eigenvalues of no such method are known.
        InputError: An option has no such value.
    Cost:
        That of the method once, and its passes over the train set once for each band.
    Reference:
        Worked out here; groups finer than tensors are left open by Li et al. (2026), arXiv:2506.05647.
    """
    corrected = look_up(CORRECTED, method, "method with known eigenvalues")
    inputs = Inputs(task, train, queries)
    spectrum = kronecker_spectrum(inputs, fisher=fisher, seed=seed, corrected=corrected)
    base = spectrum.resolve(chosen_filter(damping, None, len(train)))
    limits = _decades(spectrum.largest_eigenvalue, n_bands) if edges is None else tuple(map(float, edges))
    parts = []
    for k in range(len(limits) + 1):
        alone = Banded(limits, tuple(float(k == j) for j in range(len(limits) + 1)), base)
        parts.append(attribute_with(inputs, method, filter=alone, fisher=fisher, seed=seed))
    first = parts[0]
    assert not isinstance(first, dict)  # neither method has amounts
    values = torch.stack([torch.as_tensor(part.values) for part in parts], 2)
    counts = torch.bincount(
        torch.bucketize(spectrum.eigenvalues, torch.tensor(limits, dtype=torch.float64), right=True),
        minlength=len(limits) + 1,
    )
    groups = ParameterGroups(_names(limits), (), tuple(counts.tolist()), ())
    facts: dict[str, Any] = {**first.provenance, "edges": list(limits), "base": base.describe()}
    return Contributions(
        values, groups, first.query_ids, first.train_ids, method, float(inputs.orientation), first.unit, facts
    )


def banded_filter(weights: GroupWeights, found: Contributions, base: SpectralFilter) -> Banded:
    """The filter that weights of bands are: pass it as `filter=` to the method.

    Args:
        weights: Of the bands of `found`.
        found: From `band_contributions`.
        base: The filter that was taken apart, resolved: for a damped inverse
            `damped_inverse(Damping.absolute(found.provenance["base"]["damping"]))`.
    Raises:
        InputError: The weights are of other groups, or `found` is not of bands.
    """
    edges = found.provenance.get("edges")
    if edges is None:
        raise InputError("These contributions are not of bands of eigenvalues. Use `band_contributions`.")
    if weights.groups != found.groups:
        raise InputError(f"The weights {weights.name!r} are of other groups. Learn them from these contributions.")
    return Banded(tuple(edges), tuple(weights.values.tolist()), base)


def _decades(largest: float, n_bands: int) -> tuple[float, ...]:
    """Edges of `n_bands` bands, a decade apart below the largest eigenvalue."""
    require_count(n_bands, "n_bands")
    if largest <= 0:
        raise InputError("The curvature is zero: it has no bands. Look at the gradients of the train set.")
    return tuple(largest * DECADE ** -float(k) for k in range(n_bands - 1, 0, -1))


def _names(edges: tuple[float, ...]) -> tuple[str, ...]:
    if not edges:
        return ("all eigenvalues",)
    between = [f"{low:.2g} to {high:.2g}" for low, high in itertools.pairwise(edges)]
    return (f"below {edges[0]:.2g}", *between, f"{edges[-1]:.2g} and more")
