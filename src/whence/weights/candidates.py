"""The train examples that may be among the strongest of a query, with what each group contributes to their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Found:
    """Pairs of a query and a train example.

    Attributes:
        queries, examples: Positions (p,).
        rows: Contributions (p, n_groups).
    """

    queries: Tensor
    examples: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.queries)

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """All of them."""
        queries, examples = (torch.cat([getattr(p, name) for p in parts]) for name in ("queries", "examples"))
        return cls(queries, examples, torch.cat([p.rows for p in parts]))


@final
class Strongest:
    """The strongest train examples of each query under a few weightings, kept while blocks go by.

    Args:
        weights: (r, n_groups), raw.
        count: Examples kept for each query and weighting.
    """

    def __init__(self, weights: Tensor, count: int) -> None:
        self._weights, self._count = weights, count
        self._scores: list[Tensor] = []  # for each weighting (n_query, up to count)
        self._examples: list[Tensor] = []
        self._rows: list[Tensor] = []  # (n_query, up to count, n_groups)

    def add(self, first: int, block: Tensor) -> None:
        """Look at contributions (n_groups, n_query, b) of the train examples from `first` on."""
        for r, scores in enumerate(scores_of(block, self._weights)):
            values, at = scores.topk(min(self._count, scores.shape[1]), dim=1)
            rows = _rows_at(block, at)
            if len(self._scores) <= r:
                self._scores.append(values)
                self._examples.append(at + first)
                self._rows.append(rows)
                continue
            values = torch.cat([self._scores[r], values], 1)
            examples = torch.cat([self._examples[r], at + first], 1)
            rows = torch.cat([self._rows[r], rows], 1)
            self._scores[r], order = values.topk(min(self._count, values.shape[1]), dim=1)
            self._examples[r] = examples.gather(1, order)
            self._rows[r] = rows.gather(1, order[:, :, None].expand(-1, -1, rows.shape[2]))

    def found(self) -> Found:
        """All of them; a pair that two weightings keep comes twice."""
        parts = []
        for examples, rows in zip(self._examples, self._rows, strict=True):
            queries = torch.arange(len(examples))[:, None].expand_as(examples)
            parts.append(Found(queries.flatten(), examples.flatten(), rows.flatten(0, 1)))
        return Found.joined(parts)


@final
@dataclass(frozen=True, eq=False)
class Candidates:
    """For each query some train examples; queries with fewer of them are filled up.

    Attributes:
        examples: (n_query, p) positions, ascending; `n_train` where there is none.
        rows: (n_query, p, n_groups).
        n_train: Train examples in all.
    """

    examples: Tensor
    rows: Tensor
    n_train: int

    @classmethod
    def of(cls, found: Found, n_query: int, n_train: int) -> Candidates:
        """Each pair once."""
        keys = found.queries * n_train + found.examples
        keys, order = keys.sort(stable=True)
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        order = order[first]
        queries, examples, rows = found.queries[order], found.examples[order], found.rows[order]
        counts = torch.bincount(queries, minlength=n_query)
        places = torch.arange(len(queries)) - (counts.cumsum(0) - counts)[queries]
        size = int(counts.max())
        table = torch.full((n_query, size), n_train)
        filled = rows.new_zeros(n_query, size, rows.shape[1])
        table[queries, places] = examples
        filled[queries, places] = rows
        return cls(table, filled, n_train)

    def with_more(self, new: Found) -> Candidates:
        """These and others."""
        if len(new) == 0:
            return self
        queries, places = (self.examples < self.n_train).nonzero(as_tuple=True)
        own = Found(queries, self.examples[queries, places], self.rows[queries, places])
        return Candidates.of(Found.joined([own, new]), len(self.examples), self.n_train)

    def top_mean(self, weights: Tensor, queries: list[int], k: int) -> Tensor:
        """(len(queries), n_groups) float64: mean row of the k candidates that raw weights (n_groups,) rank first."""
        rows = self.rows[queries]
        top = self._scores(weights, rows, self.examples[queries]).topk(k, dim=1).indices
        return rows.gather(1, top[:, :, None].expand(-1, -1, rows.shape[2])).double().mean(1)

    def limits(self, weights: Tensor, k: int) -> Tensor:
        """(r, n_query): the k-th largest score of each query among the candidates, for weights (r, n_groups).

        Where there are fewer candidates it is the last of them.
        """
        found = []
        for one in weights:
            scores = self._scores(one, self.rows, self.examples).sort(dim=1, descending=True).values
            last = (self.examples < self.n_train).sum(1).clamp(max=k) - 1
            found.append(scores.gather(1, last[:, None])[:, 0])
        return torch.stack(found)

    def stronger(
        self, first: int, block: Tensor, weights: Tensor, limits: Tensor, wider: Tensor, count: int
    ) -> tuple[Found, bool]:
        """Train examples of a block, no candidates yet, whose score under a weighting is above a limit (r, n_query).

        Args:
            first: Position of the block's first train example.
            block: Contributions (n_groups, n_query, b).
            weights: (r, n_groups), raw.
            limits: That no example may exceed.
            wider: Not above `limits`: what exceeds these is returned.
            count: At most so many for each query and weighting.
        Returns:
            The examples, and whether one exceeds `limits`.
        """
        scores = scores_of(block, weights)
        inside = (self.examples >= first) & (self.examples < first + block.shape[2])
        queries, places = inside.nonzero(as_tuple=True)
        scores[:, queries, self.examples[queries, places] - first] = -torch.inf
        best = scores.amax(2)
        r, q = (best > wider).nonzero(as_tuple=True)
        values, at = scores[r, q].topk(min(count, scores.shape[2]), dim=1)
        above = values > wider[r, q][:, None]
        queries, at = q[:, None].expand_as(at)[above], at[above]
        return Found(queries, at + first, block[:, queries, at].T), bool((best > limits).any())

    def _scores(self, weights: Tensor, rows: Tensor, examples: Tensor) -> Tensor:
        """(n, p), minus infinity where there is no candidate."""
        return (rows @ weights.to(rows.dtype)).masked_fill(examples == self.n_train, -torch.inf)


def scores_of(block: Tensor, weights: Tensor) -> Tensor:
    """(r, n_query, b) scores of raw weights (r, n_groups) from contributions (n_groups, n_query, b)."""
    return (weights.to(block.dtype) @ block.flatten(1)).reshape(len(weights), *block.shape[1:])


def _rows_at(block: Tensor, at: Tensor) -> Tensor:
    """Contributions (n_query, p, n_groups) of the train examples at positions (n_query, p) of a block."""
    return block.permute(1, 2, 0)[torch.arange(len(at))[:, None], at]
