"""One writer at a time in a folder. The system frees the lock when its holder ends, by kill -9 too."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path
from typing import Any

from whence.errors import StoreError
from whence.storage.atomic import write_errors

_fcntl: Any
try:
    import fcntl as _fcntl
except ImportError:  # Windows: no lock, and two writers are the user's to avoid
    _fcntl = None


class FolderLock:
    """An exclusive lock on a file, held from `acquire` to `release`, or until the object or the process is gone.

    Where the platform or the file system has no `flock`, it always succeeds. A process forked while the lock is
    held shares it until both have let go.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = False
        self._close: weakref.finalize[..., FolderLock] | None = None

    def acquire(self) -> None:
        """Take the lock; no effect where this object holds it already.

        Raises:
            StoreError: Someone else holds it; the message gives the process.
            StoreWriteError: The lock file cannot be created.
        """
        if not self.held and _fcntl is not None:
            self._lock()
        self.held = True

    def _lock(self) -> None:
        with write_errors(self.path):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _fcntl.flock(handle, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode(errors="replace").strip() or "(unknown)"
            os.close(handle)
            mine = " (this one: close the other store first)" if holder == str(os.getpid()) else ""
            raise StoreError(
                f"{self.path.parent} is in use by process {holder}{mine}. Wait for it to end, or use another folder."
            ) from None
        except OSError:  # a network file system without locks
            os.close(handle)
            return
        self._close = weakref.finalize(self, os.close, handle)
        with contextlib.suppress(OSError):  # the number only serves the message above
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the lock back; no effect where it is not held. The file stays: removing it would race."""
        if self._close is not None:
            self._close()
            self._close = None
        self.held = False
