"""The bytes of one shard: safetensors that carry their own checksum and say which store they belong to.

The checksum covers names, dtypes, shapes, metadata and numbers. It stands in the file's own metadata as one JSON
text under one key, so that the same tensors always give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from whence.errors import InputError

_KEY = "whence"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format itself


class Damage(Exception):
    """What is wrong with the bytes of a shard: "truncated (...)" or "altered (...)". For `ShardStore` to name."""


@dataclass(frozen=True)
class Shard:
    """Tensors on the CPU, and what was said about them when they were written."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def encode(shard: Shard, identity: Mapping[str, str]) -> bytes:
    """The file content of a shard.

    Args:
        shard: Dense tensors of any device and layout; they are copied to the CPU and made contiguous.
        identity: Store fingerprint and shard name, checked by `decode`.
    Raises:
        InputError: A tensor has no place in safetensors (sparse, complex128), or the metadata is not JSON.
    """
    tensors = {name: _dense(name, x) for name, x in shard.tensors.items()}
    try:
        head: dict[str, Any] = {"identity": dict(identity), "metadata": shard.metadata}
        json.dumps(head, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"Metadata of a shard must be plain JSON: {error}.") from error
    head["sha256"] = _digest(tensors, head)
    try:
        return bytes(safetensors.torch.save(tensors, {_KEY: _text(head)}))
    except (KeyError, ValueError, SafetensorError) as error:
        kinds = ", ".join(f"{name} {x.dtype}" for name, x in tensors.items())
        raise InputError(f"safetensors cannot hold these tensors ({kinds}): {error}.") from error


def _dense(name: str, x: Tensor) -> Tensor:
    if name == "__metadata__":
        raise InputError("`__metadata__` is reserved by safetensors. Give the tensor another name.")
    if x.layout != torch.strided:
        raise InputError(f"Tensor {name!r} is {x.layout}; only dense tensors are stored. Use `.to_dense()`.")
    # A lazy conjugate or negative is a flag beside the memory, and only the memory is stored: resolve it.
    x = x.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # A view shares its storage with other tensors, and safetensors refuses some of those.
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


def decode(data: bytes, identity: Mapping[str, str]) -> Shard:
    """The shard in a file content, checked.

    Raises:
        Damage: The bytes are not exactly what was written, or were written for another store or name.
    """
    head = _own_metadata(_header(data))
    if head.get("identity") != dict(identity):
        raise Damage(f"altered (it holds {head.get('identity')}, not {dict(identity)})")
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise Damage(f"altered ({error})") from error
    if _digest(tensors, head) != head.get("sha256"):
        raise Damage("altered (its checksum is another one)")
    return Shard(tensors, head["metadata"])


def _header(data: bytes) -> dict[str, Any]:
    """The JSON header of safetensors; refuses files shorter or longer than it announces."""
    size = int.from_bytes(data[:8], "little")
    if size > _MAX_HEADER_BYTES:
        raise Damage("altered (its header length is not credible)")
    if len(data) < 8 + size or len(data) < 8:
        raise Damage(f"truncated ({len(data)} bytes, too few for its header)")
    try:
        header: dict[str, Any] = json.loads(data[8 : 8 + size])
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + size + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise Damage("altered (its header is not readable)") from error
    if len(data) != expected:
        how = "truncated" if len(data) < expected else "altered"
        raise Damage(f"{how} ({len(data)} bytes instead of {expected})")
    return header


def _own_metadata(header: dict[str, Any]) -> dict[str, Any]:
    try:
        head: dict[str, Any] = json.loads(header["__metadata__"][_KEY])
        _ = head["metadata"], head["identity"], head["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise Damage("altered (its metadata is not readable)") from error
    return head


def _digest(tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(_text([head["identity"], head["metadata"]]).encode())
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(_text([name, str(x.dtype), list(x.shape)]).encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
