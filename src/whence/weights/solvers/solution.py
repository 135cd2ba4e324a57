"""What a solver gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights and how they were found.

    Attributes:
        weights: (n_groups,) float64, of the raw contributions, non-negative; any scale.
        facts: JSON: steps or rounds, and a `note` where something did not go the usual way.
    """

    weights: Tensor
    facts: dict[str, Any] = field(default_factory=dict)
