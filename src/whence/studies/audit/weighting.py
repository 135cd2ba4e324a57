"""Weights of parameter groups for an audit, learned without labels on queries that it does not judge by."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import final

from torch import Tensor

from whence.data import Examples
from whence.errors import WhenceWarning
from whence.methods import METHODS, Inputs
from whence.studies.audit.candidates import WEIGHTINGS, Candidate
from whence.studies.spacing import evenly
from whence.studies.weighing import Learning
from whence.task import GroupWeights
from whence.training import Recipe
from whence.weights import Contributions, contributions_with, gradient_norms, learn_weights

MOST_LEARNING = 100  # queries
LEARNING_SHARE = 0.2  # of the train set, where no queries to learn from are given


@final
class Weighting:
    """Learns the weights that candidates ask for; the contributions of a method are computed once.

    Args:
        inputs: Task and train set; their queries are not looked at.
        recipe: Further training, for methods that follow it; weights are learned at the last of `points`.
        points: Amounts of training.
        learning: Queries to learn from. Without any, evenly spaced train examples, with the others as the train set:
            an example that is query and train example at once would be its own strongest supporter.
    """

    def __init__(self, inputs: Inputs, recipe: Recipe, points: tuple[int, ...], learning: Examples | None) -> None:
        self._recipe, self._points = recipe, points
        self._known: dict[str, Contributions] = {}
        self.learning, self._train = _parts(inputs.train, learning)
        self._task = inputs.task

    def of(self, candidate: Candidate) -> GroupWeights | None:
        """The weights of a candidate; None for uniform ones.

        Raises:
            InputError: Nothing can be learned, for instance from a model none of whose groups contributes.
        """
        solver = WEIGHTINGS[candidate.weights]
        if solver is None:
            return None
        key = f"{candidate.method} {dict(candidate.options)}"
        if key not in self._known:
            self._known[key] = self._contributions(candidate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WhenceWarning)  # that the objective decides little: the audit measures it
            if solver == "rms":
                return learn_weights(self._known[key], solver)
            return Learning(solver=solver, folds=0).weights(self._known[key], self._norms)["learned"]

    @cached_property
    def _norms(self) -> Tensor:
        return gradient_norms(self._task, self._train)

    def of_first(self, n_train: int) -> Weighting:
        """The same with only the first train examples, to be timed."""
        few = self._train.subset(range(min(n_train, len(self._train))))
        return Weighting(Inputs(self._task, few, self.learning), self._recipe, self._points, self.learning)

    def _contributions(self, candidate: Candidate) -> Contributions:
        inputs = Inputs(self._task, self._train, self.learning)
        if METHODS[candidate.method].by_amount:
            at = self._points[-1]
            return contributions_with(inputs, candidate.method, recipe=self._recipe, at=at, **candidate.options)
        return contributions_with(inputs, candidate.method, **candidate.options)


def _parts(train: Examples, learning: Examples | None) -> tuple[Examples, Examples]:
    """Queries to learn from, and the train set that goes with them."""
    if learning is not None:
        return learning.subset(evenly(len(learning), MOST_LEARNING)), train
    chosen = evenly(len(train), min(MOST_LEARNING, max(1, int(LEARNING_SHARE * len(train)))))
    rest = sorted(set(range(len(train))) - set(chosen))
    return train.subset(chosen), train.subset(rest)
