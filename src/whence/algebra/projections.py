"""Seeded random projections that keep inner products in expectation: P depends on sizes, seed and kind only."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from whence.algebra.precision import FLOAT64, as_float64, require_shape
from whence.checks import look_up, require_count
from whence.rng import numpy_generator

# Sizes of a tile. They are part of what a seed means: other sizes give other matrices.
TILE_PARAMS = 4096
TILE_DIM = 512
SPARSE_TILE_PARAMS = 16_384
MAX_BUCKETS = 4  # entries of a row of the sparse P
SPARSE_ROWS = 16  # rows at a time: with a sparse tile of float32 they are 1 MiB, which stays in a core's cache
KEPT_PARAMS = 2**24  # a sparse P takes up to 32 bytes a parameter; beyond this many it is drawn anew in each call


@final
@dataclass(frozen=True)
class Projection:
    """P (n_params, dim) with E <P^T x, P^T y> = <x, y>.

    P depends on the fields below and on nothing else: not on how rows are split, nor on memory or device. Kinds:

    - "sparse": a row of P has s entries +-1/sqrt(s), one at a random place in each of s ranges of dim / s columns; s is
      the largest of 4, 3, 2, 1 that divides dim. Places and signs are independent, so parameters that follow each other
      or a pattern meet in one column no more often than others.
    - "rademacher": every entry +-1/sqrt(dim).
    - "normal": every entry normal with variance 1 / dim.

    The variance of <P^T x, P^T y> is (|x|^2 |y|^2 + <x, y>^2) / dim for normal entries, and smaller by
    2 sum_p x_p^2 y_p^2 / dim for both kinds of signs. The sparse kind reaches it by rarer and larger errors: two
    parameters meet in 1 / dim of their pairs of entries, and all is lost between them only if they meet in all s. That
    matters for rows in which a few entries outweigh all others.

    Rows in float64 are summed in float64. Others are summed in float32 within a tile and in float64 between tiles: an
    entry is off by at most 16,384 s / dim roundings (sparse, 128 at dim = 512; as many as a column has entries in a
    tile) or 4096 (dense) of the sum of its terms' sizes, and in practice by the square root of that.

    Attributes:
        n_params: Length of a row.
        dim: Length of a projected row.
        seed: Not negative.
        kind: A name in `PROJECTIONS`.
    Raises:
        InputError: A size or the seed is no such integer.
        UnknownNameError: No such kind.
    Reference:
        Kane and Nelson (2014), arXiv:1012.1577, block construction (sparse); Achlioptas (2003) (signs).
    """

    n_params: int
    dim: int
    seed: int = 0
    kind: str = "sparse"

    def __post_init__(self) -> None:
        require_count(self.n_params, "n_params")
        require_count(self.dim, "dim")
        require_count(self.seed, "seed", minimum=0)
        look_up(PROJECTIONS, self.kind, "projection")

    def project(self, rows: Tensor) -> Tensor:
        """P^T x of each row. `rows` (m, n_params) of any floating dtype -> (m, dim), float64.

        Cost:
            Sparse: m n_params s additions, and drawing in the first call. Dense: m n_params dim products, and n_params
            dim random numbers in every call: pass as many rows at once as memory allows.
        """
        require_shape(rows, (None, self.n_params), "rows", "rows as long as the projection's (m, n_params)")
        return self._matrix.project(_movable(rows))

    def lift(self, codes: Tensor) -> Tensor:
        """P c of each row, the adjoint of `project`. `codes` (m, dim) -> (m, n_params), float64."""
        require_shape(codes, (None, self.dim), "codes", "rows as long as projected ones (m, dim)")
        return self._matrix.lift(as_float64(codes))

    def to_dense(self) -> Tensor:
        """P itself, (n_params, dim), float64: for tests and small problems."""
        return self.project(torch.eye(self.n_params, dtype=FLOAT64))

    @cached_property
    def _matrix(self) -> _Matrix:
        return PROJECTIONS[self.kind](self.n_params, self.dim, self.seed)


def _movable(rows: Tensor) -> Tensor:
    """Rows in float32, or in float64 if they are, on a device that has float64."""
    rows = rows.detach()
    rows = rows.cpu() if rows.device.type == "mps" else rows
    return rows if rows.dtype == FLOAT64 else rows.float()


@dataclass(frozen=True, eq=False)
class _Matrix(ABC):
    """A random matrix (n_params, dim) of one kind."""

    n_params: int
    dim: int
    seed: int

    @abstractmethod
    def project(self, rows: Tensor) -> Tensor:
        """(m, n_params), float32 or float64 -> (m, dim), float64."""

    @abstractmethod
    def lift(self, codes: Tensor) -> Tensor:
        """(m, dim) -> (m, n_params), both float64."""


# --- dense ------------------------------------------------------------------------------------------------------------

SIGNS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1


def _random_signs(generator: np.random.Generator, count: int) -> np.ndarray:
    """(count,), float32: one random byte serves eight of them."""
    drawn = np.frombuffer(generator.bytes(-(-count // 8)), dtype=np.uint8)
    return SIGNS_OF_BYTE[drawn].reshape(-1)[:count]


class _Dense(_Matrix):
    """Independent entries, drawn in tiles, each from its own stream, whenever they are needed."""

    kind: str

    @abstractmethod
    def draw(self, generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
        """Entries of variance 1, (rows, columns)."""

    def project(self, rows: Tensor) -> Tensor:
        total = torch.zeros(len(rows), self.dim, dtype=FLOAT64, device=rows.device)
        for params, columns, tile in self._tiles():
            total[:, columns] += rows[:, params] @ tile.to(rows)
        return total / math.sqrt(self.dim)

    def lift(self, codes: Tensor) -> Tensor:
        total = torch.zeros(len(codes), self.n_params, dtype=FLOAT64, device=codes.device)
        for params, columns, tile in self._tiles():
            total[:, params] += codes[:, columns] @ tile.T.to(codes)
        return total / math.sqrt(self.dim)

    def _tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(parameters, columns, unscaled entries); two numbers name the stream of a tile."""
        for i, params in enumerate(_slices(self.n_params, TILE_PARAMS)):
            for j, columns in enumerate(_slices(self.dim, TILE_DIM)):
                generator = numpy_generator(self.seed, "projection", self.kind, i, j)
                tile = self.draw(generator, params.stop - params.start, columns.stop - columns.start)
                yield params, columns, torch.from_numpy(tile)


