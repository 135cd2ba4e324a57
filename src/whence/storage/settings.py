"""Settings as JSON dicts: one normal form, a fingerprint, and differences a person can read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from whence.errors import InputError

_ABSENT = "(nothing)"


def normalise(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` as JSON would give them back: tuples become lists, `1.0` becomes `1`.

    Raises:
        InputError: A value is not JSON (a tensor, NaN, infinity, a path); the message names its key.
    """
    return {_key(key, "settings"): _normal(value, f"settings.{key}") for key, value in settings.items()}


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise InputError(f"Keys of `{where}` must be text; got {key!r}.")
    return key


def _normal(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return _number(value, where)
    if isinstance(value, Mapping):
        return {_key(key, where): _normal(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_normal(inner, f"{where}[{k}]") for k, inner in enumerate(value)]
    raise InputError(f"`{where}` must be plain JSON; got a {type(value).__name__}. Store its name or its numbers.")


def _number(value: float, where: str) -> float | int:
    if value != value or value in (float("inf"), float("-inf")):
        raise InputError(f"`{where}` is {value}, which JSON cannot hold. Use None, or a finite number.")
    # `lr = 1` and `lr = 1.0` are the same setting; above 2^53 the two would no longer be the same number.
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the settings, whatever the order of their keys.

    >>> fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": [2, 3], "a": 1.0})
    True
    """
    return hashlib.sha256(_text(normalise(settings)).encode()).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys; lists and empty dicts stay whole.

    >>> flatten({"recipe": {"lr": 0.1, "betas": [0.9, 0.99]}}, "settings")
    {'settings.recipe.lr': 0.1, 'settings.recipe.betas': [0.9, 0.99]}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, name)
        else:
            flat[name] = value
    return flat


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "settings") -> list[str]:
    """One line for each key whose value differs, such as `settings.lr: stored 0.03, asked 0.1`."""
    old, new = (flatten(normalise(side), prefix) for side in (stored, asked))
    shown = {key: (_shown(old, key), _shown(new, key)) for key in dict.fromkeys([*old, *new])}
    return [f"{key}: stored {was}, asked {now}" for key, (was, now) in shown.items() if was != now]


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return _text(flat[key]) if key in flat else _ABSENT
