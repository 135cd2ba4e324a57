"""Which parameters of a model are the matrix of a layer, and which are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.gradients.layer_pass import LayerGradient
from whence.gradients.layers import KroneckerRule
from whence.gradients.plan import HookPlan
from whence.task import ParameterLayout


@dataclass(frozen=True)
class Site:
    """A weight, with its bias as one more column, whose gradients are sums of outer products.

    Attributes:
        weight: Its name in the layout.
        bias: The bias's name; None where there is none, or it is not tracked.
        rule: Turns the weight into a matrix (o, i).
    """

    weight: str
    bias: str | None
    rule: KroneckerRule

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of the site."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def dims(self, layout: ParameterLayout) -> tuple[int, int]:
        """Rows o and columns i of the matrix, the bias's column included."""
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        empty = self.matrix({name: torch.empty(1, *shapes[name], device="meta") for name in self.names})
        return empty.shape[1], empty.shape[2]

    def matrix(self, parameters: dict[str, Tensor]) -> Tensor:
        """Named rows (m, *shape) as matrices (m, o, i), or (m, o, i + 1) with the bias."""
        matrix = self.rule.as_matrix(parameters[self.weight])
        return matrix if self.bias is None else torch.cat([matrix, parameters[self.bias][:, :, None]], 2)

    def parameters(self, matrix: Tensor, layout: ParameterLayout) -> dict[str, Tensor]:
        """The inverse of `matrix`."""
        shape = dict(zip(layout.names, layout.shapes, strict=True))[self.weight]
        if self.bias is None:
            return {self.weight: self.rule.from_matrix(matrix, shape)}
        return {self.weight: self.rule.from_matrix(matrix[:, :, :-1], shape), self.bias: matrix[:, :, -1]}

    def factors(self, gradients: list[LayerGradient], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Inputs (n, s, i) or, with ones for the bias, (n, s, i + 1), and output gradients (n, s, o).

        Calls of the layer follow one another along s: their gradients add up.
        """
        pairs = [gradient.factors(dtype) for gradient in gradients]
        a, g = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
        return (a if self.bias is None else torch.cat([a, torch.ones_like(a[..., :1])], -1)), g


def sites_of(plan: HookPlan, layout: ParameterLayout) -> tuple[Site, ...]:
    """The weights that nothing but layers with a Kronecker form uses, all with the same bias, in the layout's order."""
    uses: dict[str, set[Site | None]] = {name: set() for name in layout.names}
    for module, (rule, owned) in plan.layers.items():
        site = None
        if isinstance(rule, KroneckerRule) and rule.is_kronecker(module) and "weight" in owned:
            site = Site(owned["weight"], owned.get("bias"), rule)
        for name in owned.values():
            uses[name].add(site)
    return tuple(_whole(uses))


def by_site(gradients: Iterable[LayerGradient], sites: Iterable[Site]) -> dict[Site, list[LayerGradient]]:
    """The calls of each site; other calls are left out."""
    of_weight = {site.weight: site for site in sites}
    found: dict[Site, list[LayerGradient]] = {}
    for gradient in gradients:
        site = of_weight.get(gradient.names.get("weight", ""))
        if site is not None:
            found.setdefault(site, []).append(gradient)
    return found


def _whole(uses: dict[str, set[Site | None]]) -> Iterable[Site]:
    """Sites all of whose parameters belong to that site alone."""
    for name, found in uses.items():
        for site in found:
            if site is not None and site.weight == name and all(uses[part] == {site} for part in site.names):
                yield site
