"""What a page holds once and its views refer to by number: pictures and charts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from whence.report.exhibits import LONGEST_SIDE, Exhibits

BUDGET: Final = 5_000_000  # characters of all pictures of a page
_SMALLEST_SIDE: Final = 8  # pixels; below it nothing can be recognised, and the budget yields
_SAMPLE: Final = 32  # pictures from which the size of all is guessed
NO_PICTURE: Final = -1

_Shot = tuple[Exhibits, int, int]  # of which case, train example (0) or query (1), at which position


@dataclass(eq=False)
class Album:
    """Collects while the views are made; `pictures` draws everything at a size that fits the budget."""

    charts: list[str] = field(default_factory=list)
    _shots: list[_Shot] = field(default_factory=list)
    _numbers: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def picture(self, exhibits: Exhibits, side: int, index: int) -> int:
        """The number of a picture, `NO_PICTURE` where the example is none."""
        if not exhibits.shows_picture(side):
            return NO_PICTURE
        key = (id(exhibits), side, index)  # `_shots` keeps the exhibits alive, so that ids stay theirs
        if key not in self._numbers:
            self._numbers[key] = len(self._shots)
            self._shots.append((exhibits, side, index))
        return self._numbers[key]

    def chart(self, svg: str) -> int:
        """The number of a chart."""
        self.charts.append(svg)
        return len(self.charts) - 1

    def pictures(self, budget: int = BUDGET) -> list[str]:
        """All pictures as data addresses, in order of their numbers, with at most `budget` characters in all.

        Cost:
            About a second for 2,000 pictures.
        """
        sample = self._drawn(self._shots[:: max(1, len(self._shots) // _SAMPLE)], LONGEST_SIDE)
        expected = sum(map(len, sample)) / max(1, len(sample)) * len(self._shots)
        longest = _smaller(LONGEST_SIDE, budget / expected) if expected > budget else LONGEST_SIDE
        drawn = self._drawn(self._shots, longest)
        while longest > _SMALLEST_SIDE and sum(map(len, drawn)) > budget:
            longest = _smaller(longest - 1, budget / sum(map(len, drawn)))
            drawn = self._drawn(self._shots, longest)
        return drawn

    def _drawn(self, shots: list[_Shot], longest: int) -> list[str]:
        return [exhibits.picture(side, index, longest) for exhibits, side, index in shots]


def _smaller(longest: int, share: float) -> int:
    """The longest side at which a picture has `share` of its bytes."""
    return max(_SMALLEST_SIDE, math.floor(longest * math.sqrt(min(1.0, share))))