@final
class _Rademacher(_Dense):
    kind = "rademacher"

    def draw(self, generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
        return _random_signs(generator, rows * columns).reshape(rows, columns)


@final
class _Normal(_Dense):
    kind = "normal"

    def draw(self, generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
        return generator.standard_normal((rows, columns))


# --- sparse -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _SparseTile:
    """Some rows of a sparse P, its entries sorted by column.

    Attributes:
        params: Which rows.
        indices: (entries,), row of each entry, counted from the tile's first.
        starts: (dim,), first entry of each column.
        signs: (entries,).
    """

    params: slice
    indices: Tensor
    starts: Tensor
    signs: Tensor

    def columns(self) -> Tensor:
        """(entries,), column of each entry."""
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.indices)])])
        return torch.arange(len(self.starts)).repeat_interleave(ends - self.starts)


@final
class _Sparse(_Matrix):
    """A few signs in each row, as sums over lists of rows: no product, and nothing that depends on dim."""

    @property
    def n_buckets(self) -> int:
        """s, entries of a row."""
        return next(s for s in range(MAX_BUCKETS, 0, -1) if self.dim % s == 0)

    def project(self, rows: Tensor) -> Tensor:
        total = torch.zeros(len(rows), self.dim, dtype=FLOAT64, device=rows.device)
        for tile in self._tiles():
            indices, starts, signs = tile.indices.to(rows.device), tile.starts.to(rows.device), tile.signs.to(rows)
            for part in _slices(len(rows), SPARSE_ROWS):
                # Parameters first: the entries of all rows for one parameter are then next to each other.
                turned = rows[part, tile.params].T.contiguous()
                total[part] += F.embedding_bag(indices, turned, starts, mode="sum", per_sample_weights=signs).T
        return total / math.sqrt(self.n_buckets)

    def lift(self, codes: Tensor) -> Tensor:
        total = torch.zeros(len(codes), self.n_params, dtype=FLOAT64, device=codes.device)
        for tile in self._tiles():
            entries = codes[:, tile.columns().to(codes.device)] * tile.signs.to(codes)
            total[:, tile.params].index_add_(1, tile.indices.to(codes.device), entries)
        return total / math.sqrt(self.n_buckets)

    def _tiles(self) -> Iterable[_SparseTile]:
        return self._kept if self.n_params <= KEPT_PARAMS else self._drawn()

    @cached_property
    def _kept(self) -> list[_SparseTile]:
        return list(self._drawn())

    def _drawn(self) -> Iterator[_SparseTile]:
        s = self.n_buckets
        width = self.dim // s
        narrow = np.uint16 if width <= 2**16 else np.int64  # numpy sorts 16 bits by radix
        for i, params in enumerate(_slices(self.n_params, SPARSE_TILE_PARAMS)):
            generator = numpy_generator(self.seed, "projection", "sparse", i)
            count = params.stop - params.start
            places = generator.integers(width, size=(s, count), dtype=narrow)
            order = np.argsort(places, axis=1, kind="stable").astype(np.int32)
            sizes = np.concatenate([np.bincount(each, minlength=width) for each in places])
            yield _SparseTile(
                params,
                torch.from_numpy(order.reshape(-1)),
                torch.from_numpy((np.cumsum(sizes) - sizes).astype(np.int32)),
                torch.from_numpy(_random_signs(generator, s * count)),
            )


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


PROJECTIONS: dict[str, Callable[[int, int, int], _Matrix]] = {
    "sparse": _Sparse,
    "rademacher": _Rademacher,
    "normal": _Normal,
}
