"""A curvature that is one Kronecker product a layer, in its eigenbasis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from whence.algebra import ResolvableFilter, SpectralFilter
from whence.gradients.sites import Site
from whence.task import ParameterLayout

BUFFER = 4 * 2**20  # bytes of rows that are rotated at once


@final
@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """(U_G (x) U_A) diag(eigenvalues) (U_G (x) U_A)^T of one site.

    Attributes:
        site: Which parameters.
        inputs: U_A (i, i), eigenvectors of the second moment of the layer's inputs, ones for the bias included.
        outputs: U_G (o, o), those of the gradients at its outputs.
        eigenvalues: (o, i), float64, not negative.
    """

    site: Site
    inputs: Tensor
    outputs: Tensor
    eigenvalues: Tensor

    def apply(self, f: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
        """f of this layer's curvature on matrices (m, o, i)."""
        u_a, u_g = (u.to(matrices.dtype) for u in (self.inputs, self.outputs))
        rotated = (u_g.T @ matrices @ u_a) * f(self.eigenvalues).to(matrices.dtype)
        return u_g @ rotated @ u_a.T


@final
@dataclass(frozen=True, eq=False)
class KroneckerSpectrum:
    """A fitted K-FAC or EK-FAC curvature: filters apply to it, fitted once, as often as wanted.

    Attributes:
        layout: All parameters.
        layers: Those with a Kronecker form.
        diagonal: The others -> their diagonal (size,), float64.
        facts: What a reader should know, JSON-able.
        gradient_scale: Computes the mean squared entry of the per-example loss gradients, for dampings in that unit.
    """

    layout: ParameterLayout
    layers: tuple[LayerSpectrum, ...]
    diagonal: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    gradient_scale: Callable[[], float]

    @cached_property
    def eigenvalues(self) -> Tensor:
        """All eigenvalues, float64, in no order."""
        return torch.cat([*(x.eigenvalues.flatten() for x in self.layers), *self.diagonal.values()])

    @property
    def mean_eigenvalue(self) -> float:
        """trace / n_params."""
        return float(self.eigenvalues.mean())

    @property
    def largest_eigenvalue(self) -> float:
        """The largest."""
        return float(self.eigenvalues.max())

    @cached_property
    def mean_square_gradient(self) -> float:
        """Mean squared entry of the per-example loss gradients: one more pass, when first asked for."""
        return self.gradient_scale()

    def resolve(self, filter: ResolvableFilter) -> SpectralFilter:
        """The filter with every number known.

        Raises:
            NumericalError: It has no trustworthy value on this spectrum.
        """
        scale = self.mean_square_gradient if "mean_square_gradient" in filter.needs else None
        known = filter.resolve(mean_eigenvalue=self.mean_eigenvalue, mean_square_gradient=scale)
        known.check(0.0, self.largest_eigenvalue)
        return known

    def apply(self, filter: ResolvableFilter, rows: Tensor) -> Tensor:
        """f(C) on rows (m, n_params), in their precision.

        Cost:
            2 m (i + o) multiplications a parameter.
        """
        return self._mapped(self.resolve(filter), rows)

    def to_dense(self) -> Tensor:
        """C (n_params, n_params), float64: for tests and small models."""
        identity = torch.eye(self.layout.n_params, dtype=torch.float64, device=self.eigenvalues.device)
        return self._mapped(lambda s: s, identity)

    def _mapped(self, f: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """f of the curvature on rows (m, n_params), a few rows at a time."""
        found = torch.empty_like(rows)
        few = max(1, BUFFER // (self.layout.n_params * rows.element_size()))
        for part, out in zip(torch.split(rows, few), torch.split(found, few), strict=True):
            self._map_into(out, f, part)
        return found

    def _map_into(self, out: Tensor, f: Callable[[Tensor], Tensor], rows: Tensor) -> None:
        named, results = self.layout.unflatten(rows), self.layout.unflatten(out)  # views
        for layer in self.layers:
            matrices = layer.apply(f, layer.site.matrix(named))
            for name, values in layer.site.parameters(matrices, self.layout).items():
                results[name].copy_(values)
        for name, values in self.diagonal.items():
            results[name].copy_(named[name] * f(values).to(rows.dtype).reshape(named[name].shape[1:]))
