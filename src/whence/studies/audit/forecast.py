"""What a candidate will cost, from a small part of its own work: an audit does not begin what it cannot end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, final

import torch

from whence.algebra import Steps, look_ahead_kernel
from whence.curvature import choose_form
from whence.curvature.krylov import EXPECTED_STEPS
from whence.curvature.linearized import LinearizedTrain
from whence.gradients import measure_gradients, moved_outputs
from whence.methods import METHODS, Inputs
from whence.rng import torch_generator
from whence.studies.audit.candidates import Candidate
from whence.studies.audit.weighting import Weighting
from whence.training import Recipe

FEW, MORE = 16, 48  # train examples that are timed
SMALL = 4 * MORE  # train set up to which a forecast would cost as much as the work
CAREFREE = 0.25  # of the time that is left: a rough forecast below it is good enough
FEW_STEPS = 5  # of an unrolled run
DENSE = 384  # rows of the matrices that are timed
SOME_STEPS = 1000  # of an optimizer's recurrence


@final
class Forecast:
    """Seconds that candidates will take, to a factor of about two.

    Per-example work is timed on few train examples and counted up; a run on its first steps; the dense algebra of a
    curvature, and of a look-ahead, is counted, and its speed timed.

    Args:
        inputs: As the candidates get them.
        recipe: Further training.
        points: Amounts of training.
        weighting: Learns the weights of candidates.
    """

    def __init__(self, inputs: Inputs, recipe: Recipe, points: tuple[int, ...], weighting: Weighting) -> None:
        self._inputs, self._recipe, self._points, self._weighting = inputs, recipe, points, weighting
        self._fitted = False

    def seconds(self, candidate: Candidate, within: float) -> float:
        """What the candidate will take.

        Args:
            candidate: Not begun yet.
            within: Seconds that are left: what is far above them is told from fewer steps.
        Raises:
            WhenceError: The candidate cannot work on this model at all.
        """
        if candidate.method == "unrolled":
            return self._unrolled(candidate, within)
        if METHODS[candidate.method].curvature == "gauss_newton":
            motion = self._motion(candidate) if candidate.method == "horizon_ahead" else 0.0
            return motion + (0.0 if self._fitted else self._gauss_newton)
        return self._by_examples(candidate, within)

    def done(self, candidate: Candidate) -> None:
        """Say that the candidate's scores are there: others share its curvature."""
        self._fitted |= METHODS[candidate.method].curvature == "gauss_newton"

    def _unrolled(self, candidate: Candidate, within: float) -> float:
        """The first steps; each amount of training has a derivative of its own that is taken back to the start."""
        n = self._inputs.n_train
        total = sum(self._recipe.steps_at(point, n) for point in self._points)
        longest = self._recipe.steps_at(self._recipe.amount, n)

        def first(steps: int) -> float:
            recipe = dataclasses.replace(self._recipe, epochs=None, steps=steps)
            return timed(lambda: candidate.scores(self._inputs, recipe, (steps,)))

        one = first(1)
        if one > within:
            return one * total
        few = min(FEW_STEPS, longest)
        return first(few) / few * total

    def _by_examples(self, candidate: Candidate, within: float) -> float:
        if self._inputs.n_train <= SMALL:
            return 0.0
        first = (
            self._on_few(candidate, FEW) * self._inputs.n_train / FEW
        )  # too much: what is done once is counted often
        if first < CAREFREE * within:
            return first
        return extrapolated(lambda n: self._on_few(candidate, n), self._inputs.n_train)

    def _on_few(self, candidate: Candidate, n_train: int) -> float:
        inputs = Inputs(self._inputs.task, self._inputs.train.subset(range(n_train)), self._inputs.queries)
        weighting = self._weighting.of_first(n_train)
        return timed(lambda: candidate.scores(inputs, self._recipe, self._points, weighting.of(candidate)))

    @cached_property
    def _gauss_newton(self) -> float:
        """Jacobian rows, and the decomposition or the products of the form that fits the size."""
        task, train, n_train = self._inputs.task, self._inputs.train, self._inputs.n_train

        def rows_of(n: int) -> float:
            linear = LinearizedTrain.of(task, train.subset(range(min(n, n_train))))
            return timed(lambda: sum(len(rows) for _, rows in linear.blocks()))

        rows = extrapolated(rows_of, n_train) if n_train > SMALL else 0.0
        return rows + dense_seconds(*self._sizes)

    def _motion(self, candidate: Candidate) -> float:
        """What `horizon_ahead` does at each amount of training even where the curvature is there."""
        is_exact = candidate.options.get("look_ahead", "exact") == "exact"
        runs = [self._recipe.scaled_dynamics(point, self._inputs.n_train) for point in self._points]
        return sum(self._moved_queries + motion_seconds(*self._sizes, steps, is_exact=is_exact) for steps in runs)

    @cached_property
    def _moved_queries(self) -> float:
        """Gradients of the queries at moved outputs, timed on a few of them."""
        task, queries = self._inputs.task, self._inputs.queries
        few = queries.subset(range(min(FEW, len(queries))))
        still = torch.zeros(task.layout.n_params, dtype=torch.float64, device=task.device)

        def moved() -> None:
            measure_gradients(task, few, outputs=moved_outputs(task, few, still, dtype=torch.float64))

        moved()  # the first time something is set up once and for all
        return timed(moved) * len(queries) / len(few)

    @cached_property
    def _sizes(self) -> tuple[int, int, int]:
        """Rows of the curvature's factor, parameters, queries."""
        task, train = self._inputs.task, self._inputs.train
        n_contrasts = LinearizedTrain.of(task, train.subset(range(1))).n_contrasts
        return self._inputs.n_train * n_contrasts, task.layout.n_params, len(self._inputs.queries)


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def extrapolated(seconds_for: Callable[[int], float], n: int) -> float:
    """Seconds for `n`, on the line through `FEW` and `MORE`; a line that falls counts as level."""
    few, more = seconds_for(FEW), seconds_for(MORE)
    return more + max(0.0, more - few) / (MORE - FEW) * (n - MORE)


