"""What each command of a run took: seconds and memory, for the report and for planning."""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any

from whence.errors import StoreError
from whence.runs.folder import RunFolder
from whence.runs.machine import whence_version
from whence.storage import read_json, write_json


class Stopwatch:
    """Runs from its making."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def record(self, run: RunFolder, step: str) -> None:
        """Add what `step` took to the history of the run. Call it where something was computed."""
        entry = {
            "step": step,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._started, 3),
            "peak_mb": peak_memory_mb(),
            "whence": whence_version(),
        }
        write_json(run.history_path(), [*_known(run), entry])


def read_history(run: RunFolder) -> list[dict[str, Any]]:
    """Entries with step, finished, seconds, peak_mb (None where the system does not tell) and whence.

    Raises:
        StoreError: The file is damaged.
    """
    if not run.history_path().is_file():
        return []
    found = read_json(run.history_path())
    if not isinstance(found, list) or not all(isinstance(entry, dict) and "step" in entry for entry in found):
        raise StoreError(f"{run.history_path()} is damaged: it is no list of steps. Remove it; nothing else needs it.")
    return found


def _known(run: RunFolder) -> list[dict[str, Any]]:
    try:
        return read_history(run)
    except StoreError:  # times are not worth refusing a result for
        return []


def peak_memory_mb() -> float | None:
    """Largest memory of this process and of the largest of its workers together, in MB; None where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kB elsewhere
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(sum(peaks) / unit, 1)
