"""The beginning of every command: settings read and checked, the folder opened, task and data built."""

from __future__ import annotations

import contextlib
import inspect
import os
import shlex
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whence.data import Examples
from whence.errors import ConfigError, StoreMismatchError, WhenceError
from whence.progress import stage
from whence.runs.config import RunConfig, TaskConfig, import_factory, load_config
from whence.runs.folder import CONFIG, MARKER, RunFolder
from whence.runs.history import Stopwatch
from whence.runs.options import method_options
from whence.runs.setup import Setup
from whence.storage import differences, read_json, write_json
from whence.task import Task, fingerprint

PROBLEM = "problem.json"  # in the run folder: which model and data its results belong to
Source = Path | str


@dataclass(frozen=True, eq=False)
class Start:
    """What a command works with.

    Attributes:
        run: The open folder.
        setup: What the factory gave.
        facts: Fingerprints of model and data, and what is measured.
    """

    run: RunFolder
    setup: Setup
    facts: dict[str, Any]

    @property
    def task(self) -> Task:
        """Model and contract."""
        return self.setup.task

    @property
    def train(self) -> Examples:
        """Train set."""
        return self.setup.train

    @property
    def queries(self) -> Examples:
        """What is to be explained."""
        return self.setup.queries


@dataclass(frozen=True, eq=False)
class Opened:
    """An open run folder and its factory, not called yet.

    Attributes:
        run: The folder.
        factory: What builds task and data.
        arguments: How a command line names this run, for messages.
        stopwatch: Started with the command.
    """

    run: RunFolder
    factory: Callable[..., Any]
    arguments: str
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def record(self, step: str) -> None:
        """Note what the command took, where it computed something."""
        self.stopwatch.record(self.run, step)

    def build(self) -> Start:
        """Task and data, compared with those that the folder was started with.

        Raises:
            ConfigError: The factory failed, or returned something else than (Task, Examples, Examples).
            StoreMismatchError: The folder belongs to another model or other data.
        """
        setup = build(self.run.config.task, self.factory)
        facts = problem_facts(setup.task, setup.train, setup.queries)
        _remember(self.run, facts)
        return Start(self.run, setup, facts)


@contextlib.contextmanager
def opened(source: Source, out: Source | None) -> Iterator[Opened]:
    """Check settings and factory, then open the folder.

    A command that is refused before it stored anything leaves no folder behind: settings that were never used do not
    stand in the way of mended ones.

    Args:
        source: A TOML file, a run folder, or its `config.toml`.
        out: Folder of the run; see `RunFolder.resolve`.
    Raises:
        ConfigError: The settings or the factory cannot be used.
        StoreMismatchError: The folder belongs to other settings.
    """
    config = read_config(source)
    factory = checked_factory(config.task)
    run = RunFolder.resolve(source, out)
    arguments = [str(source)] if out is None else [str(source), "--out", str(out)]
    try:
        yield Opened(run, factory, shlex.join(arguments))
    except WhenceError:
        _forget(run, Path(source))
        raise


def read_config(source: Source) -> RunConfig:
    """The settings that `source` names, with every method and its options checked; nothing is written."""
    config = RunFolder.existing(source).config if Path(source).is_dir() else load_config(source)
    for name in config.score.methods:
        method_options(name, config.score.options.get(name, {}))
    return config


def checked_factory(config: TaskConfig) -> Callable[..., Any]:
    """The factory, imported, able to take its options; not called yet."""
    factory = import_factory(config.factory)
    try:
        inspect.signature(factory).bind(**config.options)
    except TypeError as error:
        raise ConfigError(
            f"[task.options] does not fit the factory {config.factory!r}, which takes "
            f"{inspect.signature(factory)}: {error}."
        ) from error
    except ValueError:  # a callable written in C shows no signature: calling it will tell
        pass
    return factory


def build(config: TaskConfig, factory: Callable[..., Any]) -> Setup:
    """Call the factory and check what it returns.

    Raises:
        ConfigError: It failed (the message names the line), or returned neither a `Setup` nor (Task, Examples,
            Examples).
    """
    try:
        with stage("building task and data"):
            built = factory(**config.options)
    except WhenceError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"The factory {config.factory!r} failed: {type(error).__name__}: {error} "
            f"({place.filename}, line {place.lineno}). Mend it and repeat the same command."
        ) from error
    setup = _as_setup(built, config.factory)
    if setup.task.factory is None and not config.options:
        setup.task.factory = config.factory  # for worker processes, which cannot pass options
    return setup


def _as_setup(built: Any, factory: str) -> Setup:
    if isinstance(built, Setup):
        return built
    expected = f"The factory {factory!r} must return a tuple (task, train, queries), or a whence.Setup"
    if not isinstance(built, tuple) or len(built) != 3:
        what = f"{len(built)} values" if isinstance(built, tuple) else f"a {type(built).__name__}"
        raise ConfigError(f"{expected}; got {what}.")
    try:
        return Setup(*built)
    except ConfigError as error:
        raise ConfigError(f"{expected}. {error}") from error


def problem_facts(task: Task, train: Examples, queries: Examples) -> dict[str, Any]:
    """What results belong to, as JSON."""
    return {
        "model": fingerprint(task.model),
        "n_params": task.layout.n_params,
        "loss": task.loss.name,
        "measure": task.measure.name,
        "orientation": task.measure.orientation,
        "train": train.fingerprint,
        "queries": queries.fingerprint,
    }


def _remember(run: RunFolder, facts: dict[str, Any]) -> None:
    """Keep the facts at the first start; later, refuse others."""
    path = run.path / PROBLEM
    if not path.is_file():
        write_json(path, facts)
        return
    lines = differences(read_json(path), facts, prefix="")
    if lines:
        listing = "\n  ".join(lines)
        raise StoreMismatchError(
            f"The factory {run.config.task.factory!r} gave something else than when {run.path} was started:\n"
            f"  {listing}\nNothing in it matches any more. A factory must give "
            "the same model and data every time: load a checkpoint, or seed the training. "
            "For a new model use another folder (`--out`)."
        )


def _forget(run: RunFolder, source: Path) -> None:
    """Remove a folder that holds nothing but settings that can be read from `source` again."""
    folder = run.path.resolve()
    if folder == source.resolve() or folder in source.resolve().parents:
        return
    if set(os.listdir(folder)) <= {CONFIG, MARKER, PROBLEM}:
        for name in (CONFIG, PROBLEM, MARKER):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
