"""The folder of one run: its settings, and a place for every result. The same settings continue it, others do not.

    run.json            says that this is a run folder, when and on which machine it was started
    config.toml         the settings, every default filled in; naming the folder or this file repeats the run
    gold/               outcomes of leaving examples out
    scores/<method>/    one score store for each method
    agreement.parquet   scores against the gold standard
    summary.json        its numbers
    weights/<method>/   weights of parameter groups, and what each group contributes
    weights/few-shot/   outcomes of training anew for few-shot weights
    retraining/         outcomes of training on kept sets
    evaluation/         scores against them, and how well wrong labels are found
    history.json        what each command took
    report.html         the report

Other files are left alone.
"""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whence.errors import ConfigError, InputError, StoreError, StoreMismatchError
from whence.runs.config import RunConfig, dump_toml, load_config, to_dict, with_absolute_paths
from whence.runs.machine import machine
from whence.storage import differences, make_dir, read_json, write_atomic, write_json

MARKER, CONFIG = "run.json", "config.toml"
_FORMAT, _VERSION = "whence-run", 1
_METHOD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_EVERYTHING = ("gold", "scores", "agreement", "weights", "retraining", "evaluation", "audit", "report")
_DEPENDENT = {  # which parts a changed table makes obsolete
    "name": ("report",),
    "gold": ("gold", "agreement", "audit", "report"),
    "score": ("scores", "agreement", "evaluation", "report"),
    "agree": ("agreement", "report"),
    "weigh": ("weights", "evaluation", "report"),
    "audit": ("audit", "report"),
    "evaluate": ("retraining", "evaluation", "report"),
}


