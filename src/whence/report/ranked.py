"""Lists that the page ranks anew: a block of its own, since it holds numbers where others hold words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from whence.report.album import NO_PASSAGE, NO_PICTURE
from whence.report.exhibits import Mark
from whence.scores import Id


@dataclass(frozen=True)
class Weighting:
    """Weights of the groups."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Feature:
    """One feature of the query and of the examples; a mark where it is among the most different ones."""

    name: str
    query: str
    cells: tuple[tuple[str, Mark], ...]


@dataclass(frozen=True)
class RankedQuery:
    """One query, and what the groups contribute to its scores with some train examples.

    `examples` are numbers among those shown, in the order of the train set. Arrays are float32, little-endian, base64:
    `values` (n_examples, n_groups); `above` and `below` (n_groups,) the largest and smallest contribution of each group
    to any other train example, infinite where there is none.
    """

    key: str
    text: str
    examples: tuple[int, ...]
    values: str
    above: str
    below: str
    features: tuple[Feature, ...] = ()
    whole: Id | None = None
    label: str = ""
    picture: int = NO_PICTURE
    passage: int = NO_PASSAGE


@dataclass(frozen=True)
class Reranking:
    """A block: queries whose examples can be ranked by other weights, or by groups.

    `k` is the length of the lists; they are exact for uniform weights and for the `weightings`.
    """

    kind: ClassVar[str] = "reranking"
    method: str
    groups: tuple[str, ...]
    weightings: tuple[Weighting, ...]
    k: int
    queries: tuple[RankedQuery, ...]
    summary: str
