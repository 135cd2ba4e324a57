"""How much is added to every eigenvalue of a curvature before it is inverted, and in which unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from whence.checks import require_positive
from whence.errors import ConfigError, InputError, NumericalError

DampingUnit = Literal["absolute", "relative", "mean_square_gradient"]
Statistic = Literal["mean_eigenvalue", "mean_square_gradient"]  # of a curvature: keywords of every `resolve`


@dataclass(frozen=True)
class Damping:
    """A positive number and its unit. Build it with `absolute`, `relative` or `mean_square_gradient`.

    The curvature is a mean over the train examples: a damping meant for a sum is divided by `n_train` first.
    """

    value: float
    unit: DampingUnit

    def __post_init__(self) -> None:
        if self.unit not in get_args(DampingUnit):
            raise InputError(f"`unit` must be one of {', '.join(get_args(DampingUnit))}; got {self.unit!r}.")
        require_positive(self.value, "damping")

    @classmethod
    def absolute(cls, value: float) -> Damping:
        """`value` itself is added to every eigenvalue."""
        return cls(float(value), "absolute")

    @classmethod
    def relative(cls, value: float) -> Damping:
        """`value` times the mean eigenvalue (trace / dim) of the curvature."""
        return cls(float(value), "relative")

    @classmethod
    def mean_square_gradient(cls, value: float) -> Damping:
        """`value` times the mean squared entry of the per-example loss gradients.

        That mean is the mean eigenvalue of the empirical Fisher matrix; published dampings are often in this unit.
        """
        return cls(float(value), "mean_square_gradient")

    @property
    def needs(self) -> frozenset[Statistic]:
        """What `resolve` must be given."""
        return _NEEDS[self.unit]

    def resolve(self, *, mean_eigenvalue: float | None = None, mean_square_gradient: float | None = None) -> float:
        """The number to add to every eigenvalue.

        Args:
            mean_eigenvalue: trace / dim of the curvature; needed for `relative`.
            mean_square_gradient: Mean squared entry of the per-example gradients; needed for that unit.
        Raises:
            InputError: The statistic this unit needs was not given.
            NumericalError: That statistic is zero, negative or not finite, so the damping would be too.
        """
        if self.unit == "absolute":
            return self.value
        if self.unit == "relative":
            return self.value * _statistic(self, mean_eigenvalue, "mean_eigenvalue")
        return self.value * _statistic(self, mean_square_gradient, "mean_square_gradient")

    def __str__(self) -> str:
        times = {
            "absolute": "",
            "relative": " x mean eigenvalue",
            "mean_square_gradient": " x mean squared gradient",
        }
        return f"{self.value:g}{times[self.unit]}"

    def to_dict(self) -> dict[str, object]:
        """JSON-able settings, read back by `from_dict`."""
        return {"value": self.value, "unit": self.unit}

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> Damping:
        """The inverse of `to_dict`."""
        value, unit = settings.get("value"), settings.get("unit")
        wrong = isinstance(value, bool) or not isinstance(value, int | float) or set(settings) != {"value", "unit"}
        if wrong or unit not in get_args(DampingUnit):
            raise ConfigError(
                f"A damping is {{'value': number, 'unit': one of {', '.join(get_args(DampingUnit))}}}; "
                f"got {dict(settings)!r}."
            )
        return cls(float(value), unit)  # type: ignore[arg-type]


_NEEDS: dict[DampingUnit, frozenset[Statistic]] = {
    "absolute": frozenset(),
    "relative": frozenset({"mean_eigenvalue"}),
    "mean_square_gradient": frozenset({"mean_square_gradient"}),
}


def _statistic(damping: Damping, found: float | None, name: Statistic) -> float:
    if found is None:
        raise InputError(
            f"Damping {damping} needs `{name}`, which was not given. Pass it, or use `Damping.absolute(...)`."
        )
    if not (found > 0 and found < float("inf")):
        raise NumericalError(
            f"Damping {damping} needs a positive finite `{name}`; it is {found!r}. "
            "Are all gradients zero, or is the curvature indefinite? Use `Damping.absolute(...)`."
        )
    return float(found)
