"""Small checks shared by every room: names, shapes, finiteness."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, TypeVar

from whence.errors import InputError, NonFiniteError, UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def unknown_name(what: str, name: object, known: Mapping[str, object] | Sequence[str]) -> UnknownNameError:
    """The error for a name that is in no table: it lists the known names and the nearest."""
    names = sorted(known)
    lower = {known_name.lower(): known_name for known_name in names}  # "KFAC" is near to "kfac"
    near = difflib.get_close_matches(str(name).lower(), list(lower), n=1, cutoff=0.5)
    hint = f" Did you mean {lower[near[0]]!r}?" if near else ""
    return UnknownNameError(f"Unknown {what} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`, or an error that lists the known names and the nearest one."""
    if not isinstance(name, str) or name not in table:  # a list read from a config is not hashable
        raise unknown_name(what, name, table)
    return table[name]


def require_finite(x: Tensor, what: str, *, rows: str | None = None, ids: Sequence[object] | None = None) -> None:
    """Refuse NaN and infinity in `x`, naming the first offending row where rows have a name.

    Args:
        x: Any tensor; integer tensors always pass.
        what: What `x` is, for the message.
        rows: What a row of `x` (first dimension) is, such as "train example".
        ids: Names of the rows; positions are used where it is None.
    Raises:
        NonFiniteError: At least one entry is NaN or infinite.
    """
    import torch

    if not (x.is_floating_point() or x.is_complex()):
        return
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return
    where = ""
    if rows is not None and x.ndim > 0:
        bad = (~finite).reshape(x.shape[0], -1).any(1).nonzero().flatten().tolist()
        named = [ids[i] if ids is not None else i for i in bad[:5]]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        where = f" for {rows} {', '.join(map(str, named))}{more}"
    raise NonFiniteError(f"{what} has NaN or infinite values{where}. Repair or drop them before attributing.")


def require_positive(value: float, name: str) -> None:
    """Refuse zero, negative and non-finite numbers, and what is no number."""
    try:
        good = not isinstance(value, bool) and 0 < value < float("inf")
    except TypeError:
        good = False
    if not good:
        raise InputError(f"`{name}` must be a positive finite number; got {value!r}.")


def require_count(value: int, name: str, *, minimum: int = 1) -> None:
    """Refuse anything but an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise InputError(f"`{name}` must be an integer of at least {minimum}; got {value!r}.")