class RunFolder:
    """One run on disk; made by `open` or `existing`."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config

    @classmethod
    def open(cls, path: Path | str, config: RunConfig) -> RunFolder:
        """Start a run, or continue the one in this folder if it has these settings.

        Args:
            path: Absent, empty, or a run folder.
            config: The settings; relative paths of a `file.py` factory and of checkpoints are looked for in the working
                directory.
        Raises:
            StoreMismatchError: The folder has a run with other settings; each is listed, with what depends on it.
            StoreError: The folder holds something else.
            StoreWriteError: It cannot be written.
        """
        path = Path(path)
        config = with_absolute_paths(config, Path.cwd())
        started = _is_run_folder(path)
        if not started:
            _refuse_other_content(path)
        if started and (path / CONFIG).is_file():
            _refuse_other_settings(path, load_config(path), config)
            return cls(path, config)
        text = dump_toml(config)
        make_dir(path)
        write_json(path / MARKER, _marker())
        write_atomic(path / CONFIG, text.encode())  # last: a folder without it is started again
        return cls(path, config)

    @classmethod
    def existing(cls, path: Path | str) -> RunFolder:
        """The run in a folder, given by the folder or by its `config.toml`.

        Raises:
            StoreError: There is no run.
            ConfigError: Its `config.toml` was edited into something that is no configuration.
        """
        path = Path(path)
        folder = path.parent if path.name == CONFIG else path
        if not (_is_run_folder(folder) and (folder / CONFIG).is_file()):
            raise StoreError(f"{path} is not a run folder: it lacks {MARKER} or {CONFIG}. Name the folder of a run.")
        return cls(folder, load_config(folder))

    @classmethod
    def resolve(cls, source: Path | str, folder: Path | str | None = None) -> RunFolder:
        """The run that a command line names: by a run folder, its `config.toml`, or any other TOML file.

        Args:
            source: A run folder or its `config.toml` continues that run; another TOML file starts or continues one.
            folder: Where to run; by default the run folder named, else `runs/<name>` in the working directory.
        Raises:
            ConfigError, StoreError: See `load_config`, `open` and `existing`.
        """
        source = Path(source)
        home = source.parent if source.name == CONFIG else source
        if _is_run_folder(home):
            run = cls.existing(source)
            return run if folder is None else cls.open(folder, run.config)
        if source.is_dir():
            raise ConfigError(f"{source} is a folder without a run. Name a run folder or a TOML file.")
        config = load_config(source)
        return cls.open(Path("runs") / _as_file_name(config.name) if folder is None else folder, config)

    @classmethod
    def find(cls, source: Path | str, folder: Path | str | None = None) -> RunFolder:
        """The run that a command line names, as `resolve`, where it has been started; nothing is written.

        Raises:
            StoreError: It has not.
            ConfigError, StoreMismatchError: See `resolve`.
        """
        source = Path(source)
        home = source.parent if source.name == CONFIG else source
        if folder is None and _is_run_folder(home):
            return cls.existing(source)
        place = Path("runs") / _as_file_name(load_config(source).name) if folder is None else Path(folder)
        if not _is_run_folder(place):
            raise StoreError(f"{place} holds no run yet. Start it with `whence score {source}`, or `whence gold`.")
        return cls.resolve(source, folder)

    def config_path(self) -> Path:
        """The settings."""
        return self.path / CONFIG

    def gold_dir(self) -> Path:
        """Store of the gold standard."""
        return self.path / "gold"

    def scores_dir(self, method: str) -> Path:
        """Store of one method's scores.

        Raises:
            InputError: The name is not fit for a folder.
        """
        return self.path / "scores" / _fit_for_folder(method)

    def weights_dir(self, method: str) -> Path:
        """Weights of parameter groups for one method; errors as `scores_dir`."""
        return self.path / "weights" / _fit_for_folder(method)

    def retraining_dir(self) -> Path:
        """Store of the outcomes on kept sets."""
        return self.path / "retraining"

    def evaluation_dir(self) -> Path:
        """Linear datamodeling scores, and how well wrong labels are found."""
        return self.path / "evaluation"

    def audit_dir(self) -> Path:
        """What the audit found, and its pilot."""
        return self.path / "audit"

    def history_path(self) -> Path:
        """What each command took."""
        return self.path / "history.json"

    def scored_methods(self) -> list[str]:
        """Methods that have a store here, complete or not, in alphabetical order."""
        parent = self.path / "scores"
        return sorted(entry.name for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []

    def agreement_path(self) -> Path:
        """Table of scores against the gold standard."""
        return self.path / "agreement.parquet"

    def summary_path(self) -> Path:
        """Numbers of the report, as JSON."""
        return self.path / "summary.json"

    def report_path(self) -> Path:
        """The report."""
        return self.path / "report.html"


def _fit_for_folder(method: str) -> str:
    if not _METHOD.fullmatch(method):
        raise InputError(f"Method name {method!r} is not fit for a folder: use letters, digits, `.`, `_`, `-`.")
    return method


def _is_run_folder(path: Path) -> bool:
    if not (path / MARKER).is_file():
        return False
    marker = read_json(path / MARKER)
    if not isinstance(marker, dict) or marker.get("format") != _FORMAT:
        raise StoreError(f"{path / MARKER} was not written by whence. Name a new or an empty folder.")
    if marker.get("version") != _VERSION:
        raise StoreError(
            f"{path} has run version {marker.get('version')}, this whence reads {_VERSION}. "
            "Use the whence that wrote it, or another folder."
        )
    return True


def _refuse_other_content(path: Path) -> None:
    try:
        names = sorted(entry.name for entry in os.scandir(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"Cannot open {path} as a folder: {error.strerror or error}. Name another.") from error
    others = [name for name in names if name != MARKER + ".partial"]
    if others:
        raise StoreError(
            f"{path} is not a run folder and holds {', '.join(others[:5])}. Name a new or an empty folder."
        )


def _refuse_other_settings(path: Path, stored: RunConfig, asked: RunConfig) -> None:
    lines = differences(_json(to_dict(stored)), _json(to_dict(asked)), prefix="")
    if not lines:
        return
    tables = {line.partition(":")[0].partition(".")[0] for line in lines}
    touched = {part for table in tables for part in _DEPENDENT.get(table, _EVERYTHING)}
    parts = ", ".join(part for part in _EVERYTHING if part in touched)
    listing = "\n  ".join(lines)
    raise StoreMismatchError(
        f"{path} holds a run with other settings:\n  {listing}\n"
        f"These parts of it no longer match: {parts}. Use another folder for the new settings, "
        f"or repeat the stored run with {path / CONFIG}."
    )


def _json(value: Any) -> Any:
    """`value` with what TOML has and JSON lacks (dates, infinities) as text, to be compared and shown."""
    if isinstance(value, Mapping):
        return {key: _json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(inner) for inner in value]
    if isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _marker() -> dict[str, object]:
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"format": _FORMAT, "version": _VERSION, "started": started, "machine": machine()}


def _as_file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "run"
