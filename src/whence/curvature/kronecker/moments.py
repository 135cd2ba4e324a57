"""First pass: second moments of the inputs and of the output gradients of every layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.curvature.kronecker.eigen import Eigen, eigen
from whence.gradients import Block
from whence.gradients.sites import Site, by_site
from whence.task import ParameterLayout


@dataclass(eq=False)
class Moments:
    """Sums over examples, cotangents and positions of one site.

    Attributes:
        inputs: Sum of a a^T, (i, i).
        outputs: Sum of g g^T, (o, o).
        n_positions: How many a were added. Positions to which no gradient comes back, such as padding, do not count.
    """

    inputs: Tensor
    outputs: Tensor
    n_positions: int = 0

    @classmethod
    def none_of(cls, site: Site, layout: ParameterLayout) -> Moments:
        """Nothing added yet."""
        o, i = site.dims(layout)
        return cls(torch.zeros(i, i, dtype=torch.float64), torch.zeros(o, o, dtype=torch.float64))

    def add(self, a: Tensor, g: Tensor) -> None:
        """Add inputs (n, s, i) and output gradients (n, s, o)."""
        active = g.ne(0).any(-1)
        if not bool(active.all()):
            a, g = a[active], g[active]
        a, g = a.flatten(0, -2), g.flatten(0, -2)
        self.inputs = self.inputs.to(a.device) + (a.T @ a).double()
        self.outputs = self.outputs.to(g.device) + (g.T @ g).double()
        self.n_positions += len(a)

    def eigen(self, site: Site, n_train: int) -> tuple[Eigen, Eigen]:
        """Of the mean of a a^T over positions, and of the mean over examples of the sum of g g^T."""
        return (
            eigen(self.inputs / max(1, self.n_positions), f"The second moment of the inputs of {site.weight!r}"),
            eigen(self.outputs / n_train, f"The second moment of the output gradients of {site.weight!r}"),
        )


def moments_of(blocks: Iterable[Block], sites: tuple[Site, ...], layout: ParameterLayout) -> dict[Site, Moments]:
    """Moments of every site over a data set."""
    found = {site: Moments.none_of(site, layout) for site in sites}
    for block in blocks:
        for gradients in block.gradients():
            for site, calls in by_site(gradients, sites).items():
                found[site].add(*site.factors(calls, block.cotangents.dtype))
    return found
