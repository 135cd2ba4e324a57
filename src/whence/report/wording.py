"""Numbers and names as a reader meets them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Final

MINUS: Final = "\N{MINUS SIGN}"  # screen readers skip a hyphen
_LONGEST: Final = 160
_NO_ISOLATES: Final = dict.fromkeys(range(0x2066, 0x206A))


def number(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits; whole numbers whole.

    >>> number(0.51234), number(-7.0), number(1234.5), number(1.2e-5), number(float("nan"))
    ('0.512', '−7', '1234', '1.20e−5', 'not defined')
    """
    if math.isnan(value):
        return "not defined"
    sign, size = (MINUS if value < 0 else ""), abs(float(value))
    if math.isinf(size):
        return f"{sign}\N{INFINITY}"
    if size.is_integer() and size < 1e6:
        return f"{sign}{int(size)}"
    if 1e-3 <= size < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        return f"{sign}{size:.{decimals}f}"
    mantissa, _, exponent = f"{size:.{digits - 1}e}".partition("e")
    return f"{sign}{mantissa}e{exponent[0].replace('-', MINUS).replace('+', '')}{exponent[1:].lstrip('0') or '0'}"


def fixed(value: float) -> str:
    """A correlation: two decimals, as in a table of them.

    >>> fixed(0.5), fixed(-0.001)
    ('0.50', '0.00')
    """
    if not math.isfinite(value):
        return number(value)
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", MINUS)


def aligned(values: Sequence[float], spread: float) -> list[str]:
    """Numbers of one column or row: whole where all are, else with one precision that fits their spread.

    >>> aligned([0.00774, 2.358], spread=1.0), aligned([3.0, 7.0], spread=1.0)
    (['0.01', '2.36'], ['3', '7'])
    """
    decimals = 2 - round(math.log10(spread)) if spread > 0 else 3
    is_whole = all(math.isfinite(x) and x == round(x) for x in values)
    if is_whole or decimals > 5 or max(map(abs, values), default=0) >= 1e6:
        return [number(x) for x in values]
    return [f"{x:.{max(0, decimals)}f}".replace("-", MINUS) for x in values]


def signed(value: float) -> str:
    """`number` with its sign also where it is positive."""
    return f"+{number(value)}" if value > 0 else number(value)


def percent(share: float) -> str:
    """A share of 1 in percent, two digits.

    >>> percent(-0.03125).split()
    ['−3.1', '%']
    """
    return f"{number(100 * share, 2)}\N{NO-BREAK SPACE}%"


def plain(value: Any) -> str:
    """Any setting as text: numbers with up to six digits, the rest as Python writes it, without control characters."""
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", MINUS) if math.isfinite(value) else number(value)
    return "".join("\N{REPLACEMENT CHARACTER}" if _unprintable(c) else c for c in str(value))


def short(value: Any) -> str:
    """`plain`, cut where it is too long for a card; the end is kept, since ids often differ there only."""
    text = plain(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 40]}\N{HORIZONTAL ELLIPSIS}{text[-39:]}"


def whole(text: str, longest: int) -> str:
    """A text of any length as `plain`, with its line breaks; cut to `longest` characters where that makes it shorter.

    >>> whole("a\\r\\nb", 4), whole("a" * 99, 3)
    ('a\\nb', 'aaa… [cut: 3 of 99 characters]')
    """
    end = f"\N{HORIZONTAL ELLIPSIS} [cut: {longest:,} of {len(text):,} characters]"
    is_cut = len(text) > longest + len(end)
    shown = text[:longest] if is_cut else text
    return plain(shown.replace("\r\n", "\n").replace("\r", "\n")) + (end if is_cut else "")


def isolated(value: Any) -> str:
    """`short` between invisible isolates: data inside a sentence, whose direction must not turn the rest around."""
    return f"\u2068{short(value).translate(_NO_ISOLATES)}\u2069"


def unique(texts: Iterable[str]) -> list[str]:
    """The same texts, numbered where one repeats (long names that were cut may do so).

    >>> unique(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    seen: dict[str, int] = {}
    result = []
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
        result.append(text if seen[text] == 1 else f"{text} ({seen[text]})")
    return result


def plural(count: int, noun: str) -> str:
    """ "1 query", "2 queries"."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun if count == 1 else many}"


def _unprintable(character: str) -> bool:
    """Control characters and lone surrogates; line breaks and tabs are white space to a browser."""
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs")
