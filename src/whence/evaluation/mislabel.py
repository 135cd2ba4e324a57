"""Finding wrong labels: do suspicious scores point at the examples whose label was flipped?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from whence.checks import look_up, require_finite
from whence.errors import InputError, ShapeError
from whence.evaluation.bootstrap import check_settings, interval
from whence.rng import numpy_generator


class MislabelAuc(NamedTuple):
    """Area under the ROC curve with its bootstrap interval."""

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True, eq=False)
class MislabelAucs:
    """Areas of one or several kinds of suspicion, on the same examples.

    Attributes:
        table: One row per name: name, value, low, high, n_flipped, n_clean.
        replicates: name -> (n_replicates,) float64 bootstrap areas, of the same draws for all names.
        confidence: Coverage the intervals aim at.
    """

    table: pd.DataFrame
    replicates: dict[str, Tensor]
    confidence: float

    def to_dict(self) -> dict[str, list[float]]:
        """{name: [value, low, high]}."""
        return {row["name"]: [row["value"], row["low"], row["high"]] for row in self.table.to_dict("records")}

    def difference(self, first: str, second: str) -> list[float]:
        """[value, low, high] of `first` minus `second`, such as weighted minus plain: paired, on the same draws.

        Raises:
            UnknownNameError: A name is not among the compared ones.
        """
        values, replicates = (
            [look_up(dict(found), name, "suspicion") for name in (first, second)]
            for found in (self.table.set_index("name")["value"], self.replicates)
        )
        return [float(values[0] - values[1]), *interval(replicates[0] - replicates[1], self.confidence)]


def mislabel_auc(
    scores: Tensor, flipped: Tensor, *, n_bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> MislabelAuc:
    """Probability that a flipped example scores higher than a clean one; ties count half.

    Args:
        scores: (n,) suspicion, higher where the label looks wrong. Self-influence is one; where a score says how much
            an example *helps*, pass its negative.
        flipped: (n,) bool, True where the label was flipped.
        n_bootstrap: Replicates; flipped and clean examples are resampled each among themselves.
        confidence: Coverage the interval aims at.
        seed: Of the bootstrap.
    Raises:
        ShapeError: The two do not match.
        InputError: All examples are flipped, or none is.
    Cost:
        One sort of n, and 3 passes over n per replicate.
    """
    name = "scores"
    found = mislabel_aucs({name: scores}, flipped, n_bootstrap=n_bootstrap, confidence=confidence, seed=seed)
    return MislabelAuc(*found.to_dict()[name])


def mislabel_aucs(
    scores: Mapping[str, Tensor],
    flipped: Tensor,
    *,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> MislabelAucs:
    """`mislabel_auc` of several kinds of suspicion, with paired differences.

    The area is that of Mann and Whitney: over all pairs of a flipped and a clean example. Replicates draw the same
    examples for all names, so that differences are tighter than the intervals of their parts.

    Args:
        scores: name -> (n,) suspicion.
        flipped, n_bootstrap, confidence, seed: As in `mislabel_auc`.
    Raises:
        ShapeError: Scores do not match `flipped`; the name is given.
        InputError: There are no scores; or all examples are flipped, or none is.
        NonFiniteError: A score is NaN or infinite.
    Cost:
        That of `mislabel_auc` for each name.
    Reference:
        DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44, areas on the same examples.
    """
    check_settings(n_bootstrap, confidence)
    if not scores:
        raise InputError("`scores` is empty: pass the suspicion of at least one kind.")
    if flipped.dtype != torch.bool:
        raise InputError(f"`flipped` must be a bool tensor; got {flipped.dtype}. Use `flipped.bool()`.")
    levels = {name: _levels(name, values, flipped) for name, values in scores.items()}
    is_flipped = flipped.cpu().numpy()
    at_flipped, at_clean = np.flatnonzero(is_flipped), np.flatnonzero(~is_flipped)
    if len(at_flipped) == 0 or len(at_clean) == 0:
        raise InputError(f"{len(at_flipped)} of {len(flipped)} labels are flipped: the area needs some of both kinds.")
    replicates = {name: torch.empty(n_bootstrap, dtype=torch.float64) for name in levels}
    for b, (some_flipped, some_clean) in enumerate(_draws(at_flipped, at_clean, n_bootstrap, seed)):
        for name, own in levels.items():
            replicates[name][b] = _auc(own[some_flipped], own[some_clean], int(own.max()) + 1)
    rows = []
    for name, own in levels.items():
        low, high = interval(replicates[name], confidence)
        value = _auc(own[at_flipped], own[at_clean], int(own.max()) + 1)
        counts = {"n_flipped": len(at_flipped), "n_clean": len(at_clean)}
        rows.append({"name": name, "value": value, "low": low, "high": high, **counts})
    return MislabelAucs(pd.DataFrame(rows), replicates, confidence)


def _levels(name: str, scores: Tensor, flipped: Tensor) -> NDArray[np.int64]:
    """Equal scores share a level; the levels are in the order of the scores."""
    if scores.ndim != 1 or scores.shape != flipped.shape:
        raise ShapeError(
            f"`{name}` and `flipped` must both be (n,); got {tuple(scores.shape)} and {tuple(flipped.shape)}."
        )
    require_finite(scores, f"`{name}`", rows="train example")
    levels: NDArray[np.int64] = np.unique(scores.detach().double().cpu().numpy(), return_inverse=True)[1]
    return levels


def _draws(
    at_flipped: NDArray[np.int64], at_clean: NDArray[np.int64], n_replicates: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of flipped and of clean examples, resampled each among themselves."""
    generator = numpy_generator(seed, "bootstrap", "mislabel")
    for _ in range(n_replicates):
        yield generator.choice(at_flipped, len(at_flipped)), generator.choice(at_clean, len(at_clean))


def _auc(flipped: NDArray[np.int64], clean: NDArray[np.int64], n_levels: int) -> float:
    """Share of (flipped, clean) pairs in the right order, from the level of each example."""
    tied = np.bincount(clean, minlength=n_levels)
    below = np.cumsum(tied) - tied
    return float((below + tied / 2)[flipped].mean() / len(clean))
