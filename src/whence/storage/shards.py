"""A folder of named shards that survives interruption: plan first, shards in any order, manifest last.

    plan.json                 settings, their fingerprint, and the names of the shards to come
    <name>.safetensors        one per shard, with its checksum inside
    manifest.json             written when every shard is there: sizes and SHA-256 of the files

A shard file moved to another store or another name is refused like a damaged one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import safetensors.torch
from torch import Tensor

from whence.checks import unknown_name
from whence.errors import DamagedShardError, InputError, StoreError, StoreMismatchError
from whence.storage.atomic import PARTIAL_SUFFIX, make_dir, read_json, sync_dir, write_atomic, write_errors, write_json
from whence.storage.lock import FolderLock
from whence.storage.payload import Damage, Shard, decode, encode
from whence.storage.settings import differences, fingerprint, normalise

PLAN, MANIFEST, LOCK = "plan.json", "manifest.json", ".lock"
_FORMAT, _VERSION = "whence-store", 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHOWN = 12  # differences listed before "and n more"


class ShardStore:
    """Named shards of tensors, written once each, for one set of settings.

    The same code starts, resumes and reopens a store:

        store = ShardStore(folder, settings, names, description="gold").open_or_create()
        for name in store.missing():
            store.write(name, compute(name), {})
        store.finish()

    An incomplete store is locked for its writer; a complete one is read by any number of processes.

    Args:
        dir: The folder; created by `open_or_create`.
        settings: JSON values that decide what the numbers are. Other settings need another folder.
        shard_names: All shards, in order; letters, digits, `.`, `_` and `-`.
        description: What the store holds, for people and messages.
    Raises:
        InputError: Settings that are not JSON, or shard names that are empty, repeated or not fit for files.
    """

    def __init__(
        self, dir: Path | str, settings: Mapping[str, Any], shard_names: Sequence[str], *, description: str
    ) -> None:
        self.dir = Path(dir)
        self.settings = normalise(settings)
        self.fingerprint = fingerprint(settings)
        self.shard_names = _checked_names(shard_names)
        self.description = description
        self._lock = FolderLock(self.dir / LOCK)
        self._files: dict[str, dict[str, Any]] = {}  # facts of shards this process has written
        self._verified: set[str] = set()  # shards this process has written or read in full

    @classmethod
    def existing(cls, dir: Path | str) -> ShardStore:
        """Open a store for reading with the settings it was written for; takes no lock.

        Raises:
            StoreError: The folder holds no store.
        """
        plan = _read_plan(Path(dir))
        if plan is None:
            raise StoreError(f"{dir} holds no store: it has no {PLAN}. Name the folder that does.")
        return cls(dir, plan["settings"], plan["shards"], description=plan["description"])

    def open_or_create(self, *, rebuild: bool = False) -> Self:
        """Start the store, or continue it where it stopped.

        Args:
            rebuild: Set damaged shards aside first, so that they count as missing (reads every shard).
        Raises:
            StoreMismatchError: The folder was written for other settings or shard names; they are listed.
            StoreError: The folder holds something else, or another process writes there.
            StoreWriteError: The folder cannot be written.
        """
        self._check_plan()
        if not self.complete:
            make_dir(self.dir)
            self._lock.acquire()
            # Between the first look and the lock, another process may have started or completed the store.
            try:
                if not self._check_plan():
                    self._write_plan()
            except BaseException:
                self.close()
                raise
            if self.complete:
                self.close()
        if rebuild:
            self.rebuild_damaged()
        return self

    def close(self) -> None:
        """Let other processes write. The end of the object or of the process does the same."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Shards

    def path(self, name: str) -> Path:
        """The file of a shard."""
        if name not in self.shard_names:
            raise unknown_name(f"shard of {self.dir}", name, list(self.shard_names))
        return self.dir / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether the shard is there; only `read` checks its content."""
        return self.path(name).is_file()

    def missing(self) -> list[str]:
        """Names of the shards still to write, in order."""
        return [name for name in self.shard_names if not self.has(name)]

    def write(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
        """Write one shard, atomically.

        Raises:
            StoreError: The store is not open for writing, or the shard is there already.
            StoreWriteError: No space, read-only, not permitted; other shards are unharmed.
        """
        path = self.path(name)
        self._require_writer()
        if path.is_file():
            raise StoreError(f"{path} is already written. Write only the names in `missing()`.")
        data = encode(Shard(dict(tensors), dict(metadata or {})), self._identity(name))
        self._drop_manifest()
        write_atomic(path, data)
        self._files[name] = _facts(data)
        self._verified.add(name)

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensors of a shard, on the CPU, after checking every byte; see `load`."""
        return self.load(name).tensors

    def view(self, name: str) -> dict[str, Tensor]:
        """As `read`, for shards that are read again and again: after the first time, mapped from the file unchecked."""
        if name not in self._verified:
            return self.read(name)
        return safetensors.torch.load_file(self.path(name))

    def load(self, name: str) -> Shard:
        """Tensors and metadata of a shard, after checking every byte.

        Raises:
            DamagedShardError: Truncated or altered since it was written.
            StoreError: Not written yet, or not readable.
        """
        return self._load(name)[0]

    def _load(self, name: str) -> tuple[Shard, bytes]:
        path = self.path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            missing = f"{len(self.missing())} of {len(self.shard_names)} shards"
            raise StoreError(
                f"{path} is not written yet ({missing} are missing). Run the same command again."
            ) from None
        except OSError as error:
            raise StoreError(f"Cannot read {path}: {error.strerror or error}.") from error
        try:
            shard = decode(data, self._identity(name))
        except Damage as damage:
            raise DamagedShardError(
                f"{path} is damaged: {damage}. Recompute only this shard with `rebuild=True` "
                "(`--rebuild` on the command line); the others are kept."
            ) from damage
        self._verified.add(name)
        return shard, data

    def rebuild_damaged(self) -> list[str]:
        """Rename damaged shards to `<file>.damaged`, so that they count as missing; their names.

        Cost:
            Reads every shard once.
        """
        self._check_plan()
        self._lock.acquire()
        damaged = [name for name in self.shard_names if self.has(name) and not self._sound(name)]
        if damaged:
            self._drop_manifest()
        for name in damaged:
            path = self.path(name)
            with write_errors(path):
                os.replace(path, path.with_name(path.name + ".damaged"))
                sync_dir(self.dir)
        if self.complete:
            self.close()
        return damaged

    def finish(self) -> None:
        """Write the manifest, which makes the store complete, and let go of the lock.

        Raises:
            StoreError: Shards are missing; they are named.
            DamagedShardError: A shard written by an earlier process is damaged.
        Cost:
            Reads every shard that this process has not written.
        """
        if self.complete:
            return
        self._require_writer()
        missing = self.missing()
        if missing:
            some = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise StoreError(f"{self.dir} lacks {len(missing)} of {len(self.shard_names)} shards: {some}. Write them.")
        for name in self.shard_names:
            if name not in self._files:
                self._files[name] = _facts(self._load(name)[1])
        files = {self.path(name).name: self._files[name] for name in self.shard_names}
        content = {"format": _FORMAT, "version": _VERSION, "fingerprint": self.fingerprint, "files": files}
        write_json(self.dir / MANIFEST, content)
        self.close()

    @property
    def complete(self) -> bool:
        """Whether the manifest is written and every shard is there."""
        return (self.dir / MANIFEST).is_file() and not self.missing()

    # Plan

    def _check_plan(self) -> bool:
        """Whether the folder holds this store already; refuses the store of other settings."""
        plan = _read_plan(self.dir)
        if plan is None:
            return False
        lines = differences(plan["settings"], self.settings)
        if tuple(plan["shards"]) != self.shard_names:
            lines += _name_differences(plan["shards"], self.shard_names)
        if lines:
            more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            listing = "\n  ".join(lines[:_SHOWN] + more)
            raise StoreMismatchError(
                f"{self.dir} was written for other settings ({plan['description']}):\n  {listing}\n"
                "Use another folder for these settings, or go back to the stored ones."
            )
        return True

    def _write_plan(self) -> None:
        plan = {
            "format": _FORMAT,
            "version": _VERSION,
            "description": self.description,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "shards": list(self.shard_names),
        }
        write_json(self.dir / PLAN, plan)

    def _identity(self, name: str) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "shard": name}

    def _require_writer(self) -> None:
        if not self._lock.held:
            why = "complete" if self.complete else "not open for writing: call `open_or_create()` first"
            raise StoreError(f"{self.dir} is {why}; nothing was written.")

    def _drop_manifest(self) -> None:
        manifest = self.dir / MANIFEST
        if manifest.exists():  # a shard was lost or damaged after the store was complete
            with write_errors(manifest):
                manifest.unlink()
                sync_dir(self.dir)

    def _sound(self, name: str) -> bool:
        try:
            self.load(name)
        except DamagedShardError:
            return False
        return True


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(f"Shard name {name!r} is not fit for a file: use letters, digits, `.`, `_` and `-`.")
    if not names or len({name.casefold() for name in names}) != len(names):
        raise InputError(f"Shard names must be there and differ by more than case; got {list(names)[:10]}.")
    return tuple(names)


