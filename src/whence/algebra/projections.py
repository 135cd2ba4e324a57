"""Seeded random projections that keep inner products in expectation, never held as one matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from whence.algebra.precision import FLOAT64, as_float64, require_shape
from whence.checks import look_up, require_count
from whence.rng import numpy_generator

# Sizes of a tile. They are part of what a seed means: other sizes give other matrices.
TILE_PARAMS = 4096
TILE_DIM = 512

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def _rademacher(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    count = rows * columns
    # One random byte serves eight entries, which makes drawing a tile anew cheaper than the product with it.
    bits = np.unpackbits(np.frombuffer(generator.bytes(-(-count // 8)), dtype=np.uint8), count=count)
    return (bits.astype(np.float64) * 2.0 - 1.0).reshape(rows, columns)


def _normal(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return generator.standard_normal((rows, columns))


PROJECTIONS: dict[str, Draw] = {"rademacher": _rademacher, "normal": _normal}


@final
@dataclass(frozen=True)
class Projection:
    """P (n_params, dim) with independent entries of mean 0 and variance 1 / dim: E <P^T x, P^T y> = <x, y>.

    The entries are drawn in tiles, each from its own stream, whenever they are needed. So P depends on the fields
    below and on nothing else: not on how rows are split, nor on memory or device.

    The variance of a product is (|x|^2 |y|^2 + <x, y>^2) / dim for normal entries; for signs it is smaller by
    2 sum_p x_p^2 y_p^2 / dim.

    Attributes:
        n_params: Length of a row.
        dim: Length of a projected row.
        seed: Not negative.
        kind: "rademacher" (signs, fast) or "normal".
    Raises:
        InputError: A size or the seed is no such integer.
        UnknownNameError: No such kind.
    """

    n_params: int
    dim: int
    seed: int = 0
    kind: str = "rademacher"

    def __post_init__(self) -> None:
        require_count(self.n_params, "n_params")
        require_count(self.dim, "dim")
        require_count(self.seed, "seed", minimum=0)
        look_up(PROJECTIONS, self.kind, "projection")

    def project(self, rows: Tensor) -> Tensor:
        """P^T x of each row. `rows` (m, n_params) of any floating dtype -> (m, dim), float64.

        Cost:
            m n_params dim products, n_params dim random numbers; memory one tile and the result. Drawing is paid in
            every call: pass as many rows at once as memory allows.
        """
        require_shape(rows, (None, self.n_params), "rows", "rows as long as the projection's (m, n_params)")
        total = torch.zeros(len(rows), self.dim, dtype=FLOAT64, device=as_float64(rows[:0]).device)
        for params, columns, tile in self._tiles():
            total[:, columns] += as_float64(rows[:, params]) @ tile.to(total.device)
        return total / math.sqrt(self.dim)

    def lift(self, codes: Tensor) -> Tensor:
        """P c of each row, the adjoint of `project`. `codes` (m, dim) -> (m, n_params), float64."""
        require_shape(codes, (None, self.dim), "codes", "rows as long as projected ones (m, dim)")
        total = torch.zeros(len(codes), self.n_params, dtype=FLOAT64, device=as_float64(codes[:0]).device)
        for params, columns, tile in self._tiles():
            total[:, params] += as_float64(codes[:, columns]) @ tile.T.to(total.device)
        return total / math.sqrt(self.dim)

    def to_dense(self) -> Tensor:
        """P itself, (n_params, dim), float64: for tests and small problems."""
        return self.project(torch.eye(self.n_params, dtype=FLOAT64))

    def _tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(parameters, columns, unscaled entries); two numbers name the stream of a tile."""
        draw = PROJECTIONS[self.kind]
        for i, first in enumerate(range(0, self.n_params, TILE_PARAMS)):
            params = slice(first, min(first + TILE_PARAMS, self.n_params))
            for j, start in enumerate(range(0, self.dim, TILE_DIM)):
                columns = slice(start, min(start + TILE_DIM, self.dim))
                generator = numpy_generator(self.seed, "projection", self.kind, i, j)
                tile = draw(generator, params.stop - first, columns.stop - start)
                yield params, columns, torch.from_numpy(tile)
