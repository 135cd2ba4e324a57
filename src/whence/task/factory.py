"""Functions named by text, "package.module:function" or "path/to/file.py:function", found without running a job."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whence.checks import unknown_name
from whence.errors import ConfigError


def import_factory(text: str) -> Callable[..., Any]:
    """The callable that `text` names.

    Raises:
        ConfigError: The text has no colon, the module cannot be imported, has no such name, or it is not callable.
    """
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise ConfigError(f"A factory is 'package.module:function' or 'file.py:function'; got {text!r}.")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    if not hasattr(module, name):
        known = {key: None for key in vars(module) if not key.startswith("_")}
        raise ConfigError(f"{place!r} has no {name!r}. {unknown_name('name', name, known)}")
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"{text!r} is a {type(found).__name__}, not something to call.")
    return found  # type: ignore[no-any-return]


def _import_module(place: str) -> Any:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise ConfigError(
            f"The factory's module {place!r} cannot be imported: {type(error).__name__}: {error}. "
            "Is it installed, or is its folder on PYTHONPATH?"
        ) from error


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"The factory's file {str(path)!r} does not exist (looked from {Path.cwd()}).")
    spec = importlib.util.spec_from_file_location(f"whence_factory_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"The factory's file {str(path)!r} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    return module
