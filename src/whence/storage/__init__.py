"""Tensors and settings on disk: atomic files, checked shards, a manifest last. Knows no model."""

from __future__ import annotations

from whence.storage.atomic import make_dir, read_json, write_atomic, write_json
from whence.storage.lock import FolderLock
from whence.storage.payload import Shard
from whence.storage.settings import differences, fingerprint, flatten, normalise
from whence.storage.shards import ShardStore

__all__ = [
    "FolderLock",
    "Shard",
    "ShardStore",
    "differences",
    "fingerprint",
    "flatten",
    "make_dir",
    "normalise",
    "read_json",
    "write_atomic",
    "write_json",
]
