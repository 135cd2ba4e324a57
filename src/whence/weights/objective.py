"""The self-supervised objective: a good weighting makes the strongest scores stand out from the rest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from whence.checks import look_up, require_count
from whence.errors import InputError
from whence.weights.quotient import Normalise, Quotient


def self_supervised_loss(scores: Tensor, k: int, sets: Tensor | None = None, *, two_sided: bool = False) -> Tensor:
    """-mean of the k largest scores of each query over the norm of all its scores; lower is better.

    A function of the signal-to-noise ratio of the scores: with k examples of influence s under noise of variance v it
    is about -1 / sqrt(k + n_train v / s^2). Never below -1 / sqrt(k), two-sided -1 / sqrt(2 k).

    Args:
        scores: (n_query, n_train).
        k: How many examples count as signal.
        sets: (n_query, k) positions to take in place of the k largest.
        two_sided: The k smallest scores are signal as well: half of the mean of the k largest minus that of the k
            smallest is taken. A constant in the scores then changes nothing but the norm.
    Returns:
        (n_query,); 0 for a query whose scores are all zero.
    Reference:
        Li et al. (2026), arXiv:2506.05647, the loss L_SSL; the two-sided one is worked out here.
    """
    signal = (scores.topk(k, dim=1).values if sets is None else scores.gather(1, sets)).mean(1)
    if two_sided:
        signal = (signal - scores.topk(k, dim=1, largest=False).values.mean(1)) / 2
    norm = scores.norm(dim=1)
    loss: Tensor = -signal / torch.where(norm > 0, norm, 1.0)
    return loss


def check_settings(k: int, n_train: int, normalise: str, two_sided: bool) -> None:
    """Refuse before any work what has no meaning."""
    require_count(k, "k")
    if k > n_train:
        raise InputError(f"`k` must be at most the {n_train} train examples; got {k}.")
    if two_sided and 2 * k > n_train:
        raise InputError(
            f"With `two_sided` k examples count at either end; {n_train} train examples have no {k} and {k} different "
            "ones. Use a smaller `k`."
        )
    look_up(dict.fromkeys(("rms", "none")), normalise, "normalisation")


class Objective(Quotient):
    """What solvers see: small matrices in the place of n_train rows, and the sets of examples that weights rank first.

    Attributes:
        k: Train examples that count as signal.
        center: Subtract each query's mean over the train set from every group. What is ranked does not change, and
            neither does LDS, but the norm in the loss does.
        two_sided: The k examples that are ranked last count as signal as well, with the opposite sign.
    """

    k: int
    center: bool
    two_sided: bool
    _means: Tensor  # (n_query, n_groups) what centring subtracts

    @abstractmethod
    def _top(self, weights: Tensor, queries: Tensor | None) -> Tensor:
        """(n_query, n_groups) float64: mean contribution of the k examples that raw weights rank first."""

    def signal(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """(n_query, n_groups) a_q: mean scaled contribution of the k examples that scaled weights x rank first.

        Two-sided: half of that less the mean of the k examples that are ranked last.
        """
        return self._raw_signal(self.weights(x.detach()), queries) * self.scale

    def _raw_signal(self, weights: Tensor, queries: Tensor | None = None) -> Tensor:
        """As `signal`, of raw contributions and weights."""
        top = self._top(weights, queries)
        if self.two_sided:
            return (top - self._top(-weights, queries)) / 2
        return top - (self._means if queries is None else self._means[queries])

    @abstractmethod
    def cross_means(self, x: Tensor) -> Tensor:
        """(n_query, n_groups): as `signal`, with entry j over the examples ranked by the scores without group j."""

    @abstractmethod
    def loss(self, weights: Tensor) -> float:
        """`self_supervised_loss` of raw weights, mean over queries."""

    @abstractmethod
    def centered(self, queries: Tensor) -> Tensor:
        """(b, n_train, n_groups) float64 contributions of the queries at some positions, as the loss sees them."""


@final
@dataclass(frozen=True, eq=False)
class WeightProblem(Objective):
    """The objective on contributions in memory.

    Args:
        values: (n_query, n_train, n_groups), contributions.
        k, center, normalise, two_sided: As in `Objective`.
    Raises:
        InputError: k is more than there are train examples, or no contribution differs from zero.
    """

    values: Tensor
    k: int
    center: bool = True
    normalise: Normalise = "rms"
    two_sided: bool = False

    def __post_init__(self) -> None:
        check_settings(self.k, self.values.shape[1], self.normalise, self.two_sided)
        self.require_signal()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_query, n_train, n_groups)."""
        n_query, n_train, n_groups = self.values.shape
        return n_query, n_train, n_groups

    @cached_property
    def _means(self) -> Tensor:  # type: ignore[override]
        return self.values.mean(1, dtype=torch.float64) * float(self.center)

    @cached_property
    def _raw_gram(self) -> Tensor:  # type: ignore[override]
        # Query by query in float64: sums of n_train products of one sign lose digits in float32.
        centered = (rows.double() - mean for rows, mean in zip(self.values, self._means, strict=True))
        return torch.stack([rows.T @ rows for rows in centered])

    def scores(self, weights: Tensor, queries: Tensor | None = None) -> Tensor:
        """(n_query, n_train) scores of raw weights (n_groups,), of all queries or those at some positions."""
        return _scores(*self._of(queries), weights)

    def _top(self, weights: Tensor, queries: Tensor | None) -> Tensor:
        values, means = self._of(queries)  # once: it copies where queries are chosen
        top = _scores(values, means, weights).topk(self.k, dim=1).indices
        rows = values.gather(1, top[:, :, None].expand(-1, -1, values.shape[2]))
        return rows.double().mean(1)

    def cross_means(self, x: Tensor) -> Tensor:
        """As in `Objective`."""
        weights = self.weights(x)
        scores = _scores(self.values, self._means, weights)
        means = []
        for j, weight in enumerate(weights.tolist()):
            own = self.values[:, :, j].double() - self._means[:, j, None]
            others = scores - weight * own
            signal = own.gather(1, others.topk(self.k, dim=1).indices).mean(1)
            if self.two_sided:
                signal = (signal - own.gather(1, others.topk(self.k, dim=1, largest=False).indices).mean(1)) / 2
            means.append(signal)
        return torch.stack(means, 1) * self.scale

    def loss(self, weights: Tensor) -> float:
        """As in `Objective`."""
        return float(self_supervised_loss(self.scores(weights), self.k, two_sided=self.two_sided).mean())

    def centered(self, queries: Tensor) -> Tensor:
        """As in `Objective`."""
        values, means = self._of(queries)
        return values.double() - means[:, None]

    def _of(self, queries: Tensor | None) -> tuple[Tensor, Tensor]:
        if queries is None:
            return self.values, self._means
        return self.values[queries], self._means[queries]


def _scores(values: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    return (values @ weights.to(values.dtype)).double() - (means @ weights)[:, None]
