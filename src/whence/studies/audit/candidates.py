"""What an audit compares: methods with their filters, dampings, and weights of parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whence.algebra import Damping
from whence.checks import look_up
from whence.errors import InputError, UnsupportedError
from whence.methods import METHODS, Inputs, attribute_with
from whence.scores import ScoreMatrix
from whence.task import GroupWeights
from whence.training import Recipe

DAMPINGS = (0.01, 0.1, 1.0, 10.0)  # times the mean eigenvalue: four orders of magnitude, so that the best one is inside
UNROLLED_SEED = 2_000_000_000  # of the trajectory; the pilot's seeds are far below
CONTROL = "random"
UNIFORM = "uniform"
WEIGHTINGS = {UNIFORM: None, "rms": "rms", "learned": "nnls"}  # name -> solver


@dataclass(frozen=True)
class Candidate:
    """A method and its options.

    Attributes:
        label: Name in tables, unique in an audit.
        method: Name in `METHODS`.
        options: Of `attribute`, without recipe and amounts.
        weights: Of parameter groups: "uniform", "rms" or "learned", found on queries that are not judged.
    Raises:
        UnknownNameError: No such method or weights.
        InputError: Weights for a method that is not linear in the query's gradient.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str = UNIFORM

    def __post_init__(self) -> None:
        preset = look_up(METHODS, self.method, "method")
        look_up(WEIGHTINGS, self.weights, "weights")
        if self.weights != UNIFORM and not preset.linear_in_w:
            raise InputError(
                f"{self.label!r} asks for {self.weights} weights, and {self.method} is not linear in the query's "
                f'gradient. Use weights="{UNIFORM}".'
            )

    def scores(
        self, inputs: Inputs, recipe: Recipe, points: tuple[int, ...], weights: GroupWeights | None = None
    ) -> ScoreMatrix | Mapping[int, ScoreMatrix]:
        """Scores for all amounts, or for each; `weights` are those that the candidate asks for."""
        if METHODS[self.method].by_amount:
            return attribute_with(inputs, self.method, recipe=recipe, at=points, weights=weights, **self.options)
        return attribute_with(inputs, self.method, weights=weights, **self.options)


def default_candidates(recipe: Recipe) -> tuple[Candidate, ...]:
    """Methods that need no further choice, influence functions at several dampings, weights where they cost little.

    Cheap ones come first. Horizons are left out where the recipe is no gradient descent that a filter can follow. TRAK
    has a ridge, so that its Gram matrix is regular whatever the size of the train set. Weights are learned for Grad-Dot
    only: with a curvature each group is a query of its own. `random` is the control.
    """
    plain = [Candidate(name, name) for name in (CONTROL, "embedding_cosine", "grad_dot", "grad_cos")]
    weighed = [Candidate(f"grad_dot, {name} weights", "grad_dot", weights=name) for name in ("rms", "learned")]
    sketched = [
        Candidate("datainf", "datainf"),
        Candidate("trak, ridge 0.1", "trak", {"ridge": Damping.relative(0.1)}),
    ]
    influence = [
        Candidate(f"influence_gn, damping {value:g}", "influence_gn", {"damping": Damping.relative(value)})
        for value in DAMPINGS
    ]
    horizons = [
        Candidate("horizon", "horizon"),
        Candidate("horizon_ahead", "horizon_ahead"),
        Candidate("horizon_ahead, both shifts", "horizon_ahead", {"look_ahead": "both_shifts"}),
    ]
    unrolled = Candidate("unrolled", "unrolled", {"seeds": (UNROLLED_SEED,)})
    curved = [*influence, *(horizons if _has_dynamics(recipe) else [])]
    return (*plain, *weighed, *sketched, *curved, unrolled)


def _has_dynamics(recipe: Recipe) -> bool:
    try:
        recipe.scaled_dynamics(recipe.amount, 1)
    except UnsupportedError:
        return False
    return True
