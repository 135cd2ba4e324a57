"""What is going on, and how long it will take: named stages, shown as bars, as JSON lines, or not at all.

    with stage("further training", total=epochs, unit="epoch") as epochs_done:
        for epoch in range(epochs):
            ...
            epochs_done.advance()

Everything goes to stderr, so that stdout stays free for results. Stages nest; a nested one is named `outer/inner`.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from whence.checks import look_up

if TYPE_CHECKING:
    import rich.progress

VARIABLE = "WHENCE_PROGRESS"


class Stage:
    """One piece of work under way; made by `Progress.stage`, used in a `with` block.

    Attributes:
        path: Names of the enclosing stages and of this one, joined by `/`.
        total: Units to do, or None where that is not known.
        done: Units done so far.
        facts: Whatever `note` was told, such as the current loss.
        failed: Name of the error that ended the stage early, else None.
    """

    def __init__(self, progress: Progress, name: str, total: float | None, unit: str) -> None:
        self.name, self.path, self.total, self.unit = name, name, total, unit
        self.depth = 0
        self.done: float = 0
        self.facts: dict[str, Any] = {}
        self.failed: str | None = None
        self._progress = progress
        self._started_s = self._reported_s = progress.clock()

    def advance(self, n: float = 1) -> None:
        """Say that `n` more units are done."""
        self.done += n
        self._report()

    def note(self, **facts: Any) -> None:
        """Attach facts to the stage; they are shown with its next report and with the last."""
        self.facts |= facts
        self._report()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began."""
        return self._progress.clock() - self._started_s

    @property
    def eta_s(self) -> float | None:
        """Seconds still to go at the pace so far; None where the total is not known or nothing is done yet."""
        if not self.total or not self.done:
            return None
        return max(0.0, self.total - self.done) * self.elapsed_s / self.done

    def _report(self) -> None:
        now = self._progress.clock()
        if now - self._reported_s >= self._progress.reporter.interval_s:
            self._reported_s = now
            self._progress.reporter.update(self)

    def __enter__(self) -> Self:
        outer = self._progress.stack
        if outer:
            self.path = f"{outer[-1].path}/{self.name}"
            self.depth = len(outer)
        outer.append(self)
        self._started_s = self._reported_s = self._progress.clock()
        self._progress.reporter.start(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A generator that is closed late ends its stage after the one around it: remove this one, not the last.
        if self in self._progress.stack:
            self._progress.stack.remove(self)
        self.failed = kind.__name__ if kind is not None else None
        self._progress.reporter.end(self)


class Reporter(Protocol):
    """Shows stages; `update` is called at most once per `interval_s` and stage."""

    interval_s: float

    def start(self, stage: Stage) -> None: ...

    def update(self, stage: Stage) -> None: ...

    def end(self, stage: Stage) -> None: ...


class Progress:
    """Stages that one reporter shows. Each thread nests its own.

    Args:
        reporter: Where to show them; silent by default.
        clock: Seconds that never go back.
    """

    def __init__(self, reporter: Reporter | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.reporter: Reporter = reporter if reporter is not None else SilentReporter()
        self.clock = clock
        self._threads = threading.local()

    @property
    def stack(self) -> list[Stage]:
        """The stages under way in this thread, outermost first."""
        stages: list[Stage] = self._threads.__dict__.setdefault("stack", [])
        return stages

    def stage(self, name: str, total: float | None = None, unit: str = "") -> Stage:
        """A stage, to be used in a `with` block."""
        return Stage(self, name, total, unit)


class SilentReporter:
    """Shows nothing."""

    interval_s = math.inf

    def start(self, stage: Stage) -> None:
        pass

    update = end = start


class JsonReporter:
    """One JSON object a line: event (start, progress, end), stage, done, total, elapsed_s, eta_s.

    Besides, where there are any: unit, facts, and failed (the name of the error that ended the stage).

    Args:
        stream: Where to write; stderr by default.
        interval_s: Least time between two `progress` lines of a stage.
    """

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = 1.0) -> None:
        self.interval_s = interval_s
        self._stream = stream

    def start(self, stage: Stage) -> None:
        self._write("start", stage)

    def update(self, stage: Stage) -> None:
        self._write("progress", stage)

    def end(self, stage: Stage) -> None:
        self._write("end", stage)

    def _write(self, event: str, stage: Stage) -> None:
        eta_s = stage.eta_s
        line: dict[str, Any] = {
            "event": event,
            "stage": stage.path,
            "done": stage.done,
            "total": stage.total,
            "elapsed_s": round(stage.elapsed_s, 3),
            "eta_s": round(eta_s, 3) if eta_s is not None else None,
        }
        extras = {"unit": stage.unit, "facts": stage.facts, "failed": stage.failed}
        line |= {key: value for key, value in extras.items() if value}
        stream = self._stream if self._stream is not None else sys.stderr
        try:
            stream.write(json.dumps(line, default=str) + "\n")
            stream.flush()
        except (OSError, ValueError, AttributeError):  # stderr closed or absent: hours of work must not end for that
            self.interval_s = math.inf


class RichReporter:
    """Bars on a terminal: the outermost stages stay when done, nested ones give way to the next."""

    interval_s = 0.1

    def __init__(self) -> None:
        self._display: rich.progress.Progress | None = None
        self._tasks: dict[Stage, rich.progress.TaskID] = {}
        self._mutex = threading.Lock()

    def start(self, stage: Stage) -> None:
        with self._mutex:
            if self._display is None:
                self._display = _bars()
                self._display.start()
            label = "  " * stage.depth + stage.name
            self._tasks[stage] = self._display.add_task(label, total=stage.total, unit=stage.unit, facts="")

    def update(self, stage: Stage) -> None:
        if self._display is not None and stage in self._tasks:
            facts = ", ".join(f"{key} {_short(value)}" for key, value in stage.facts.items())
            self._display.update(self._tasks[stage], completed=stage.done, total=stage.total, facts=facts)

    def end(self, stage: Stage) -> None:
        with self._mutex:
            self.update(stage)
            task = self._tasks.pop(stage, None)
            if self._display is None or task is None:
                return
            if stage.depth:
                self._display.remove_task(task)
            else:
                self._display.stop_task(task)
            if not self._tasks:
                self._display.stop()
                self._display = None


def _bars() -> rich.progress.Progress:
    import rich.console
    import rich.progress as bars

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[unit]}", markup=False),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[facts]}", markup=False),
    )
    # Rich would send what is printed meanwhile to its own console, which is stderr: stdout must stay stdout.
    return bars.Progress(*columns, console=rich.console.Console(stderr=True), redirect_stdout=False)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_REPORTERS: dict[str, Callable[[], Reporter]] = {"rich": RichReporter, "json": JsonReporter, "silent": SilentReporter}
