"""What a page holds once and its views refer to by number: pictures, passages (texts of examples) and charts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from whence.report.blocks import embedded
from whence.report.exhibits import LONGEST_SIDE, Exhibits
from whence.report.wording import whole

BUDGET: Final = 5_000_000  # characters of all pictures of a page
PASSAGE_BUDGET: Final = 3_000_000  # characters of all passages, as they are written into the page
_SMALLEST_SIDE: Final = 8  # pixels; below it nothing can be recognised, and the budget yields
_SAMPLE: Final = 32  # pictures from which the size of all is guessed
_SHORTEST_PASSAGE: Final = 40  # characters to which a passage may be cut; below it the budget yields
NO_PICTURE: Final = -1
NO_PASSAGE: Final = -1

_Shot = tuple[Exhibits, int, int]  # of which case, train example (0) or query (1), at which position


@dataclass(eq=False)
class Album:
    """Collects while the views are made; `pictures` and `passages` bring everything to a size that fits a budget."""

    charts: list[str] = field(default_factory=list)
    _shots: list[_Shot] = field(default_factory=list)
    _numbers: dict[tuple[int, int, int], int] = field(default_factory=dict)
    _passages: dict[str, int] = field(default_factory=dict)

    def picture(self, exhibits: Exhibits, side: int, index: int) -> int:
        """The number of a picture, `NO_PICTURE` where the example is none."""
        if not exhibits.shows_picture(side):
            return NO_PICTURE
        key = (id(exhibits), side, index)  # `_shots` keeps the exhibits alive, so that ids stay theirs
        if key not in self._numbers:
            self._numbers[key] = len(self._shots)
            self._shots.append((exhibits, side, index))
        return self._numbers[key]

    def passage(self, exhibits: Exhibits, side: int, index: int) -> int:
        """The number of the text of an example, `NO_PASSAGE` where it has none; equal texts have one number."""
        text = exhibits.passage(side, index)
        return NO_PASSAGE if text is None else self._passages.setdefault(text, len(self._passages))

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

    def passages(self, budget: int = PASSAGE_BUDGET) -> list[str]:
        """All passages in order of their numbers; where they exceed the budget, those beyond one length are cut to it.

        Cost:
            About a second for 3 million characters, three where they must be cut.
        """
        allowed = float(budget)
        while True:
            longest = max(_SHORTEST_PASSAGE, _longest_within(list(map(len, self._passages)), allowed))
            written = [whole(text, longest) for text in self._passages]
            size = sum(len(embedded(text)) for text in written)
            if size <= budget or longest == _SHORTEST_PASSAGE:
                return written
            allowed *= 0.98 * budget / size  # beyond ASCII a character takes up to twelve

    def _drawn(self, shots: list[_Shot], longest: int) -> list[str]:
        return [exhibits.picture(side, index, longest) for exhibits, side, index in shots]


def _smaller(longest: int, share: float) -> int:
    """The longest side at which a picture has `share` of its bytes."""
    return max(_SMALLEST_SIDE, math.floor(longest * math.sqrt(min(1.0, share))))


def _longest_within(lengths: list[int], total: float) -> int:
    """The length to which all must be cut so that they take `total` together; that of the longest where all fit.

    >>> _longest_within([1, 5, 9], 11), _longest_within([1, 5, 9], 100), _longest_within([], 100)
    (5, 9, 0)
    """
    left = total
    for k, length in enumerate(sorted(lengths)):
        share = left / (len(lengths) - k)
        if length > share:
            return math.floor(share)
        left -= length
    return max(lengths, default=0)
