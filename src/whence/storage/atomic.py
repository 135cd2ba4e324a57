"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from whence.errors import InputError, StoreError, StoreWriteError

PARTIAL_SUFFIX = ".partial"

_NO_SPACE = "Free some space, or choose a folder elsewhere; the same command then continues where it stopped."
_NO_PERMISSION = "Choose a folder you may write to, or change its permissions, and repeat the same command."
_ADVICE = {
    errno.ENOSPC: _NO_SPACE,
    errno.EROFS: "It is mounted read-only: choose a folder elsewhere, or remount it, and repeat the same command.",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
}
if hasattr(errno, "EDQUOT"):
    _ADVICE[errno.EDQUOT] = _NO_SPACE


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn every `OSError` of the block into a `StoreWriteError` that names `path`, the cause and what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Repeat the same command once the cause is gone.")
        raise StoreWriteError(
            f"Cannot write {path}: {error.strerror or error}. Nothing that was there before is lost. {advice}"
        ) from error


def make_dir(path: Path) -> None:
    """Create a folder and its parents, where they do not exist yet.

    Raises:
        StoreWriteError: Not permitted, read-only, or a file stands in the way.
    """
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomic(path: Path | str, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, or a restart after kill -9 or a power cut, meets all of it or none.

    Writes `<name>.partial`, fsyncs it, renames it and fsyncs the folder. A `.partial` left by an interrupted run
    is replaced. Two writers of the same path need a lock (`FolderLock`): they share the `.partial`.

    Args:
        path: The final place; its folder must exist.
        content: The bytes, or a function that writes them to the open file.
    Raises:
        StoreWriteError: No space, read-only, not permitted. The `.partial` is removed and the old file stays.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with write_errors(path):
        try:
            with open(partial, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make renames and removals in a folder outlive a power cut, where the system can."""
    if os.name == "nt":  # folders cannot be opened there; the rename itself is journaled
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        InputError: `value` holds NaN, infinity, or something that is not JSON.
        StoreWriteError: See `write_atomic`.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} must hold plain JSON (finite numbers, text, lists, dicts): {error}.") from error
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path | str) -> Any:
    """The value of a JSON file.

    Raises:
        StoreError: Absent, unreadable or not JSON; the message names the file.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged: it is not JSON ({error}). Restore it, or use another folder and compute again."
        ) from error
