"""The self-supervised objective on a stream: exact, with the strongest train examples of each query in memory only.

One pass sums the matrices B_q and collects the strongest train examples of a few likely weightings, which are those
that the closed form tries on what the pass has seen so far. Solvers then run on these *candidates* as if there were no
others, and a second pass looks at every weighting that they tried: a train example that one of them ranks among the k
strongest of a query, and that is no candidate, becomes one, and the solver runs again. When none is found, every number
that the solver saw was that of the whole train set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from whence.errors import InputError, NumericalError
from whence.progress import stage
from whence.weights.candidates import Candidates, Found, Strongest
from whence.weights.objective import Objective, check_settings
from whence.weights.quotient import Normalise, inverse, loss_for_signal
from whence.weights.search import Known, Search, Seen, Tried
from whence.weights.solvers.nnls import alternate
from whence.weights.stream import ContributionStream
from whence.weights.sums import Sums

LOOK = 1 / 8  # of the train set: after so much of it likely weightings are found
LIKELY = 3  # of them, beside the uniform one
LIKELY_ROUNDS = 12  # of the closed form that finds them
KEPT = 40  # times k: candidates of a query and weighting, a share of the train examples seen
LEAST_KEPT = 8  # times k
REACH = 1.5  # of `Strongest`
MOST_PASSES = 20


@final
class StreamedContributions:
    """Matrices and candidates of a stream; `problem` and `complete` in turn until the latter is true.

    Args:
        stream: The contributions.
        k: Train examples that count as signal.
        center, normalise, two_sided: As in `WeightProblem`.
    Raises:
        InputError: k is more than there are train examples.
    Cost:
        A first pass with the products of `Sums`; each further one n_query n_train n_groups multiplications for each
        weighting tried. Two passes in all are usual. Memory n_query n_groups^2 float64, some 30 k n_query n_groups
        numbers, and two blocks.
    """

    def __init__(
        self, stream: ContributionStream, *, k: int, center: bool, normalise: Normalise, two_sided: bool = False
    ) -> None:
        check_settings(k, stream.shape[1], normalise, two_sided)
        self.stream, self.k = stream, k
        self.center, self.normalise, self.two_sided = center, normalise, two_sided
        self.n_passes = 0
        self._tried: Tried = {}
        self._known = self._first_pass()
        self._seen: Seen | None = None

    def problem(self, queries: list[int]) -> StreamedProblem:
        """The objective on the queries at these positions.

        Raises:
            InputError: No contribution to them differs from zero.
        """
        return self._problem(self._known.of_queries(queries), self._tried, queries)

    def complete(self) -> bool:
        """Whether the strongest examples of all weightings tried since the last call are candidates; else they become.

        No pass is needed for weightings so near to those of the last one that what it saw settles them.

        Raises:
            NumericalError: After 20 passes some still were not.
        """
        unsettled = self._unsettled()
        self._tried = {}
        if not unsettled:
            return True
        if self.n_passes == MOST_PASSES:
            raise NumericalError(
                f"After {MOST_PASSES} passes over the train set the solver still tries weightings whose strongest "
                "examples are not known. Allow it fewer rounds, use solver='rms', or contributions in memory."
            )
        search = Search(self._known.candidates, unsettled, self.k)
        for part, block in self._pass("strongest train examples"):
            search.look(part.start, block)
        candidates, self._seen = search.result()
        self._known = replace(self._known, candidates=candidates)
        return not search.missed

    def _unsettled(self) -> Tried:
        """The weightings tried and the queries for which they need a pass."""
        if self._seen is None:
            return self._tried
        unsettled: Tried = {}
        for key, (weights, queries) in self._tried.items():
            settled = self._seen.settles(self._known, weights, self.k).tolist()
            left = {q for q in queries if not settled[q]}
            if left:
                unsettled[key] = weights, left
        return unsettled

    def _problem(self, known: Known, tried: Tried, queries: list[int]) -> StreamedProblem:
        def note(weights: Tensor, positions: Tensor | None) -> None:
            asked = queries if positions is None else [queries[q] for q in positions.tolist()]
            tried.setdefault(weights.numpy().tobytes(), (weights, set()))[1].update(asked)

        k = min(self.k, known.n_train)
        return StreamedProblem(known, k, self.center, self.normalise, self.two_sided, note)

    def _first_pass(self) -> Known:
        n_query, n_train, _ = self.stream.shape
        sums: Sums | None = None
        found: list[Found] = []
        early = 0  # train examples before likely weightings are known
        for part, block in self._pass("contributions"):
            if sums is None:
                sums, likely = Sums(block), _even_weights(block)
                strongest = self._strongest(likely)
            sums.add(block)
            strongest.add(part.start, block)
            if early == 0 and sums.n >= LOOK * n_train:
                early, found = sums.n, strongest.found()
                likely = self._likely_weights(sums, Candidates.of(found, n_query, n_train)) or likely
                strongest = self._strongest(likely)
        assert sums is not None  # a train set has examples
        for part, block in self._blocks("first train examples again", early):
            strongest.add(part.start, block)
        candidates = Candidates.of([*found, *strongest.found()], n_query, n_train)
        return Known(n_train, *sums.around_means(self.center), candidates)

    def _strongest(self, likely: tuple[Tensor, Tensor]) -> Strongest:
        weights, sizes = likely
        if self.two_sided:  # the lowest scores are the highest of the opposite weights
            weights = torch.cat([weights, -weights])
        share = min(1.0, KEPT * self.k / self.stream.shape[1])
        return Strongest(weights, sizes, share=share, least=LEAST_KEPT * self.k, reach=REACH)

    def _likely_weights(self, sums: Sums, candidates: Candidates) -> tuple[Tensor, Tensor] | None:
        """Weights (r, n_groups) near which a solver will look, and sizes of the groups (n_groups,).

        They are those that the closed form tries on what was seen; None where nothing contributes to it.
        """
        n_query, _, n_groups = self.stream.shape
        tried: Tried = {}
        try:
            known = Known(sums.n, *sums.around_means(self.center), candidates)
            problem = self._problem(known, tried, list(range(n_query)))
        except InputError:
            return None
        best = problem.weights(alternate(problem, problem.starts()["rms"], LIKELY_ROUNDS).x)
        start = problem.weights(problem.start())
        between = start / start.sum() + best / best.sum()
        others = torch.stack([best, between, *(weights for weights, _ in tried.values())])
        uniform = torch.ones(1, n_groups, dtype=torch.float64)
        return torch.cat([uniform, far_apart(others, problem.rms)]), problem.rms

    def _pass(self, what: str) -> Iterator[tuple[slice, Tensor]]:
        self.n_passes += 1
        return self._blocks(what, self.stream.shape[1])

    def _blocks(self, what: str, n: int) -> Iterator[tuple[slice, Tensor]]:
        """The blocks of the first n train examples that a pass meets."""
        with stage(what, total=n, unit="examples") as progress:
            for part, block in self.stream.blocks():
                yield part, block.cpu()
                progress.advance(block.shape[2])
                n -= block.shape[2]
                if n <= 0:
                    return


def _even_weights(block: Tensor) -> tuple[Tensor, Tensor]:
    """(2, n_groups) uniform weights, and those that give all groups of a block one size; and the sizes (n_groups,)."""
    sizes = block.var(2, correction=0).mean(1).double().sqrt()
    return torch.stack([torch.ones_like(sizes), inverse(sizes)]), sizes


def far_apart(weights: Tensor, rms: Tensor) -> Tensor:
    """At most `LIKELY` of the weights (r, n_groups), the first and then always the one farthest from all before.

    How far: by the directions of weights in units in which groups are of equal size.
    """
    directions = torch.nn.functional.normalize(weights * rms, dim=1)
    chosen = [0]
    for _ in range(min(LIKELY, len(weights)) - 1):
        nearest = torch.cdist(directions, directions[chosen]).amin(1)
        chosen.append(int(nearest.argmax()))
    return weights[chosen]


@final
class StreamedProblem(Objective):
    """The objective on some queries of a stream, from its matrices and candidates.

    Args:
        known: Of these queries.
        k, center, normalise, two_sided: As in `Objective`.
        note: Called with raw weights whose strongest examples are looked at, and positions of the queries (None: all).
    """

    def __init__(
        self,
        known: Known,
        k: int,
        center: bool,
        normalise: Normalise,
        two_sided: bool,
        note: Callable[[Tensor, Tensor | None], None],
    ) -> None:
        self.k, self.center, self.normalise, self.two_sided = k, center, normalise, two_sided
        self._known, self._note = known, note
        self._means, self._raw_gram = known.means, known.gram
        self.require_signal()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_query, n_train, n_groups)."""
        n_query, n_groups = self._means.shape
        return n_query, self._known.n_train, n_groups

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
        return float(loss_for_signal(self._raw_gram, self._raw_signal(weights), weights))

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
        self._note(weights, queries)
        candidates = self._known.candidates
        return (candidates if queries is None else candidates.of_queries(queries)).top_mean(weights, self.k)
