"""What a piece of work costs: seconds, and how much memory it needs on top of what was there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
STATM = Path("/proc/self/statm")  # Linux; elsewhere memory is not measured
INTERVAL_S = 0.01


@dataclass(frozen=True)
class Costed(Generic[T]):
    """A result with its wall seconds, and the MiB its work needed at most; None where the system does not tell."""

    value: T
    seconds: float
    peak_mb: float | None


def costed(work: Callable[[], T]) -> Costed[T]:
    """Do the work, watched by a thread that reads the resident memory every hundredth of a second."""
    before = _resident()
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(INTERVAL_S):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    if before:
        watcher.start()
    start = time.perf_counter()
    try:
        value = work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
    peak = max(peak, _resident())
    return Costed(value, seconds, (peak - before) / 2**20 if before else None)


def _resident() -> int:
    """Bytes; 0 where they cannot be read."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
