"""Training to the end, held back by a ridge: classical influence functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from whence.algebra.damping import Damping, Statistic
from whence.algebra.filters.base import SpectralFilter
from whence.algebra.precision import as_float64
from whence.checks import require_positive
from whence.errors import NotPositiveDefiniteError


@final
@dataclass(frozen=True)
class DampedInverse(SpectralFilter):
    """f(s) = 1 / (s + damping), `damping` in the unit of the eigenvalues.

    An indefinite curvature is accepted as long as every eigenvalue plus the damping is positive.

    Reference:
        Koh and Liang (2017), arXiv:1703.04730, section 2.2 and 4.2 (damping).
    """

    damping: float
    name: ClassVar[str] = "damped_inverse"
    accepts_indefinite: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive(self.damping, "damping")

    def __call__(self, s: Tensor) -> Tensor:
        return 1 / (as_float64(s) + self.damping)

    def at_zero(self) -> float:
        return 1 / self.damping

    def complement(self, s: Tensor) -> Tensor:
        return 1 / (self.damping * (as_float64(s) + self.damping))

    def _check_range(self, s_min: float, s_max: float) -> None:
        if s_min + self.damping <= 0:
            raise NotPositiveDefiniteError(
                f"The smallest eigenvalue of the curvature is {s_min:.6g}; with damping {self.damping:.6g} it is not "
                f"positive definite. Use a damping above {-s_min:.6g}, a Gauss-Newton curvature, or `flow`."
            )

    def describe(self) -> dict[str, object]:
        return {"filter": self.name, "damping": self.damping}


@final
@dataclass(frozen=True)
class UnresolvedDampedInverse:
    """A damped inverse whose damping is still in units of a statistic; `resolve` gives the filter."""

    damping: Damping
    name: ClassVar[str] = "damped_inverse"
    accepts_indefinite: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Statistic]:
        """What the unit of the damping refers to."""
        return self.damping.needs

    def resolve(
        self, *, mean_eigenvalue: float | None = None, mean_square_gradient: float | None = None
    ) -> DampedInverse:
        """The filter, once the statistic the damping refers to is known; see `Damping.resolve` for the errors."""
        value = self.damping.resolve(mean_eigenvalue=mean_eigenvalue, mean_square_gradient=mean_square_gradient)
        return DampedInverse(value)

    def describe(self) -> dict[str, object]:
        """JSON-able settings."""
        return {"filter": self.name, "damping": self.damping.to_dict()}


def damped_inverse(damping: Damping) -> UnresolvedDampedInverse:
    """1 / (s + damping) for any unit of damping; fitted curvatures resolve it."""
    return UnresolvedDampedInverse(damping)
