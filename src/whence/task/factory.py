"""Functions named by text, "package.module:name" or "path/to/file.py:name": how configurations name a task."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from whence.errors import ConfigError

FILE_MODULE = "whence_factory_"  # modules made from files are named by this and a digest of their path


def import_factory(factory: str, base: Path | str | None = None) -> Callable[..., Any]:
    """The callable behind "package.module:name" or "path/to/file.py:name".

    Modules are also looked for in the working directory, and a file's own imports beside it: both are appended to
    `sys.path`. A file is executed anew at each call.

    Args:
        factory: The text.
        base: Folder that a relative path starts from; the working directory where it is None.
    Raises:
        ConfigError: It cannot be imported (with the cause), has no such name (with the nearest) or is not callable.
    """
    module_name, name = split_factory(factory)
    if module_name.endswith(".py"):
        module = _module_from_file((Path.cwd() if base is None else Path(base)) / module_name, factory)
    else:
        module = _module_by_name(module_name, factory)
    if not hasattr(module, name):
        known = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise ConfigError(f"Factory {factory!r}: {module_name} has no `{name}`.{hint}")
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(
            f"Factory {factory!r}: `{name}` is a {type(found).__name__}, not callable. "
            "Name a function that returns (task, train, queries)."
        )
    return typing.cast(Callable[..., Any], found)


def split_factory(factory: str) -> tuple[str, str]:
    """Module (or file) and name.

    Raises:
        ConfigError: The text has no colon, or no name behind it.
    """
    module, _, name = factory.rpartition(":")
    if not module or not name.isidentifier():
        raise ConfigError(
            f"`factory` must be 'package.module:name' or 'path/to/file.py:name'; got {factory!r}. "
            "Put the function's name after a colon."
        )
    return module, name


def _module_by_name(name: str, factory: str) -> ModuleType:
    _append_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _import_error(factory, name, error) from error


def _module_from_file(path: Path, factory: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"Factory {factory!r}: there is no file {path}.")
    # A name of its own for each file, so that two files called model.py do not meet.
    name = f"{FILE_MODULE}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"Factory {factory!r}: {path} cannot be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    _append_path(path.parent)
    sys.modules[name] = module  # dataclasses and pickling look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_error(factory, str(path), error) from error
    return module


def _append_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_error(factory: str, module: str, error: BaseException) -> ConfigError:
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name and (module + ".").startswith(error.name + "."):
        hint = " Install it, run in the folder that holds it, or name its file: 'path/to/file.py:name'."
    return ConfigError(f"Factory {factory!r}: cannot import {module}: {type(error).__name__}: {error}.{hint}")
