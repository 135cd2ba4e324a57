"""Layer codes: the gradient of every linear layer or convolution, projected from both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, final

import torch
from torch import Tensor

from whence.algebra import Projection
from whence.checks import require_count
from whence.curvature.kronecker import checked_blocks
from whence.data import Examples
from whence.errors import UnsupportedError
from whence.gradients import layer_plan, slope_of
from whence.gradients.sites import Site, by_site, sites_of
from whence.rng import derive_seed
from whence.task import Task, working_dtype

Scales = Mapping[Site, tuple[Tensor, Tensor]]  # of inputs (i,) and of output gradients (o,)
Codes = list[Tensor]  # (m, k_o * k_i) for each site
KIND = "normal"


@final
@dataclass(frozen=True, eq=False)
class LayerCodes:
    """vec(P_o^T G P_i) of each layer's gradient G (o, i), from the factors of G where they are at hand.

    Attributes:
        task: Model and contract, in eval mode.
        sites: The layers; a bias is one more column of its weight.
        rank: Largest k_o and k_i. A side that is no longer than that stays as it is.
        seed: Of the projections; each side of each layer has its own.
        scales: What inputs and output gradients are multiplied by before the projection; default nothing.
    """

    task: Task
    sites: tuple[Site, ...]
    rank: int
    seed: int
    scales: Scales | None = None

    @classmethod
    def of(cls, task: Task, train: Examples, rank: int, seed: int) -> LayerCodes:
        """The layers that can be taken part in.

        Raises:
            UnsupportedError: The model has none.
        """
        require_count(rank, "rank")
        require_count(seed, "seed", minimum=0)
        sites = sites_of(layer_plan(task, train), task.layout)
        if not sites:
            raise UnsupportedError(
                "The model has no linear layer or convolution with a weight of its own, whose gradients could be "
                "projected from both sides. Use trak, which projects whole gradients."
            )
        return cls(task, sites, rank, seed)

    def of_train(self, train: Examples, what: str) -> Iterator[tuple[slice, Codes]]:
        """Codes of the train examples' loss gradients, block by block; `what` names the pass."""
        for part, factors in self.factors(train, what):
            yield part, [self._of_factors(site, *factors[site]) for site in self.sites]

    def factors(self, train: Examples, what: str) -> Iterator[tuple[slice, dict[Site, tuple[Tensor, Tensor]]]]:
        """Inputs (b, s, i) and output gradients (b, s, o) of each layer, block by block, as the model has them."""
        cotangents, plan = slope_of(self.task.loss), layer_plan(self.task, train)
        for block in checked_blocks(self.task, train, cotangents, plan, self.dtype, what):
            for gradients in block.gradients():  # one: the loss has one slope
                calls = by_site(gradients, self.sites)
                yield block.part, {site: site.factors(calls[site], self.dtype) for site in self.sites}

    def of_rows(self, rows: Tensor) -> Codes:
        """Codes of whole gradients (m, n_params)."""
        named = self.task.layout.unflatten(rows)
        found = []
        for site in self.sites:
            matrix = site.matrix(named)
            if self.scales is not None:
                inputs, outputs = self.scales[site]
                matrix = matrix * outputs[:, None].to(matrix) * inputs.to(matrix)
            p_i, p_o = self._projections[site]
            if p_i is not None:
                matrix = matrix @ p_i.to(matrix)
            if p_o is not None:
                matrix = p_o.T.to(matrix) @ matrix
            found.append(matrix.flatten(1))
        return found

    def _of_factors(self, site: Site, a: Tensor, g: Tensor) -> Tensor:
        """sum_s (P_o^T g_s) (P_i^T a_s)^T: (n, s, i) and (n, s, o) to (n, k_o * k_i)."""
        if self.scales is not None:
            inputs, outputs = self.scales[site]
            a, g = a * inputs.to(a), g * outputs.to(g)
        p_i, p_o = self._projections[site]
        a = a if p_i is None else a @ p_i.to(a)
        g = g if p_o is None else g @ p_o.to(g)
        return (g.transpose(1, 2) @ a).flatten(1)

    @cached_property
    def _projections(self) -> dict[Site, tuple[Tensor | None, Tensor | None]]:
        """P_i (i, k_i) and P_o (o, k_o) of each layer, None where nothing is projected."""
        found = {}
        for site in self.sites:
            o, i = site.dims(self.task.layout)
            found[site] = self._projection(site, "inputs", i), self._projection(site, "outputs", o)
        return found

    def _projection(self, site: Site, side: str, length: int) -> Tensor | None:
        if length <= self.rank:
            return None
        return Projection(length, self.rank, derive_seed(self.seed, "layer", site.weight, side), KIND).to_dense()

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision of the passes."""
        return working_dtype(self.task.model)

    @cached_property
    def dims(self) -> list[int]:
        """Length of each layer's code."""
        return [prod(min(side, self.rank) for side in site.dims(self.task.layout)) for site in self.sites]

    def describe(self) -> dict[str, Any]:
        """JSON facts: which parameters take no part."""
        own = {name for site in self.sites for name in site.names}
        return {
            "rank": self.rank,
            "seed": self.seed,
            "dims": sum(self.dims),
            "left_out": [name for name in self.task.layout.names if name not in own],
        }
