"""Weights under which the scores of one method agree best with those of another, which knows more about the model."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from whence.errors import InputError, WhenceWarning
from whence.scores import ScoreMatrix
from whence.task import GroupWeights
from whence.weights.by_group import Contributions
from whence.weights.learning import losses_of, split_queries
from whence.weights.quotient import Normalise, Quotient, inverse, loss_for_signal
from whence.weights.solvers.nnls import solve_nnls
from whence.weights.stream import ContributionStream
from whence.weights.sums import Sums


def distill_weights(
    found: Contributions | ContributionStream, teacher: ScoreMatrix, *, holdout: float = 0.2
) -> GroupWeights:
    """Non-negative weights of parameter groups under which a method agrees best with a teacher, another method.

    What is maximised is the mean over queries of the correlation, over the train set, of weighted scores with the
    teacher's:

        mean_q corr_i(sum_j w_j C[q, i, j], s_qi),    w_j >= 0

    No labels and no retraining are needed. A method that knows the curvature, such as EK-FAC, tells by its scores for
    some learning queries which groups a cheap method such as Grad-Dot may believe; the weights then serve for all
    queries. They can be no better than the teacher is: where it is the worse method they do harm. As for
    `learn_weights`, learn on queries that are neither in the train set nor used to judge the result, relative to the
    norms of gradients (`relative_to_norms`, of both), and mix with uniform weights (`mixed_with_uniform`).

    Args:
        found: Contributions of the learning queries, in memory or streamed.
        teacher: Scores of another method for these queries and train examples, in any order.
        holdout: Share of the queries that is not learned from; the facts give the loss on both parts.
    Returns:
        Weights with mean 1. `facts`: the teacher; losses, which are minus the mean correlation, of uniform, RMS and
        these weights on the queries learned from and on those held out; seconds, and what the solver did.
    Raises:
        InputError: A setting is out of range, nothing contributes, or the teacher's scores do not differ.
        DataError: The teacher has no scores for a query or a train example.
    Cost:
        One pass over the contributions, n_query x n_train x n_groups^2 multiplications. Memory n_query x n_groups^2.
    Reference:
        Worked out here. Weights on groups are those of Li et al. (2026), arXiv:2506.05647; that EK-FAC is a better
        approximation of influence than Grad-Dot is shown by Grosse et al. (2023), arXiv:2308.03296.
    """
    learned_from, held_out = split_queries(len(found.query_ids), holdout)
    started = time.perf_counter()
    moments = _Moments.of(found, _directions(teacher, found))
    problem = moments.agreement(learned_from)
    problem.require_signal()
    solution = solve_nnls(problem)
    weights = GroupWeights(solution.weights, found.groups)
    losses = {"queries": losses_of(problem, problem, weights)}
    if held_out:
        losses["held_out"] = losses_of(moments.agreement(held_out), problem, weights)
    facts: dict[str, Any] = {
        "solver": "distilled",
        "teacher": teacher.method,
        "seconds": round(time.perf_counter() - started, 4),
        **losses,
        "entropy": weights.entropy,
        **solution.facts,
    }
    if "note" in facts:
        warnings.warn(f"Weights of {found.method!r}: {facts['note']}.", WhenceWarning, stacklevel=2)
    return GroupWeights(solution.weights, found.groups, "distilled", found.method, facts)


def _directions(teacher: ScoreMatrix, found: Contributions | ContributionStream) -> Tensor:
    """(n_query, n_train) float64: the teacher's scores less their means, with norm 1; 0 where they do not differ."""
    scores = teacher.select(query_ids=found.query_ids, train_ids=found.train_ids).values.double()
    scores = scores - scores.mean(1, keepdim=True)
    size = scores.norm(dim=1, keepdim=True)
    if not bool(size.any()):
        raise InputError(f"The scores of {teacher.method!r} are the same for all train examples. Use another teacher.")
    return scores * inverse(size)


@dataclass(frozen=True, eq=False)
class _Moments:
    """What the correlations need of the contributions.

    Attributes:
        gram: (n_query, n_groups, n_groups) sums of products around each query's mean.
        signal: (n_query, n_groups) sums of contributions times the teacher's direction.
        n_train: Train examples.
    """

    gram: Tensor
    signal: Tensor
    n_train: int

    @classmethod
    def of(cls, found: Contributions | ContributionStream, directions: Tensor) -> _Moments:
        """In one pass."""
        stream = ContributionStream.of(found) if isinstance(found, Contributions) else found
        n_query, n_train, n_groups = stream.shape
        sums: Sums | None = None
        signal = torch.zeros(n_query, n_groups, dtype=torch.float64)
        for part, block in stream.blocks():
            rows = block.cpu()
            sums = Sums(rows) if sums is None else sums
            sums.add(rows)
            for j, own in enumerate(rows):  # a group at a time: a block in float64 would be twice as large
                signal[:, j] += (own.double() * directions[:, part]).sum(1)
        assert sums is not None  # a train set has examples
        return cls(sums.around_means(center=True)[1], signal, n_train)

    def agreement(self, queries: list[int]) -> Agreement:
        """With the queries at these positions."""
        return Agreement(self.gram[queries], self.signal[queries], self.n_train)


@final
class Agreement(Quotient):
    """The mean correlation of weighted scores with given ones.

    Args:
        gram: (n_query, n_groups, n_groups), sums of products of centred contributions.
        signal: (n_query, n_groups), sums of contributions times given scores of mean 0 and norm 1.
        n_train: Train examples.
    """

    normalise: Normalise = "rms"

    def __init__(self, gram: Tensor, signal: Tensor, n_train: int) -> None:
        self._raw_gram, self._signal, self._n_train = gram, signal, n_train

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_query, n_train, n_groups)."""
        n_query, n_groups = self._signal.shape
        return n_query, self._n_train, n_groups

    def signal(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """(n_query, n_groups): the same for all weights."""
        chosen = self._signal if queries is None else self._signal[queries]
        return chosen * self.scale

    def loss(self, weights: Tensor) -> float:
        """Minus the mean correlation."""
        return float(loss_for_signal(self._raw_gram, self._signal, weights))
