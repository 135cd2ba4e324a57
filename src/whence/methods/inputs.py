"""What every method is computed from, with the parts that several methods share computed once."""

from __future__ import annotations

from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from whence.curvature import GaussNewton, fit_gauss_newton
from whence.data import Examples
from whence.gradients import measure_gradients
from whence.task import Task, fingerprint


@final
class Inputs:
    """A task, its train set and queries, checked; gradients of the queries and the curvature are kept between methods.

    Args:
        task: The final model and its contract, in eval mode.
        train: The train set.
        queries: What is to be explained.
    Raises:
        InputError: Something does not fit; before any long work.
    """

    def __init__(self, task: Task, train: Examples, queries: Examples) -> None:
        task.check(train.all(), train.ids)
        task.check(queries.all(), queries.ids, role="query")
        self.task, self.train, self.queries = task, train, queries
        self._curvatures: dict[str, GaussNewton] = {}

    @property
    def n_train(self) -> int:
        """Number of train examples."""
        return len(self.train)

    @property
    def orientation(self) -> int:
        """o_q: +1 where a lower measure is better, -1 otherwise."""
        return self.task.measure.orientation

    @cached_property
    def query_gradients(self) -> Tensor:
        """Gradients of the measures at the final parameters, (n_query, n_params)."""
        return measure_gradients(self.task, self.queries)

    def query_gradients_in(self, dtype: torch.dtype) -> Tensor:
        """The same computed in another precision."""
        if dtype == self.query_gradients.dtype:
            return self.query_gradients
        return measure_gradients(self.task, self.queries, dtype=dtype)

    def gauss_newton(self, form: str = "auto") -> GaussNewton:
        """The Gauss-Newton curvature of the train set."""
        if form not in self._curvatures:
            self._curvatures[form] = fit_gauss_newton(self.task, self.train, form=form)
        return self._curvatures[form]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Fingerprints for the provenance of scores."""
        total = sum(p.numel() for p in self.task.model.parameters())
        return {
            "model": fingerprint(self.task.model),
            "train": self.train.fingerprint,
            "queries": self.queries.fingerprint,
            "measure": self.task.measure.name,
            "coverage_percent": 100.0 * self.task.layout.n_params / total,
        }
