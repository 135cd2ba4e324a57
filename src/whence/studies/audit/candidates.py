"""What an audit compares: methods with their filters and dampings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whence.algebra import Damping
from whence.checks import look_up
from whence.errors import UnsupportedError
from whence.methods import METHODS, Inputs, attribute_with
from whence.scores import ScoreMatrix
from whence.training import Recipe

DAMPINGS = (0.01, 0.1, 1.0, 10.0)  # times the mean eigenvalue: four orders of magnitude, so that the best one is inside
UNROLLED_SEED = 10_000  # of the trajectory; the pilot's seeds are far below
CONTROL = "random"


@dataclass(frozen=True)
class Candidate:
    """A method and its options.

    Attributes:
        label: Name in tables, unique in an audit.
        method: Name in `METHODS`.
        options: Of `attribute`, without recipe and amounts.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        look_up(METHODS, self.method, "method")

    def scores(
        self, inputs: Inputs, recipe: Recipe, points: tuple[int, ...]
    ) -> ScoreMatrix | Mapping[int, ScoreMatrix]:
        """Scores for all amounts, or for each."""
        if METHODS[self.method].by_amount:
            return attribute_with(inputs, self.method, recipe=recipe, at=points, **self.options)
        return attribute_with(inputs, self.method, **self.options)


def default_candidates(recipe: Recipe) -> tuple[Candidate, ...]:
    """Every method that needs no further choice, and influence functions at several dampings; cheap ones first.

    Horizons are left out where the recipe is no gradient descent that a filter can follow. `random` is the control.
    """
    influence = [
        Candidate(f"influence_gn, damping {value:g}", "influence_gn", {"damping": Damping.relative(value)})
        for value in DAMPINGS
    ]
    horizons = [
        Candidate("horizon", "horizon"),
        Candidate("horizon_ahead", "horizon_ahead"),
        Candidate("horizon_ahead, both shifts", "horizon_ahead", {"look_ahead": "both_shifts"}),
    ]
    plain = [Candidate(name, name) for name in (CONTROL, "embedding_cosine", "grad_dot", "grad_cos")]
    unrolled = Candidate("unrolled", "unrolled", {"seeds": (UNROLLED_SEED,)})
    return (*plain, *influence, *(horizons if _has_dynamics(recipe) else []), unrolled)


def _has_dynamics(recipe: Recipe) -> bool:
    try:
        recipe.dynamics(recipe.amount, 1)
    except UnsupportedError:
        return False
    return True
