"""The train examples that may be among the strongest of a query, with what each group contributes to their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.weights.quotient import inverse

PIECE = 16384  # pairs of a query and an example that are looked at together: they stay in a processor's cache
ROUNDING = 1e-5  # of a score: sums of groups in another order differ by less


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
    def of(cls, first: int, block: Tensor, queries: Tensor, at: Tensor) -> Found:
        """Pairs of queries (p,) and positions (p,) in a block (n_groups, n_query, b) that begins at `first`."""
        return cls(queries, at + first, block[:, queries, at].T)

    def only(self, chosen: Tensor) -> Found:
        """Those where a mask (p,) is true."""
        return Found(self.queries[chosen], self.examples[chosen], self.rows[chosen])


@final
class Strongest:
    """The strongest train examples of each query under weightings near a few, kept while blocks go by.

    An example whose contributions are large changes its score the most with the weights. So what is compared is

        w . c + reach |w| |c| / sqrt(n_groups),    both in units in which groups are of equal size,

    where other weights at the distance |w| in a random direction would have added |c| |w| / sqrt(n_groups).

    Args:
        weights: (r, n_groups), raw.
        sizes: (n_groups,) of the contributions of each group; 0 for those without any.
        share: Of the examples seen, to be kept for each query and weighting.
        least: Examples to be kept even where that is less.
        reach: How far away the weightings may be; 0 keeps the strongest under the given ones.
    """

    def __init__(self, weights: Tensor, sizes: Tensor, *, share: float, least: int, reach: float) -> None:
        self._weights, self._share, self._least = weights, share, least
        self._inverse = inverse(sizes)
        self._reach = reach * (weights * sizes).norm(dim=1) / math.sqrt(len(sizes))
        self._best: list[Tensor] = []  # for each weighting the largest values, (n_query, up to count), descending
        self._entered: list[Found] = []  # what was among them when its block came
        self._seen = 0
        self._room = 0  # pairs after which those are dropped that are among them no longer

    def add(self, first: int, block: Tensor) -> None:
        """Look at contributions (n_groups, n_query, b) of the train examples from `first` on."""
        n_query, size = block.shape[1:]
        self._seen += size
        count = max(self._least, math.ceil(self._share * self._seen))
        entered = torch.zeros(n_query, size, dtype=torch.bool)
        for r, scores in enumerate(self._values(block.flatten(1).T).reshape(-1, n_query, size)):
            if r == len(self._best):
                self._best.append(scores[:, :0])
            # No more of them can be among the best: few, once most of those are known.
            known = self._best[r].shape[1]
            above = int((scores > self._best[r][:, -1:]).sum(1).max()) if known else 0
            values, at = scores.topk(min(size, count, above + count - known), dim=1)
            best = torch.cat([self._best[r], values], 1)
            self._best[r] = best.topk(min(count, best.shape[1]), dim=1).values
            queries, places = (values >= self._best[r][:, -1:]).nonzero(as_tuple=True)
            entered[queries, at[queries, places]] = True
        self._entered.append(Found.of(first, block, *entered.nonzero(as_tuple=True)))
        if sum(map(len, self._entered)) > self._room:
            self._room = 3 * sum(map(len, self.found())) // 2

    def found(self) -> list[Found]:
        """Each pair once: the strongest, and what is as strong as the last of them but for rounding."""
        for k, part in enumerate(self._entered):
            strong = torch.zeros(len(part), dtype=torch.bool)
            for values, best in zip(self._values(part.rows), self._best, strict=True):
                last = best[part.queries, -1]
                strong |= values >= last - ROUNDING * last.abs()
            self._entered[k] = part.only(strong)
        return list(self._entered)

    def _values(self, rows: Tensor) -> Tensor:
        """(r, p) of contributions (p, n_groups)."""
        weights, reach, squares = (x.to(rows.dtype) for x in (self._weights, self._reach, self._inverse.square()))
        reaching = bool(reach.any())
        found = rows.new_empty(len(weights), len(rows))
        for part, out in zip(torch.split(rows, PIECE), torch.split(found, PIECE, 1), strict=True):
            out.copy_(weights @ part.T)
            if reaching:
                out.addr_(reach, (squares @ part.T.square()).sqrt_())
        return found


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
    def of(cls, parts: Sequence[Found], n_query: int, n_train: int) -> Candidates:
        """Each pair once."""
        keys = torch.cat([part.queries * n_train + part.examples for part in parts])
        keys, order = keys.sort(stable=True)
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        queries, examples = keys[first] // n_train, keys[first] % n_train
        counts = torch.bincount(queries, minlength=n_query)
        places = torch.arange(len(queries)) - (counts.cumsum(0) - counts)[queries]
        table = torch.full((n_query, int(counts.max())), n_train)
        table[queries, places] = examples
        filled = parts[0].rows.new_zeros(*table.shape, parts[0].rows.shape[1])
        taken = torch.full((len(keys),), -1)  # the place of each pair that comes for the first time
        taken[order[first]] = places
        for part, at in zip(parts, torch.split(taken, [len(part) for part in parts]), strict=True):
            new = at >= 0
            filled[part.queries[new], at[new]] = part.rows[new]
        return cls(table, filled, n_train)

    def with_more(self, new: Sequence[Found]) -> Candidates:
        """These and others."""
        if not any(map(len, new)):
            return self
        queries, places = (self.examples < self.n_train).nonzero(as_tuple=True)
        own = Found(queries, self.examples[queries, places], self.rows[queries, places])
        return Candidates.of([own, *new], len(self.examples), self.n_train)

    def of_queries(self, queries: list[int] | Tensor) -> Candidates:
        """Those of the queries at some positions, which are counted anew."""
        return Candidates(self.examples[queries], self.rows[queries], self.n_train)

    def top_mean(self, weights: Tensor, k: int) -> Tensor:
        """(n_query, n_groups) float64: mean row of the k candidates that raw weights (n_groups,) rank first."""
        top = self._scores(weights).topk(k, dim=1).indices
        rows = self.rows.gather(1, top[:, :, None].expand(-1, -1, self.rows.shape[2]))
        return rows.double().mean(1)

    def last_scores(self, weights: Tensor, k: int) -> Tensor:
        """(n_query,): the k-th largest score by raw weights (n_groups,)."""
        return self._scores(weights).topk(k, dim=1).values[:, -1]

    def best_scores(self, query: int, weights: Tensor, count: int) -> Tensor:
        """(r, up to count): the largest scores of a query, descending, by raw weights (r, n_groups)."""
        rows = self.rows[query, : int((self.examples[query] < self.n_train).sum())]
        return (weights @ rows.T).topk(min(count, len(rows)), dim=1).values

    def _scores(self, weights: Tensor) -> Tensor:
        """(n_query, p), minus infinity where there is no candidate."""
        scores = self.rows @ weights.to(self.rows.dtype)
        return scores.masked_fill(self.examples == self.n_train, -torch.inf)
