"""A case on its way to the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from whence.report.album import NO_PASSAGE, NO_PICTURE, Album
from whence.report.blocks import Block
from whence.report.case import Limits, ReportCase
from whence.report.exhibits import QUERY, TRAIN, Exhibits
from whence.report.ranked import Reranking
from whence.report.wording import plain, short
from whence.scores import Id

# Parts whose views, or a place in them, are empty without them.
_SAID = ("scores", "agreement", "lds", "weights", "contributions", "suspects", "resources")


@dataclass(frozen=True)
class Example:
    """A train example as all views show it.

    `text` names it; `whole` is its id where `text` is cut or where it is a number. `picture` and `passage` (its own
    text) are numbers of the album.
    """

    text: str
    whole: Id | None = None
    label: str = ""
    picture: int = NO_PICTURE
    passage: int = NO_PASSAGE


@dataclass(frozen=True)
class View:
    """A view made of blocks; `empty` says why there is nothing, and what makes it."""

    blocks: tuple[Block | Reranking, ...] = ()
    empty: str = ""
    missing: tuple[str, ...] = ()


@dataclass(eq=False)
class Shown:
    """What the views of one case share; `examples` are the train examples that at least one of them shows."""

    case: ReportCase
    album: Album
    examples: list[Example] = field(default_factory=list)
    _numbers: dict[Id, int] = field(default_factory=dict)

    @cached_property
    def exhibits(self) -> Exhibits:
        """How the examples of this case look."""
        return Exhibits(self.case.train, self.case.queries, self.case.class_names)

    @property
    def ceiling(self) -> Limits | None:
        """Of linear datamodeling scores, where there is one: a single seed has none."""
        limits = self.case.lds_ceiling
        return None if limits is None or not math.isfinite(limits[0]) else (limits[0], limits[1], limits[2])

    def train(self, id: Id) -> int:
        """The number of a train example among those shown."""
        if id not in self._numbers:
            self._numbers[id] = len(self.examples)
            self.examples.append(self._example(id, TRAIN))
        return self._numbers[id]

    def knows(self, id: Id) -> bool:
        """Whether a view shows this train example already."""
        return id in self._numbers

    def size_of(self, ids: Sequence[Id]) -> float:
        """About how many characters the pictures and texts of these train examples take in the page."""
        train = self.case.train
        if train is None or not ids:
            return 0.0
        pictures = len(ids) * len(self.exhibits.picture(TRAIN, train.index_of(ids[0])))
        return float(pictures + sum(len(self.exhibits.passage(TRAIN, train.index_of(id)) or "") for id in ids))

    def query(self, id: Id) -> Example:
        """A query in the same form."""
        return self._example(id, QUERY)

    def _example(self, id: Id, side: int) -> Example:
        text = short(id)
        whole = None if text == id else id
        examples = self.case.queries if side == QUERY else self.case.train
        if examples is None:
            return Example(text, whole)
        index = examples.index_of(id)
        exhibits, album = self.exhibits, self.album
        picture, passage = album.picture(exhibits, side, index), album.passage(exhibits, side, index)
        return Example(text, whole, exhibits.label(side, index), picture, passage)

    def missing(self, parts: Sequence[str]) -> tuple[str, ...]:
        """What the case says about these parts, but for those that are not there at all: `needs` says it of them."""
        said = [part for part in _SAID if not self._has(part)]
        return tuple(plain(text) for part, text in self.case.missing.items() if part in parts and part not in said)

    def _has(self, part: str) -> bool:
        value = getattr(self.case, part)
        return value is not None and (part in ("scores", "contributions") or len(value) > 0)

    def needs(self, part: str, otherwise: str) -> str:
        """Why a view is empty: the sentence of the case, or what makes the part."""
        return plain(self.case.missing[part]) if part in self.case.missing else otherwise
