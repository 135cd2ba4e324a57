"""Options of a method as TOML gives them, turned into what the method takes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whence.algebra import Damping
from whence.checks import look_up
from whence.errors import ConfigError, UnknownNameError
from whence.methods import METHODS, Preset
from whence.methods.checkpoints import Checkpoint
from whence.runs.config import FILE_OPTIONS, WEIGHTS, from_dict
from whence.task import GroupWeights

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
    """Keyword arguments for `attribute`, checked against the method's own signature; without `weights`.

    A damping is `{value = 0.1, unit = "relative"}`; a number alone is an absolute one. Checkpoints are a list of paths;
    their state dicts themselves only Python can pass.

    Raises:
        ConfigError: An unknown option (the nearest is named), a missing one, a wrong type, one that is filled in from
            elsewhere in the file, or one that only Python can hold.
    """
    preset, where = preset_of(method), f"score.options.{method}"
    weights_path(method, given)
    given = {name: value for name, value in given.items() if name != WEIGHTS}
    hints = typing.get_type_hints(preset.compute)
    parameters = inspect.signature(preset.compute).parameters
    own = {name: p for name, p in parameters.items() if name not in ("inputs", *_GIVEN)}
    kinds = {name: kind for name in own if (kind := _toml_kind(hints[name])) is not None}
    for name in given:
        if name in _GIVEN and name in parameters:
            raise ConfigError(f"[{where}] `{name}` is filled in from {_GIVEN[name]}; leave it out here.")
        if name in own and name not in kinds:
            raise ConfigError(f"[{where}] `{name}` cannot be written in TOML; use `whence.attribute` in Python for it.")
    fields = [(name, kind, _field(own[name])) for name, kind in kinds.items()]
    schema = dataclasses.make_dataclass("Options", fields, kw_only=True)
    read: Any = from_dict(schema, {name: _damping(hints.get(name), value) for name, value in given.items()}, where)
    return {name: getattr(read, name) for name in given}


def weights_path(method: str, given: Mapping[str, Any]) -> Path | None:
    """The file of weights of parameter groups that the options of a method name; None where they name none.

    Raises:
        ConfigError: It is no path, or the method is not linear in the query's gradient.
    """
    if WEIGHTS not in given:
        return None
    where = f"`score.options.{method}.{WEIGHTS}`"
    if not isinstance(given[WEIGHTS], str):
        raise ConfigError(f"{where} must be the path of a file that `whence weigh` wrote; got {given[WEIGHTS]!r}.")
    if not preset_of(method).linear_in_w:
        raise ConfigError(
            f"{where}: {method} is not linear in the query's gradient, so weights of parameter groups do not apply. "
            "Leave them out, or use another method."
        )
    return Path(given[WEIGHTS])


def given_weights(method: str, given: Mapping[str, Any]) -> GroupWeights | None:
    """What that file holds.

    Raises:
        ConfigError: As `weights_path`.
        StoreError: There is no such file, or it holds no weights.
    """
    path = weights_path(method, given)
    return None if path is None else GroupWeights.load(path)


def _field(parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return dataclasses.field()
    return dataclasses.field(default_factory=lambda: parameter.default)


def _damping(hint: Any, value: Any) -> Any:
    is_damping = Damping in (hint, *typing.get_args(hint))
    if is_damping and isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"value": value, "unit": "absolute"}
    return value


def _toml_kind(hint: Any) -> Any:
    """The type as `from_dict` can read it, with lists for sequences and paths for checkpoints; None where it cannot."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint == Checkpoint:
        return str
    if hint in _PLAIN or origin is typing.Literal or dataclasses.is_dataclass(hint):
        return hint
    if origin in (typing.Union, types.UnionType):
        kinds = [_toml_kind(one) for one in inner]
        return None if None in kinds else functools.reduce(operator.or_, kinds)
    if origin is Sequence:
        kind = _toml_kind(inner[0])
        return None if kind is None else list[kind]  # type: ignore[valid-type]
    if origin in (tuple, list, dict):
        return hint if all(one is Ellipsis or _toml_kind(one) == one for one in inner) else None
    return None


def file_facts(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the files that options name hold, as JSON: scores do not outlive a change of them.

    Raises:
        ConfigError: A file cannot be read.
    """
    return {
        name: [_hash(Path(path), f"score.options.{method}.{name}[{k}]") for k, path in enumerate(options[name])]
        for name in FILE_OPTIONS
        if options.get(name)
    }


def _hash(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"`{where}`: cannot read {path}: {error.strerror or error}. A relative path begins at the folder of the "
            "TOML file."
        ) from error