_CHOICES = {"auto": None, **_REPORTERS}
_asked: str | None = None


def set_reporter(name: str) -> None:
    """Choose how this process shows progress from now on.

    Args:
        name: "rich", "json", "silent", or "auto": what WHENCE_PROGRESS says, else bars on a terminal and JSON lines
            elsewhere. Before the first call it is WHENCE_PROGRESS, else bars on a terminal and silence elsewhere.
    Raises:
        UnknownNameError: Another name.
    """
    look_up(_CHOICES, name, "progress reporter")
    global _asked
    _asked = name


def stage(name: str, total: float | None = None, unit: str = "") -> Stage:
    """A stage shown by the reporter of this process; use it in a `with` block.

    Raises:
        UnknownNameError: WHENCE_PROGRESS names no reporter.
    """
    return _shared(_kind()).stage(name, total, unit)


@functools.cache
def _shared(kind: str) -> Progress:
    return Progress(_REPORTERS[kind]())


def _kind() -> str:
    """The reporter in charge: asked for, else of the environment, else by what stderr is."""
    if _asked is not None and _asked != "auto":
        return _asked
    if _asked is None and multiprocessing.parent_process() is not None:
        return "silent"  # a worker: its parent reports
    wanted = os.environ.get(VARIABLE) or "auto"
    look_up(_CHOICES, wanted, f"progress reporter (environment variable {VARIABLE})")
    if wanted != "auto":
        return wanted
    if sys.stderr is not None and sys.stderr.isatty():
        return "rich"
    return "json" if _asked == "auto" or os.environ.get(VARIABLE) == "auto" else "silent"
