"""Which tried weightings need a pass over the train set, and the pass that looks for what they rank too high."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.weights.candidates import ROUNDING, Candidates, Found
from whence.weights.quotient import norms
from whence.weights.sums import QUERIES

Tried = dict[bytes, tuple[Tensor, set[int]]]  # raw weights, and the positions of the queries that they were tried on


@final
@dataclass(frozen=True, eq=False)
class Known:
    """What is known of some queries without their contributions.

    Attributes:
        n_train: Train examples that it was found from.
        means: (n_query, n_groups) that centring subtracts.
        gram: (n_query, n_groups, n_groups) sums of products around these.
        candidates: The strongest train examples.
    """

    n_train: int
    means: Tensor
    gram: Tensor
    candidates: Candidates

    def of_queries(self, queries: list[int]) -> Known:
        """The same of the queries at some positions."""
        return Known(self.n_train, self.means[queries], self.gram[queries], self.candidates.of_queries(queries))


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """Weightings that a pass has looked at.

    Attributes:
        weights: (r, n_groups), raw.
        bounds: (r, n_query): no train example but the candidates of a query scores more; infinite where not asked.
    """

    weights: Tensor
    bounds: Tensor

    def settles(self, known: Known, weights: Tensor, k: int) -> Tensor:
        """(n_query,) whether the k strongest under raw weights are candidates, by what was seen of the nearest ones.

        With weights c v + d, v seen, no other example scores more than c bound + d . mean + |scores of d|: the last, a
        norm over all train examples around their mean, is that of the matrices B_q.
        """
        size = known.gram.diagonal(dim1=1, dim2=2).sum(0).sqrt()
        here, there = weights * size, self.weights * size
        factors = (there @ here / there.square().sum(1)).clamp_min(0)
        nearest = int((here - factors[:, None] * there).norm(dim=1).argmin())
        off = weights - factors[nearest] * self.weights[nearest]
        highest = factors[nearest] * self.bounds[nearest] + known.means @ off + norms(known.gram, off)
        last = known.candidates.last_scores(weights, k)
        return highest < last - ROUNDING * last.abs()


@final
class Search:
    """A pass that looks for train examples that are no candidates of a query, but strong under weightings tried on it.

    An example among the k strongest was `missed`. Those up to 2 k are found all the same: weightings to come are near.

    Args:
        candidates: Those so far.
        tried: What to look at.
        k: Examples that count as signal.
    """

    def __init__(self, candidates: Candidates, tried: Tried, k: int) -> None:
        self.missed = False
        self._k, self._candidates, self._found = k, candidates, list[Found]()
        self._weights = torch.stack([one for one, _ in tried.values()])
        weights, shape = self._weights.to(candidates.rows.dtype), (len(candidates.examples), len(tried))
        # Scores above which an example is among the k, the 2 k strongest: none where a weighting was not asked.
        self._limit, self._wider = (torch.full(shape, torch.inf, dtype=weights.dtype) for _ in range(2))
        for q in range(len(candidates.examples)):
            asked = [r for r, (_, queries) in enumerate(tried.values()) if q in queries]
            best = candidates.best_scores(q, weights[asked], 2 * k)
            self._limit[q, asked], self._wider[q, asked] = best[:, min(k, best.shape[1]) - 1], best[:, -1]

    def look(self, first: int, block: Tensor) -> None:
        """At contributions (n_groups, n_query, b) of the train examples from `first` on."""
        ends = torch.tensor([first, first + block.shape[2]]).repeat(block.shape[1], 1)
        places = torch.searchsorted(self._candidates.examples, ends).tolist()
        weights = self._weights.to(block.dtype)
        pairs = [torch.zeros(2, 0, dtype=torch.long)]
        for start in range(0, block.shape[1], QUERIES):
            scores = weights @ block[:, start : start + QUERIES].transpose(0, 1)  # (queries, r, b)
            for q, own in enumerate(scores, start):
                own[:, self._candidates.examples[q, slice(*places[q])] - first] = -torch.inf
            above = scores.amax(2) > self._wider[start : start + QUERIES]
            pairs.extend(self._strong(start + q, scores[q]) for q in above.any(1).nonzero().flatten().tolist())
        self._found.append(Found.of(first, block, *torch.cat(pairs, 1)))

    def _strong(self, q: int, scores: Tensor) -> Tensor:
        """(2, p): the query and the positions in the block that are up to 2 k-th by a weighting, of scores (r, b)."""
        self.missed |= bool((scores.amax(1) > self._limit[q]).any())
        values, at = scores.topk(min(2 * self._k, scores.shape[1]), dim=1)
        high = torch.zeros(scores.shape[1], dtype=torch.bool)
        high[at[values > self._wider[q][:, None]]] = True
        found = high.nonzero()[:, 0]
        return torch.stack([torch.full_like(found, q), found])

    def result(self) -> tuple[Candidates, Seen]:
        """All candidates, old and new, and what is now known of the weightings."""
        candidates = self._candidates.with_more(self._found)
        weights = self._weights.to(candidates.rows.dtype)
        bounds = torch.full((len(weights), len(self._wider)), torch.inf, dtype=torch.float64)
        for q, wider in enumerate(self._wider):
            asked = wider.isfinite().nonzero().flatten()
            bounds[asked, q] = candidates.best_scores(q, weights[asked], 2 * self._k)[:, -1].double()
        return candidates, Seen(self._weights, bounds)
