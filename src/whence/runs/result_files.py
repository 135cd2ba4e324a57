"""A folder of results on disk: files first, a manifest with their settings and checksums last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import DamagedShardError, StoreError, StoreMismatchError
from whence.storage import FolderLock, differences, make_dir, normalise, read_json, write_json

MANIFEST = "manifest.json"
_VERSION = 1


@dataclass(frozen=True)
class ResultFiles:
    """Results of one step of a run, whole or absent.

    Attributes:
        dir: Their folder.
        kind: What they are, in the manifest and in messages: "scores".
        command: The command that makes them: "whence score".
        dependent: What no longer matches where they are of other settings.
    """

    dir: Path
    kind: str
    command: str
    dependent: str

    def manifest(self) -> dict[str, Any] | None:
        """Settings and files; None where the results were never finished.

        Raises:
            StoreError: The manifest is damaged, or was written by something else.
        """
        path = self.dir / MANIFEST
        if not path.is_file():
            return None
        found = read_json(path)
        if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (self._format, _VERSION):
            raise StoreError(f"{path} was not written by this whence. Name another run folder.")
        return found

    def have(self, settings: Mapping[str, Any], *, rebuild: bool = False) -> bool:
        """Whether the results of these settings are there, whole.

        Args:
            settings: What decides the numbers.
            rebuild: Answer no where a file is damaged, instead of raising.
        Raises:
            StoreMismatchError: Results of other settings are there; the differences are listed.
            DamagedShardError: A file is damaged.
        Cost:
            Reads every file once.
        """
        manifest = self.manifest()
        if manifest is None:
            return False
        lines = differences(manifest["settings"], settings, prefix="")
        if lines:
            listing = "\n  ".join(lines)
            raise StoreMismatchError(
                f"{self.dir} holds {self.kind} of other settings:\n  {listing}\n"
                f"{self.dependent} no longer match. Use another run folder (`--out`), or remove {self.dir}."
            )
        if any(not (self.dir / name).is_file() for name in manifest["files"]):
            return False
        damaged = self._damaged(manifest)
        if damaged and not rebuild:
            raise self._damage(damaged[0])
        return not damaged

    def write(self, settings: Mapping[str, Any], write_files: Callable[[Path], Iterable[Path]]) -> None:
        """Write everything, in the place of what is there.

        Args:
            settings: What decides the numbers.
            write_files: Writes the files into the folder it is given, and names them.
        """
        make_dir(self.dir)
        lock = FolderLock(self.dir / ".lock")
        lock.acquire()
        try:
            (self.dir / MANIFEST).unlink(missing_ok=True)
            files = {path.name: _facts(path) for path in write_files(self.dir)}
            content = {"format": self._format, "version": _VERSION, "settings": normalise(settings), "files": files}
            write_json(self.dir / MANIFEST, content)
        finally:
            lock.release()

    def checked(self) -> list[Path]:
        """The files, after checking every byte.

        Raises:
            StoreError: They were never finished.
            DamagedShardError: A file is damaged or gone.
        """
        manifest = self.manifest()
        if manifest is None:
            raise StoreError(f"{self.dir} holds no finished {self.kind}. Run `{self.command}` first.")
        damaged = self._damaged(manifest)
        if damaged:
            raise self._damage(damaged[0])
        return [self.dir / name for name in manifest["files"]]

    @property
    def _format(self) -> str:
        return f"whence-{self.kind}"

    def _damaged(self, manifest: Mapping[str, Any]) -> list[str]:
        return [name for name, facts in manifest["files"].items() if _facts(self.dir / name) != facts]

    def _damage(self, name: str) -> DamagedShardError:
        return DamagedShardError(
            f"{self.dir / name} is truncated, altered or gone. "
            f"Compute these {self.kind} again with `rebuild=True` (`{self.command} CONFIG --rebuild`); the others are "
            "kept."
        )


def _facts(path: Path) -> dict[str, Any]:
    """Size and checksum; of a file that is gone, size 0."""
    if not path.is_file():
        return {"bytes": 0, "sha256": ""}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
