"""The mean of quotients that weights maximise: how large a signal is beside the norm of all scores of its query."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from whence.errors import InputError

Normalise = Literal["rms", "none"]


class Quotient(ABC):
    """The mean over queries of (a_q . x) / sqrt(x^T B_q x): a signal beside the norm of the scores.

    The signal a_q is what an objective makes of it: the mean of the strongest scores, or the agreement with scores of
    another method. Solvers work with *scaled* weights x: the scores are sum_j x_j scale_j C[q, i, j], centred or not.

    Attributes:
        normalise: "rms" divides each group by the root mean square of its contributions.
    """

    normalise: Normalise
    _raw_gram: Tensor  # (n_query, n_groups, n_groups) float64

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(n_query, n_train, n_groups)."""

    @abstractmethod
    def signal(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """(n_query, n_groups) a_q of scaled weights x, of all queries or those at some positions."""

    @abstractmethod
    def loss(self, weights: Tensor) -> float:
        """Minus the mean quotient of raw weights."""

    @cached_property
    def rms(self) -> Tensor:
        """(n_groups,) float64: root mean square over queries and train examples, after centring where asked for."""
        n_query, n_train, _ = self.shape
        return (self._raw_gram.diagonal(dim1=1, dim2=2).sum(0).clamp_min(0) / (n_query * n_train)).sqrt()

    @cached_property
    def scale(self) -> Tensor:
        """(n_groups,) float64: what contributions are multiplied with; 0 for groups that contribute nothing."""
        if self.normalise == "none":
            return (self.rms > 0).double()
        return inverse(self.rms)

    @cached_property
    def gram(self) -> Tensor:
        """(n_query, n_groups, n_groups) float64, B_q: the squared norm of query q's scores is x^T B_q x."""
        return self._raw_gram * torch.outer(self.scale, self.scale)

    def weights(self, x: Tensor) -> Tensor:
        """Weights of the raw contributions from scaled ones, (n_groups,)."""
        return x * self.scale

    def start(self) -> Tensor:
        """Scaled weights, all alike: with "rms" these are the RMS weights."""
        alive = (self.scale > 0).double()
        return alive / alive.sum()

    def starts(self) -> dict[str, Tensor]:
        """Scaled weights with sum 1 whose raw ones are "rms" or "uniform" weights."""
        both = {"rms": inverse(self.rms * self.scale), "uniform": inverse(self.scale)}
        return {name: x / x.sum() for name, x in both.items()}

    def require_signal(self) -> None:
        """Refuse what nothing can be learned from."""
        if not bool((self.rms > 0).any()):
            raise InputError("No group contributes anything to these queries. Use other learning queries.")


def inverse(sizes: Tensor) -> Tensor:
    """1 / sizes, and 0 where they are 0."""
    return torch.where(sizes > 0, 1 / sizes, 0.0)


def norms(gram: Tensor, x: Tensor) -> Tensor:
    """(n_query,) norms of the scores of scaled weights x, from the matrices B_q (n_query, n_groups, n_groups)."""
    # Products with a vector read the matrices once; `einsum` of three would copy them.
    return ((gram.flatten(0, 1) @ x).reshape(gram.shape[:2]) @ x).clamp_min(0).sqrt()


def loss_for_signal(gram: Tensor, signal: Tensor, x: Tensor) -> Tensor:
    """Minus the mean quotient of weights x, from the signal (n_query, n_groups) and B_q.

    All three in scaled units, or all in raw ones. A query without scores has a loss of 0.
    """
    size = norms(gram, x)
    loss: Tensor = -(signal @ x / torch.where(size > 0, size, 1.0)).mean()
    return loss
