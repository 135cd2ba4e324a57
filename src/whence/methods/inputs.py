"""What every method is computed from, with the parts that several methods share computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from whence.curvature import GaussNewton, fit_gauss_newton
from whence.curvature.fisher import fit_fisher
from whence.curvature.preconditioned import adam_preconditioner
from whence.data import Examples
from whence.gradients import measure_gradients
from whence.task import GroupWeights, ParameterGroups, Task, fingerprint
from whence.training import Recipe

Fitted = TypeVar("Fitted")
QueryMap = Callable[[Tensor], Tensor]  # (n_query, n_params) -> (m, n_params), linear in every row


@final
class Inputs:
    """A task, its train set and queries, checked; gradients of the queries and the curvature are kept between methods.

    Every method that is linear in the query's gradient reads it through `query_gradients`, `query_gradients_in` or
    `query_side`. `weighted` and `by_group` change what these give, and nothing else: so weights of parameter groups,
    and contributions of single groups, come to all such methods without a line of their own.

    Args:
        task: The final model and its contract, in eval mode.
        train: The train set.
        queries: What is to be explained.
    Raises:
        InputError: Something does not fit; before any long work.
    """

    weights: GroupWeights | None = None

    def __init__(self, task: Task, train: Examples, queries: Examples) -> None:
        task.check(train.all(), train.ids)
        self._set(task, train, queries, {})

    def _set(self, task: Task, train: Examples, queries: Examples, curvatures: dict[Hashable, Any]) -> None:
        """Fill in a checked train set and queries that are not checked yet; the one place where attributes are set."""
        task.check(queries.all(), queries.ids, role="query")
        self.task, self.train, self.queries = task, train, queries
        self._curvatures = curvatures
        self._gradients: dict[torch.dtype | None, Tensor] = {}
        self._query_map: QueryMap | None = None

    @property
    def n_train(self) -> int:
        """Number of train examples."""
        return len(self.train)

    @property
    def orientation(self) -> int:
        """o_q: +1 where a lower measure is better, -1 otherwise."""
        return self.task.measure.orientation

    @property
    def is_plain(self) -> bool:
        """Whether query gradients are taken as they are: neither weighted nor split into groups."""
        return self._query_map is None

    @property
    def unmapped(self) -> Inputs:
        """The same inputs with query gradients as they are."""
        return self._with_map(None)

    @property
    def query_gradients(self) -> Tensor:
        """Query side a_q at the final parameters, (n_query, n_params)."""
        return self._mapped(self._raw(None))

    def query_gradients_in(self, dtype: torch.dtype) -> Tensor:
        """The same computed in another precision."""
        own = self._raw(None)
        return self._mapped(own if own.dtype == dtype else self._raw(dtype))

    def query_side(self, outputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Query side with the slope of the measure taken at other `outputs` (n_query, ...), such as predicted ones."""
        return self._mapped(measure_gradients(self.task, self.queries, outputs=outputs, dtype=dtype))

    def query_gradients_of(self, task: Task, dtype: torch.dtype | None = None) -> Tensor:
        """Query side of the same measure on other parameters, those of `task`'s model."""
        return self._mapped(measure_gradients(task, self.queries, dtype=dtype))

    def gauss_newton(self, form: str = "auto") -> GaussNewton:
        """The Gauss-Newton curvature of the train set."""
        return self.once(form, lambda: fit_gauss_newton(self.task, self.train, form=form))

    def curvature_of(self, recipe: Recipe, form: str = "auto") -> GaussNewton:
        """The Gauss-Newton curvature as the recipe's optimizer meets it: preconditioned for Adam, else as it is."""
        if not recipe.rescales:
            return self.gauss_newton(form)

        def fit() -> GaussNewton:
            diagonal = adam_preconditioner(self.task, self.train, recipe.batch_size, recipe.eps)
            return fit_gauss_newton(self.task, self.train, form=form, preconditioner=diagonal)

        return self.once((form, "adam", recipe.batch_size, recipe.eps), fit)

    def fisher(self, fisher: str, form: str = "auto", *, n_samples: int = 1, seed: int = 0) -> GaussNewton:
        """A Fisher matrix of the train set; see `fit_fisher`."""

        def fit() -> GaussNewton:
            return fit_fisher(self.task, self.train, fisher=fisher, n_samples=n_samples, seed=seed, form=form)

        return self.once((form, fisher, n_samples, seed), fit)

    def once(self, key: Hashable, fit: Callable[[], Fitted]) -> Fitted:
        """What `fit` gives, kept under `key` for all methods and for the same task and train set with other queries."""
        if key not in self._curvatures:
            self._curvatures[key] = fit()
        found: Fitted = self._curvatures[key]
        return found

    def weighted(self, weights: GroupWeights) -> Inputs:
        """The same inputs with Diag(w) on the query side.

        Raises:
            InputError: The weights belong to other parameters.
        """
        of_parameter = weights.of_parameter(self.task.layout).to(self.task.device)
        twin = self._with_map(None if weights.is_uniform else lambda rows: rows * of_parameter.to(rows.dtype))
        twin.weights = weights
        return twin

    def by_group(self, groups: ParameterGroups) -> Inputs:
        """The same inputs with every query split into its groups: row q * n_groups + j keeps group j of query q only.

        Raises:
            InputError: The groups belong to other parameters.
        """
        of_parameter = groups.of_parameter(self.task.layout).to(self.task.device)
        masks = of_parameter == torch.arange(len(groups), device=of_parameter.device)[:, None]
        return self._with_map(lambda rows: (rows[:, None] * masks.to(rows.dtype)).flatten(0, 1))

    def with_queries(self, queries: Examples) -> Inputs:
        """Other queries for the same task and train set, which is not checked again; the curvature is shared."""
        twin = object.__new__(Inputs)
        twin._set(self.task, self.train, queries, self._curvatures)
        return twin

    def _with_map(self, query_map: QueryMap | None) -> Inputs:
        twin = copy.copy(self)  # curvatures and raw gradients stay shared
        twin._query_map = query_map
        return twin

    def _raw(self, dtype: torch.dtype | None) -> Tensor:
        if dtype not in self._gradients:
            self._gradients[dtype] = measure_gradients(self.task, self.queries, dtype=dtype)
        return self._gradients[dtype]

    def _mapped(self, rows: Tensor) -> Tensor:
        return rows if self._query_map is None else self._query_map(rows)

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
