"""The scores of one method on disk: safetensors, top-k tables, and a manifest last.

scores.safetensors, top.parquet                  or, for methods that follow further training,
amount-20.safetensors, amount-20-top.parquet     one pair for each amount
manifest.json                                    settings, and sizes and SHA-256 of the files
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whence.errors import DamagedShardError, StoreError, StoreMismatchError
from whence.scores import ScoreMatrix, TopK
from whence.storage import FolderLock, differences, make_dir, normalise, read_json, write_json

Scores = ScoreMatrix | dict[int, ScoreMatrix]
MANIFEST = "manifest.json"
_FORMAT, _VERSION = "whence-scores", 1


class ScoreFiles:
    """The folder of one method's scores."""

    def __init__(self, dir: Path) -> None:
        self.dir = dir

    def manifest(self) -> dict[str, Any] | None:
        """Settings and files; None where the scores were never finished.

        Raises:
            StoreError: The manifest is damaged, or was written by something else.
        """
        path = self.dir / MANIFEST
        if not path.is_file():
            return None
        found = read_json(path)
        if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (_FORMAT, _VERSION):
            raise StoreError(f"{path} was not written by this whence. Name another run folder.")
        return found

    def have(self, settings: Mapping[str, Any], *, rebuild: bool = False) -> bool:
        """Whether the scores of these settings are there, whole.

        Args:
            settings: What decides the numbers.
            rebuild: Answer no where a file is damaged, instead of raising.
        Raises:
            StoreMismatchError: Scores of other settings are there; the differences are listed.
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
                f"{self.dir} holds scores of other settings:\n  {listing}\n"
                "These scores, the agreement and the report no longer match. "
                f"Use another run folder (`--out`), or remove {self.dir}."
            )
        if any(not (self.dir / name).is_file() for name in manifest["files"]):
            return False
        damaged = self._damaged(manifest)
        if damaged and not rebuild:
            raise self._damage(damaged[0])
        return not damaged

    def write(self, scores: Scores, settings: Mapping[str, Any], top: int) -> None:
        """Write everything, in the place of what is there."""
        make_dir(self.dir)
        lock = FolderLock(self.dir / ".lock")
        lock.acquire()
        try:
            (self.dir / MANIFEST).unlink(missing_ok=True)
            files = {path.name: _facts(path) for path in self._write_files(scores, top)}
            content = {"format": _FORMAT, "version": _VERSION, "settings": normalise(settings), "files": files}
            write_json(self.dir / MANIFEST, content)
        finally:
            lock.release()

    def _write_files(self, scores: Scores, top: int) -> list[Path]:
        paths = []
        for stem, matrix in _named(scores).items():
            paths.append(matrix.save(self.dir / f"{stem}.safetensors", overwrite=True))
            table = "top.parquet" if stem == "scores" else f"{stem}-top.parquet"
            paths.append(TopK.from_blocks(matrix.blocks(), top).to_parquet(self.dir / table, overwrite=True))
        return paths

    def read(self) -> Scores:
        """The scores, after checking every byte.

        Raises:
            StoreError: They were never finished.
            DamagedShardError: A file is damaged or gone.
        """
        manifest = self.manifest()
        if manifest is None:
            raise StoreError(f"{self.dir} holds no finished scores. Run `whence score` first.")
        damaged = self._damaged(manifest)
        if damaged:
            raise self._damage(damaged[0])
        stems = [Path(name).stem for name in manifest["files"] if name.endswith(".safetensors")]
        matrices = {stem: ScoreMatrix.load(self.dir / f"{stem}.safetensors") for stem in stems}
        if stems == ["scores"]:
            return matrices["scores"]
        return {int(stem.removeprefix("amount-")): matrix for stem, matrix in matrices.items()}

    def _damaged(self, manifest: Mapping[str, Any]) -> list[str]:
        return [name for name, facts in manifest["files"].items() if _facts(self.dir / name) != facts]

    def _damage(self, name: str) -> DamagedShardError:
        return DamagedShardError(
            f"{self.dir / name} is truncated, altered or gone. "
            "Compute these scores again with `rebuild=True` (`whence score CONFIG --rebuild`); the others are kept."
        )


def _named(scores: Scores) -> dict[str, ScoreMatrix]:
    if isinstance(scores, ScoreMatrix):
        return {"scores": scores}
    return {f"amount-{amount}": matrix for amount, matrix in scores.items()}


def _facts(path: Path) -> dict[str, Any]:
    """Size and checksum; of a file that is gone, size 0."""
    if not path.is_file():
        return {"bytes": 0, "sha256": ""}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