def _read_plan(dir: Path) -> dict[str, Any] | None:
    """The plan of a store; None where the folder is absent, or holds nothing but traces of a start."""
    if not (dir / PLAN).is_file():
        others = _foreign_files(dir)
        if others:
            raise StoreError(f"{dir} is not a store and holds {', '.join(others)}. Name a new or an empty folder.")
        return None
    plan = read_json(dir / PLAN)
    if not isinstance(plan, dict) or plan.get("format") != _FORMAT:
        raise StoreError(f"{dir / PLAN} was not written by whence. Name a new or an empty folder.")
    if plan.get("version") != _VERSION:
        raise StoreError(
            f"{dir} has store version {plan.get('version')}, this whence reads {_VERSION}. "
            "Use the whence that wrote it, or another folder."
        )
    if not _is_whole(plan):
        raise StoreError(f"{dir / PLAN} was altered: its settings do not give its fingerprint. Restore it.")
    return plan


def _is_whole(plan: dict[str, Any]) -> bool:
    if not (isinstance(plan.get("settings"), dict) and isinstance(plan.get("shards"), list) and "description" in plan):
        return False
    return fingerprint(plan["settings"]) == plan.get("fingerprint")


def _foreign_files(dir: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(dir))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"Cannot open {dir} as a folder: {error.strerror or error}. Name another.") from error
    return [name for name in names if name not in (LOCK, PLAN + PARTIAL_SUFFIX)][:5]


def _name_differences(stored: Sequence[str], asked: Sequence[str]) -> list[str]:
    lost = [name for name in stored if name not in set(asked)]
    new = [name for name in asked if name not in set(stored)]
    if not lost and not new:
        return ["shards: stored in another order"]
    return [f"shards: stored {len(stored)} (only there: {lost[:5]}), asked {len(asked)} (only here: {new[:5]})"]


def _facts(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
