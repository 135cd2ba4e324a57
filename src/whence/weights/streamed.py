"""The self-supervised objective on a stream: exact, with the strongest train examples of each query in memory only.

One pass sums the matrices B_q and collects the strongest train examples of a few likely weightings. Solvers then run
on these *candidates* as if there were no others, and a second pass looks at every weighting that they tried: a train
example that one of them ranks among the k strongest of a query, and that is no candidate, becomes one, and the solver
runs again. When none is found, every number that the solver saw was that of the whole train set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from whence.errors import InputError, NumericalError
from whence.progress import stage
from whence.weights.candidates import Candidates, Found, Strongest
from whence.weights.objective import Normalise, Objective, WeightProblem, check_settings, norms
from whence.weights.solvers.nnls import solve_nnls
from whence.weights.stream import ContributionStream

KEPT = 4  # times k: candidates of a query and weighting after the first pass
CHUNK = 64  # groups of the left side of one product, so that most of a symmetric matrix is computed once
MOST_PASSES = 20


@final
class StreamedContributions:
    """Matrices and candidates of a stream; `problem` and `complete` in turn until the latter is true.

    Args:
        stream: The contributions.
        k: Train examples that count as signal.
        center, normalise: As in `WeightProblem`.
    Raises:
        InputError: k is more than there are train examples.
    Cost:
        A first pass of n_query n_train n_groups^2 multiplications, five eighths of it for many groups, in the precision
        of the blocks and added up in float64; each further one n_query n_train n_groups for each weighting tried.
        Memory n_query n_groups^2 float64, 16 k n_query n_groups, and two blocks.
    """

    def __init__(self, stream: ContributionStream, *, k: int, center: bool, normalise: Normalise) -> None:
        check_settings(k, stream.shape[1], normalise)
        self.stream, self.k, self.center, self.normalise = stream, k, center, normalise
        self.n_passes = 0
        self._tried: dict[bytes, tuple[Tensor, set[int]]] = {}
        sums, self.candidates = self._first_pass()
        self.means = sums.means() if center else torch.zeros_like(sums.shift)
        self.gram = sums.gram_around(self.means)

    def problem(self, queries: list[int]) -> StreamedProblem:
        """The objective on the queries at these positions.

        Raises:
            InputError: No contribution to them differs from zero.
        """
        return StreamedProblem(self, queries)

    def tried(self, weights: Tensor, queries: list[int]) -> None:
        """Note raw weights whose strongest examples of some queries were looked at."""
        key = weights.numpy().tobytes()
        self._tried.setdefault(key, (weights, set()))[1].update(queries)

    def complete(self) -> bool:
        """Whether the strongest examples of all weightings noted since the last call are candidates; else they become.

        Raises:
            NumericalError: After 20 passes some still were not.
        """
        if self.n_passes == MOST_PASSES:
            raise NumericalError(
                f"After {MOST_PASSES} passes over the train set the solver still tries weightings whose strongest "
                "examples are not known. Allow it fewer rounds, use solver='rms', or contributions in memory."
            )
        weights = torch.stack([one for one, _ in self._tried.values()])
        asked = torch.zeros(len(weights), self.stream.shape[0], dtype=torch.bool)
        for row, (_, queries) in zip(asked, self._tried.values(), strict=True):
            row[sorted(queries)] = True
        self._tried = {}
        # Weightings to come are near these: what they may rank among the k strongest is among the 2 k strongest here.
        limits, wider = (
            torch.where(asked, self.candidates.limits(weights, count), torch.inf) for count in (self.k, 2 * self.k)
        )
        found = [
            self.candidates.stronger(part.start, block, weights, limits, wider, 2 * self.k)
            for part, block in self._pass("strongest train examples")
        ]
        self.candidates = self.candidates.with_more(Found.joined([new for new, _ in found]))
        return not any(missed for _, missed in found)

    def _first_pass(self) -> tuple[Sums, Candidates]:
        made: tuple[Sums, Strongest] | None = None
        for part, block in self._pass("contributions"):
            if made is None:
                made = Sums(block), Strongest(self._likely_weights(block), KEPT * self.k)
            made[0].add(block)
            made[1].add(part.start, block)
        assert made is not None  # a train set has examples
        return made[0], Candidates.of(made[1].found(), self.stream.shape[0], self.stream.shape[1])

    def _likely_weights(self, block: Tensor) -> Tensor:
        """Weights (r, n_groups) near which a solver will look: those of the first train examples alone."""
        uniform = torch.ones(len(block), dtype=torch.float64)
        try:
            problem = WeightProblem(block.permute(1, 2, 0), min(self.k, block.shape[2]), self.center, self.normalise)
        except InputError:  # nothing contributes to these few
            return uniform[None]
        start = problem.weights(problem.start())
        best = solve_nnls(problem).weights
        return torch.stack([uniform, start, best, start / start.sum() + best / best.sum()])

    def _pass(self, what: str) -> Iterator[tuple[slice, Tensor]]:
        self.n_passes += 1
        with stage(what, total=self.stream.shape[1], unit="examples") as progress:
            for part, block in self.stream.blocks():
                yield part, block.cpu()
                progress.advance(block.shape[2])


@final
class Sums:
    """Sums over train examples of contributions and of their products, around the mean of the first block."""

    def __init__(self, first: Tensor) -> None:
        n_groups, n_query, _ = first.shape
        self.n = 0
        self.shift = first.mean(2, dtype=torch.float64).T.contiguous()  # (n_query, n_groups)
        self._sum = torch.zeros(n_query, n_groups, dtype=torch.float64)
        self._products = torch.zeros(n_query, n_groups, n_groups, dtype=torch.float64)  # above the diagonal blocks

    def add(self, block: Tensor) -> None:
        """Add contributions (n_groups, n_query, b)."""
        rows = block.transpose(0, 1) - self.shift.to(block.dtype)[:, :, None]
        self._sum += rows.sum(2, dtype=torch.float64)
        self.n += rows.shape[2]
        for start in range(0, rows.shape[1], CHUNK):
            left, right = rows[:, start : start + CHUNK], rows[:, start:].transpose(1, 2)
            self._products[:, start : start + CHUNK, start:] += left @ right

    def means(self) -> Tensor:
        """(n_query, n_groups)."""
        return self.shift + self._sum / self.n

    def gram_around(self, center: Tensor) -> Tensor:
        """Sum of (c - center)(c - center)^T for each query: (n_query, n_groups, n_groups)."""
        gram = self._products.triu()
        gram += self._products.triu(1).transpose(1, 2)
        mean = self._sum / self.n  # of c - shift
        off = center - self.shift
        return gram - self.n * (outer(mean, off) + outer(off, mean) - outer(off, off))


def outer(a: Tensor, b: Tensor) -> Tensor:
    """(n, g) and (n, g) to (n, g, g)."""
    return a[:, :, None] * b[:, None, :]


@final
class StreamedProblem(Objective):
    """The objective on some queries of a stream, from its matrices and candidates."""

    def __init__(self, whole: StreamedContributions, queries: list[int]) -> None:
        self._whole, self._queries = whole, queries
        self.k, self.center, self.normalise = whole.k, whole.center, whole.normalise
        self._means, self._raw_gram = whole.means[queries], whole.gram[queries]
        self.require_signal()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_query, n_train, n_groups)."""
        _, n_train, n_groups = self._whole.stream.shape
        return len(self._queries), n_train, n_groups

    def top_means(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """As in `Objective`."""
        chosen = slice(None) if queries is None else queries
        return (self._top(self.weights(x.detach()), queries) - self._means[chosen]) * self.scale

    def cross_means(self, x: Tensor) -> Tensor:
        """Not to be had.

        Raises:
            InputError: Always.
        """
        raise InputError(
            'solver="cross_fitted" ranks all train examples anew for each group, and needs contributions in memory; '
            'these are streamed. Use solver="nnls" or "one_factor", or `stream.collect()`.'
        )

    def loss(self, weights: Tensor) -> float:
        """As in `Objective`."""
        top = (self._top(weights, None) - self._means) @ weights
        size = norms(self._raw_gram, weights)
        return float((-top / torch.where(size > 0, size, 1.0)).mean())

    def centered(self, queries: Tensor) -> Tensor:
        """Not to be had.

        Raises:
            InputError: Always.
        """
        raise InputError(
            'norm_from="scores" needs the contributions of all train examples in memory; these are streamed. Use '
            'norm_from="gram", which gives the same numbers, or `stream.collect()`.'
        )

    def _top(self, weights: Tensor, queries: Tensor | None) -> Tensor:
        """(n_query, n_groups) mean contribution of the k candidates that raw weights rank first."""
        at = self._queries if queries is None else [self._queries[q] for q in queries.tolist()]
        self._whole.tried(weights, at)
        return self._whole.candidates.top_mean(weights, at, self.k)
