"""What a spectral filter is: a function f of an eigenvalue, saying how far training goes along its direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, final

from torch import Tensor

from whence.algebra.damping import Statistic
from whence.errors import NotPositiveDefiniteError, NumericalError


class ResolvableFilter(Protocol):
    """A filter, or a filter that still needs a statistic of the curvature or of the gradients."""

    name: ClassVar[str]
    accepts_indefinite: ClassVar[bool]

    @property
    def needs(self) -> frozenset[Statistic]:
        """The statistics that `resolve` must be given: each may cost a pass over the train set, so no other is."""
        ...

    def resolve(
        self, *, mean_eigenvalue: float | None = None, mean_square_gradient: float | None = None
    ) -> SpectralFilter:
        """The filter with every number known."""
        ...

    def describe(self) -> dict[str, object]:
        """JSON-able settings."""
        ...


class SpectralFilter(ABC):
    """f(s), applied to every eigenvalue s of a symmetric curvature C; f(C) acts on the train side of a score."""

    name: ClassVar[str]
    accepts_indefinite: ClassVar[bool]

    @property
    @final
    def needs(self) -> frozenset[Statistic]:
        """Nothing: every number is known."""
        return frozenset()

    @abstractmethod
    def __call__(self, s: Tensor) -> Tensor:
        """f(s), elementwise, float64, the shape of `s`."""

    @abstractmethod
    def at_zero(self) -> float:
        """f(0), what the filter does along directions without curvature."""

    @abstractmethod
    def complement(self, s: Tensor) -> Tensor:
        """h(s) = (f(0) - f(s)) / s, elementwise, float64, accurate down to s = 0 where it is -f'(0).

        With it f(C) = f(0) I - C h(C), which needs no eigenvector of the null space of C.
        """

    def check(self, s_min: float, s_max: float) -> None:
        """Refuse a spectrum on which this filter has no trustworthy value.

        Args:
            s_min: Smallest eigenvalue of the curvature (0 for one known to be positive semi-definite).
            s_max: Largest eigenvalue.
        Raises:
            NumericalError: The filter explodes or overflows on this spectrum; the message says what would do.
            NotPositiveDefiniteError: The curvature has negative eigenvalues this filter cannot take.
        """
        if not (math.isfinite(s_min) and math.isfinite(s_max)):
            raise NumericalError(
                f"The curvature has non-finite eigenvalues (from {s_min} to {s_max}). "
                "Look for NaN or infinity in the gradients."
            )
        if s_min < 0 and not self.accepts_indefinite:
            raise NotPositiveDefiniteError(
                f"Filter {self.name!r} needs a positive semi-definite curvature; its smallest eigenvalue is "
                f"{s_min:.6g}. Use a Gauss-Newton curvature, or a filter that accepts indefinite ones."
            )
        self._check_range(s_min, s_max)

    def _check_range(self, s_min: float, s_max: float) -> None:
        """What this filter in particular refuses; nothing, unless it overrides this."""
        return

    def resolve(
        self, *, mean_eigenvalue: float | None = None, mean_square_gradient: float | None = None
    ) -> SpectralFilter:
        """This filter: nothing is left to resolve."""
        return self

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """JSON-able settings; the key `filter` holds the name in the table of filters."""
