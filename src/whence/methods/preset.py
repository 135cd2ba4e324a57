"""What a row of the table of methods says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from whence.scores import ScoreBlock

Blocks = Callable[[], Iterable[ScoreBlock]]


@dataclass(frozen=True)
class Result:
    """What a method computed for one amount of training, or for all of them.

    Attributes:
        blocks: Starts a pass over blocks of scores, orientation applied.
        settings: JSON facts: what was chosen, what was resolved.
    """

    blocks: Blocks
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """A method as features x curvature x filter.

    Attributes:
        name: Preset name.
        summary: One line for people.
        compute: `(inputs, **options)` to a `Result`, or with `by_amount` to one for each amount of training.
        curvature: What stands for C.
        filter: f.
        train_side: What stands for b_i.
        normalise: Whether gradients are divided by their norms.
        has_unit: Scores predict the change of the measure; otherwise they only rank.
        linear_in_w: Weights of parameter groups apply.
        by_amount: Needs `recipe`, and gives scores for each amount of further training in `at`.
        baseline: Is no spectral filter of gradients, and serves for comparison only.
    """

    name: str
    summary: str
    compute: Callable[..., Any]
    curvature: str = "identity"
    filter: str = "first_order"
    train_side: str = "loss gradient"
    normalise: bool = False
    has_unit: bool = False
    linear_in_w: bool = True
    by_amount: bool = False
    baseline: bool = False
