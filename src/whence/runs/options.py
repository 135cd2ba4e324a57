"""Options of a method as TOML gives them, turned into what the method takes."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

from whence.algebra import Damping
from whence.checks import look_up
from whence.errors import ConfigError, UnknownNameError
from whence.methods import METHODS, Preset
from whence.runs.config import from_dict

_GIVEN = {"recipe": "the table [recipe]", "at": "`points` in [gold]"}  # options filled in from elsewhere
_PLAIN = (int, float, str, bool, type(None), Any)


def preset_of(method: str) -> Preset:
    """The row of the table of methods.

    Raises:
        ConfigError: No such method; the nearest is named.
    """
    try:
        return look_up(METHODS, method, "method")
    except UnknownNameError as error:
        raise ConfigError(f"[score.methods] {error}") from error


def method_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `attribute`, checked against the method's own signature.

    A damping is `{value = 0.1, unit = "relative"}`; a number alone is an absolute one.

    Raises:
        ConfigError: An unknown option (the nearest is named), a missing one, a wrong type, one that is filled in from
            elsewhere in the file, or one that only Python can hold.
    """
    preset, where = preset_of(method), f"score.options.{method}"
    hints = typing.get_type_hints(preset.compute)
    parameters = inspect.signature(preset.compute).parameters
    own = {name: p for name, p in parameters.items() if name not in ("inputs", *_GIVEN)}
    for name in given:
        if name in _GIVEN and name in parameters:
            raise ConfigError(f"[{where}] `{name}` is filled in from {_GIVEN[name]}; leave it out here.")
        if name in own and not _fits_toml(hints[name]):
            raise ConfigError(f"[{where}] `{name}` cannot be written in TOML; use `whence.attribute` in Python for it.")
    fields = [(n, hints[n], _field(p)) for n, p in own.items() if _fits_toml(hints[n])]
    schema = dataclasses.make_dataclass("Options", fields, kw_only=True)
    read: Any = from_dict(schema, {name: _damping(hints.get(name), value) for name, value in given.items()}, where)
    return {name: getattr(read, name) for name in given}


def _field(parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return dataclasses.field()
    return dataclasses.field(default_factory=lambda: parameter.default)


def _damping(hint: Any, value: Any) -> Any:
    is_damping = Damping in (hint, *typing.get_args(hint))
    if is_damping and isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"value": value, "unit": "absolute"}
    return value


def _fits_toml(hint: Any) -> bool:
    """Whether `from_dict` can read a value of this type."""
    origin = typing.get_origin(hint)
    if hint in _PLAIN or origin is typing.Literal or dataclasses.is_dataclass(hint):
        return True
    if origin in (typing.Union, types.UnionType, tuple, list, dict):
        return all(one is Ellipsis or _fits_toml(one) for one in typing.get_args(hint))
    return False
