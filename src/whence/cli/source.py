"""What can be said about a CONFIG argument before anything heavy is imported."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path

from whence.errors import ConfigError


def check_source(config: Path) -> None:
    """Refuse a path that is not there (naming the nearest), and a file that is not TOML (naming the line).

    Raises:
        ConfigError: Either of these.
    """
    if not config.exists():
        raise ConfigError(f"There is no file or folder {config}.{_nearest(config)}")
    if config.is_file():
        try:
            tomllib.loads(config.read_text("utf-8-sig"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{config}: not valid TOML: {error}.") from error
        except (OSError, UnicodeDecodeError):
            return  # `load_config` says what is wrong


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return ""
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir() or entry.name.endswith(".toml")]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f" Did you mean {folder / near[0]}?" if near else ""