def dense_seconds(n_rows: int, n_params: int, n_query: int) -> float:
    """Seconds of a curvature with a factor of n_rows x n_params, once its rows are there."""
    rate = _rate()
    if choose_form(n_rows, n_params) == "krylov":
        return 4 * n_rows * n_params * EXPECTED_STEPS * n_query / rate
    least = min(n_rows, n_params)
    decomposition = slowest_of(torch.linalg.eigh) * (least / DENSE) ** 3
    return 2 * n_rows * n_params * least / rate + decomposition


def motion_seconds(n_rows: int, n_params: int, n_query: int, steps: Steps, *, is_exact: bool) -> float:
    """Seconds of a look-ahead at one amount of training, once the curvature is there."""
    form = choose_form(n_rows, n_params)
    if form == "krylov":  # the queries are others at each amount: new Krylov spaces, and one more product with them
        return (6 if is_exact else 4) * n_rows * n_params * EXPECTED_STEPS * n_query / _rate()
    if not is_exact:
        return 0.0
    operations = 2 * n_rows**3 if form == "dual" else 4 * n_rows * n_params**2
    return operations / _rate() + kernel_seconds(min(n_rows, n_params), steps)


def kernel_seconds(n: int, steps: Steps) -> float:
    """Seconds of the look-ahead's kernel for n eigenvalues, timed on some of its rows and, of a recurrence, steps."""
    some, few = min(n, DENSE), steps if steps.constant else steps.first(min(steps.n_steps, SOME_STEPS))
    spectrum = torch.linspace(0, 1 / steps.max_lr, n, dtype=torch.float64)
    seconds = timed(lambda: look_ahead_kernel(spectrum[:some], spectrum, few))
    return seconds * (n / some) * (steps.n_steps / few.n_steps)


def _rate() -> float:
    """Multiplications and additions in a second."""
    return 2 * DENSE**3 / slowest_of(lambda x: x @ x)


def slowest_of(work: Callable[[torch.Tensor], Any], repeats: int = 3) -> float:
    """Most seconds that work on a matrix of `DENSE` rows took: on a busy machine the quickest is no promise."""
    matrix = torch.rand(DENSE, DENSE, dtype=torch.float64, generator=torch_generator(0, "forecast"))
    matrix = matrix + matrix.T
    return max(timed(lambda: work(matrix)) for _ in range(repeats))
