"""What views are built of: texts, charts and tables, decided in Python and only placed by the page's script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Final, Literal

from whence.report.wording import fixed, number, plain, short

ColumnKind = Literal["text", "number", "interval", "example", "query"]

_LARGEST_WHOLE: Final = 2**53  # beyond it a number loses digits in a browser


@dataclass(frozen=True)
class Heading:
    """Starts a part of a view."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph. `code` between backticks and data between isolates (`wording.isolated`) are set apart."""

    kind: ClassVar[str] = "text"
    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Notes:
    """Sentences of the caller, as a list."""

    kind: ClassVar[str] = "notes"
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A command line with a button that copies it."""

    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True)
class Chart:
    """A picture of numbers: the number of its template, and what it shows in words."""

    kind: ClassVar[str] = "chart"
    chart: int
    label: str
    caption: str = ""
    wide: bool = False  # scrolls rather than shrinks


@dataclass(frozen=True)
class Cell:
    """What a reader sees, and the value that an export writes.

    `value` is the number, text or id; (value, low, high) in an interval column; the position of the example or query in
    theirs. Where it is None, `text` is exported.
    """

    text: str = ""
    value: Any = None
    quiet: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    kind: ColumnKind = "text"


@dataclass(frozen=True)
class Table:
    """Rows that can be sorted, filtered and exported; `name` is that of the exported file."""

    kind: ClassVar[str] = "table"
    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


Block = Heading | Text | Notes | Command | Chart | Table


def number_cell(value: float, text: str | None = None) -> Cell:
    """A number as `wording.number` writes it, or as `text`; one that does not exist is exported as empty."""
    return Cell(number(value) if text is None else text, value=float(value))


def text_cell(value: Any) -> Cell:
    """Any setting; cut where it is long, exported whole."""
    shown, whole = short(value), plain(value)
    return Cell(shown) if shown == whole else Cell(shown, value=whole)


def interval_cell(limits: tuple[float, float, float] | None) -> Cell:
    """A value and its interval, with two decimals as in a table of correlations."""
    if limits is None:
        return Cell("not computed", value=(math.nan,) * 3)
    value, low, high = limits
    has_interval = math.isfinite(low) and math.isfinite(high)
    return Cell(fixed(value), value=limits, quiet=f"{fixed(low)} to {fixed(high)}" if has_interval else "")


def to_json(value: Any) -> Any:
    """Frozen dataclasses as JSON values; fields at their default are left out, NaN and infinity become null."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = {"kind": value.kind} if hasattr(value, "kind") and "kind" not in _names(value) else {}
        entries = {f.name: getattr(value, f.name) for f in fields(value) if not _is_default(f, getattr(value, f.name))}
        return kind | {name: to_json(entry) for name, entry in entries.items()}
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= _LARGEST_WHOLE else str(value)
    return value


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element: no `<`, `>`, `&`, and nothing beyond ASCII."""
    text = json.dumps(to_json(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _names(value: Any) -> set[str]:
    return {f.name for f in fields(value)}


def _is_default(f: Field[Any], value: Any) -> bool:
    return f.default is not MISSING and type(value) is type(f.default) and value == f.default
