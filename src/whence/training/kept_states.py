"""States of a trajectory put aside while it runs: in memory or beyond it on disk, exact or in half the bytes."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Protocol, final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from whence.checks import look_up
from whence.errors import StoreError, StoreWriteError
from whence.training.updates import State

GROUP = 8  # in "bfloat16", of so many states in a row the first has exact parameters
HALF = torch.bfloat16


class Packing(Protocol):
    """What is kept of each state, and back. States come in order of their positions 0, 1, ..."""

    rounding: dict[str, float]

    def pack(self, position: int, state: State) -> State:
        """What is kept of a state."""

    def chain(self, position: int) -> range:
        """The positions whose packed states are needed to read one; it is the last."""

    def unpack(self, packed: list[State]) -> State:
        """The last state of a chain."""

    def nbytes(self, state: State, count: int) -> int:
        """Bytes that are kept of `count` states like this one."""


@final
class Full:
    """States as they are."""

    def __init__(self) -> None:
        self.rounding: dict[str, float] = {}

    def pack(self, position: int, state: State) -> State:
        """The state."""
        return state

    def chain(self, position: int) -> range:
        """Itself."""
        return range(position, position + 1)

    def unpack(self, packed: list[State]) -> State:
        """The state."""
        return packed[-1]

    def nbytes(self, state: State, count: int) -> int:
        """All bytes."""
        return count * sum(x.nbytes for x in state)


@final
class Bfloat16:
    """Parameters as differences to the state kept before, in bfloat16; buffers of the optimizer in bfloat16.

    The difference is to what unpacking gives for the state before, so that errors do not add up: an entry is off by
    2^-8 at most of its way since then, not of itself. Every `GROUP`-th state has exact parameters, so that reading one
    unpacks few. Buffers turn over within a few steps: a difference would be no smaller than they are.

    Measured largest error |x - unpacked| / |x| of the parameters (norms): in further training of a small classifier
    with momentum or Adam 3e-7 to 1e-5 where every state is kept, 4e-6 to 9e-5 where every 16th is; in training from
    the initialisation 3e-5 to 8e-4. Of parameters that are themselves rounded, 2e-3; of the buffers, 2e-3.
    """

    def __init__(self) -> None:
        self.rounding: dict[str, float] = {}
        self._last = torch.zeros(0)  # the parameters that unpacking gives for the last state

    def pack(self, position: int, state: State) -> State:
        """The difference, or every so often the parameters; and the buffers."""
        parameters, *buffers = state
        if position % GROUP:
            kept = (parameters - self._last).to(HALF)
            self._last = self._last + kept.to(parameters.dtype)
        else:
            kept = self._last = parameters
        halves = [x.to(HALF) for x in buffers]
        self._note("parameters", parameters, self._last)
        for own, half in zip(buffers, halves, strict=True):
            self._note("buffers", own, half.to(own.dtype))
        return (kept, *halves)

    def chain(self, position: int) -> range:
        """From the last exact parameters on."""
        return range(position // GROUP * GROUP, position + 1)

    def unpack(self, packed: list[State]) -> State:
        """The sum of the differences; in the order of packing, so that it is bitwise what packing took it for."""
        parameters = packed[0][0]
        for state in packed[1:]:
            parameters = parameters + state[0].to(parameters.dtype)
        return (parameters, *(x.to(parameters.dtype) for x in packed[-1][1:]))

    def nbytes(self, state: State, count: int) -> int:
        """Two bytes a number, but for the exact parameters."""
        n_exact = -(-count // GROUP)
        halves = (count - n_exact) * state[0].numel() + count * sum(x.numel() for x in state[1:])
        return n_exact * state[0].nbytes + halves * HALF.itemsize

    def _note(self, part: str, wanted: Tensor, found: Tensor) -> None:
        norm = float(wanted.norm())
        error = float((wanted - found).norm()) / norm if norm else 0.0
        self.rounding[part] = max(self.rounding.get(part, 0.0), error)


PACKINGS: dict[str, type[Full] | type[Bfloat16]] = {"full": Full, "bfloat16": Bfloat16}


def packing(keep: str) -> Packing:
    """A fresh packing by its name in `PACKINGS`."""
    return look_up(PACKINGS, keep, "way to keep states")()


@final
class KeptStates:
    """States by position: put in order, read in any.

    Args:
        start: What all states are like.
        count: How many there will be.
        memory: Bytes they may take in memory where `spill` takes the others; without it all are in memory.
        keep: A name in `PACKINGS`.
        spill: Folder. A sub-folder with a name of its own is made there, and removed by `close`, with the last
            reference to these states or at the end of Python; only after a kill it stays.
    Attributes:
        bytes_in_memory: Of the states put so far.
        bytes_on_disk: Of the states put so far.
    Raises:
        UnknownNameError: `keep` is no such name.
        StoreWriteError: The folder cannot be written to or has too little space; at a `put`, that it is full after all.
    """

    def __init__(
        self, start: State, count: int, *, memory: int, keep: str = "full", spill: str | Path | None = None
    ) -> None:
        self._packing = packing(keep)
        self._memory, self._device = memory, start[0].device
        self._held: dict[int, State] = {}
        self._folder: Path | None = None
        self.bytes_in_memory = self.bytes_on_disk = 0
        if spill is not None:
            self._folder = _own_folder(Path(spill))
            self._finalizer = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self._require_space(self._packing.nbytes(start, count) - memory)

    @property
    def rounding(self) -> dict[str, float]:
        """Largest |x - read| / |x| over the states put so far: of "parameters" and of "buffers"; empty where exact."""
        return dict(self._packing.rounding)

    def put(self, position: int, state: State) -> None:
        """Keep a state."""
        packed = self._packing.pack(position, state)
        size = sum(x.nbytes for x in packed)
        if self._folder is None or self.bytes_in_memory + size <= self._memory:
            self._held[position] = packed
            self.bytes_in_memory += size
        else:
            self._write(self._folder, position, packed)
            self.bytes_on_disk += size

    def get(self, position: int) -> State:
        """A state that was put."""
        return self._packing.unpack([self._packed(k) for k in self._packing.chain(position)])

    def close(self) -> None:
        """Let go of all states, and remove their files."""
        self._held.clear()
        if self._folder is not None:
            self._finalizer()

    def _packed(self, position: int) -> State:
        if position in self._held or self._folder is None:
            return self._held[position]
        path = _file(self._folder, position)
        try:
            found = safetensors.torch.load_file(path, device=str(self._device))
        except (OSError, SafetensorError) as error:
            raise StoreError(f"A state of the trajectory in {path} cannot be read: {error}. Run it again.") from error
        return tuple(found[str(k)] for k in range(len(found)))

    def _write(self, folder: Path, position: int, packed: State) -> None:
        content = safetensors.torch.save({str(k): x.contiguous() for k, x in enumerate(packed)})
        path = _file(folder, position)
        try:
            path.write_bytes(content)
        except OSError as error:
            raise StoreWriteError(f"Cannot keep a state of the trajectory in {path}: {_cause(error)}") from error

    def _require_space(self, needed: int) -> None:
        assert self._folder is not None
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            self.close()
            raise StoreWriteError(
                f"The states of the trajectory take {needed} bytes more than `memory`, and {self._folder.parent} has "
                f"{free} free. Choose another `spill` folder, more `memory` or keep='bfloat16', or leave `spill` out: "
                "states are then computed again."
            )


def _own_folder(spill: Path) -> Path:
    try:
        spill.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="trajectory-", dir=spill))
    except OSError as error:
        raise StoreWriteError(f"Cannot keep states of the trajectory in {spill}: {_cause(error)}") from error


def _file(folder: Path, position: int) -> Path:
    return folder / f"{position}.safetensors"


def _cause(error: OSError) -> str:
    return (
        f"{error.strerror or error}. Free some space, choose another `spill` folder, or leave it out: states that do "
        "not fit `memory` are then computed again."
    )
