"""Projected output gradients of the train set at one model, and the inverse of their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.algebra import Damping, PrimalSpectrum, Projection
from whence.algebra.spectral import ROUNDING, ROUNDING_UNITS
from whence.data import Examples
from whence.errors import NumericalError
from whence.gradients import pull_back
from whence.methods.trak_output import ModelOutput
from whence.task import Task


@final
@dataclass(frozen=True)
class Map:
    """P^T of one projection, or nothing at all, of some of the parameters.

    Attributes:
        n_params: How many of them.
        projection: None leaves their gradients as they are.
        first: Where they begin in the flat vector.
        whole: Whether they are all parameters.
    """

    n_params: int
    projection: Projection | None
    first: int = 0
    whole: bool = True

    @property
    def dim(self) -> int:
        """Length of phi."""
        return self.n_params if self.projection is None else self.projection.dim

    @property
    def is_long(self) -> bool:
        """Whether phi is as long as a row of all parameters, so that it is not kept."""
        return self.whole and self.projection is None

    def __call__(self, rows: Tensor) -> Tensor:
        own = rows[:, self.first : self.first + self.n_params]
        return own.double() if self.projection is None else self.projection.project(own)


@final
@dataclass(frozen=True, eq=False)
class Features:
    """What the scores need of the train set at one model, for each projection.

    Attributes:
        task: Model and loss.
        train: Train examples.
        dtype: Precision of gradients.
        train_slopes: (n, c), d f / d outputs times l', summed over f: phi_i l'_i is the projection of its pull-back.
        grams: Phi^T Phi / n, (k, k) each, float64.
        mean_squares: Mean squared entry of the projected loss gradients of this model.
        kept: (slice, phi_i l'_i (b, k) for each projection); None without a projection, where they are computed anew.
    """

    task: Task
    train: Examples
    dtype: torch.dtype
    train_slopes: Tensor
    grams: list[Tensor]
    mean_squares: list[float]
    kept: list[tuple[slice, list[Tensor]]] | None

    @classmethod
    def of(
        cls,
        task: Task,
        train: Examples,
        output: ModelOutput,
        loss_slopes: Tensor,
        maps: Sequence[Map],
        dtype: torch.dtype,
    ) -> Features:
        """One pass over the train set; `loss_slopes` (n, r) are the l' to be kept, those of `output` or their mean."""
        n, device = len(train), task.device
        grams = [torch.zeros(one.dim, one.dim, dtype=torch.float64, device=device) for one in maps]
        squares = [0.0 for _ in maps]
        kept: list[tuple[slice, list[Tensor]]] = []
        for part, rows in pull_back(task, train, output.cotangents, dtype=dtype):
            found = []
            for k, one in enumerate(maps):
                phi = one(rows.flatten(0, 1))
                grams[k] += phi.T @ phi / n
                phi = phi.reshape(*rows.shape[:2], -1)
                squares[k] += float(_times(phi, output.loss_slopes[part]).square().sum()) / (n * one.dim)
                found.append(_times(phi, loss_slopes[part]))
            if not maps[0].is_long:
                kept.append((part, found))
        train_slopes = torch.einsum("nrc,nr->nc", output.cotangents, loss_slopes)
        return cls(task, train, dtype, train_slopes, grams, squares, kept or None)

    def gradients(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """(slice of examples, phi_i l'_i (b, k) for each projection)."""
        if self.kept is not None:
            yield from self.kept
            return
        for part, rows in pull_back(self.task, self.train, self.train_slopes, dtype=self.dtype):
            yield part, [rows[:, 0].double()]

    def shifts(self, ridge: Damping | None) -> list[float]:
        """The ridge as a number, for each projection."""
        if ridge is None:
            return [0.0] * len(self.grams)
        means = [float(gram.diagonal().mean()) for gram in self.grams]
        both = zip(means, self.mean_squares, strict=True)
        return [ridge.resolve(mean_eigenvalue=mean, mean_square_gradient=square) for mean, square in both]

    def solve(self, rows: Sequence[Tensor], shifts: Sequence[float]) -> list[Tensor]:
        """(Phi^T Phi / n + shift I)^-1 applied to rows (m, k), for each projection.

        Raises:
            NumericalError: A matrix is singular, and its shift too small to mend it.
        """
        each = zip(self.grams, rows, shifts, strict=True)
        return [_solve(gram, x, shift, len(self.train), self.dtype) for gram, x, shift in each]


def _times(phi: Tensor, loss_slopes: Tensor) -> Tensor:
    """phi (b, r, k) times slopes (b, r), summed over r: (b, k)."""
    return torch.einsum("brk,br->bk", phi, loss_slopes.to(phi.device))


def _solve(gram: Tensor, rows: Tensor, shift: float, n_train: int, dtype: torch.dtype) -> Tensor:
    spectrum = PrimalSpectrum.from_matrix(gram)
    # Errors of the gradients are squared in a Gram matrix, those of its own sums are not.
    units = max(ROUNDING, (ROUNDING_UNITS * torch.finfo(dtype).eps) ** 2)
    # `eigh` returns tiny negatives for a Gram matrix: clamp, or a small ridge would meet a pole.
    shifted = spectrum.eigenvalues.clamp_min(0.0) + shift
    rank, dim = int((shifted > units * float(spectrum.eigenvalues[-1])).sum()), spectrum.dim
    if rank < dim:
        raise NumericalError(
            f"TRAK's Gram matrix of dim = {dim} over n_train = {n_train} examples has rank {rank}: without a ridge "
            "that is larger than rounding its inverse is noise. Pass a smaller `dim` (below the rank), or "
            "`ridge=Damping.relative(0.1)`."
        )
    solved: Tensor = (rows.to(shifted.device) @ spectrum.vectors / shifted) @ spectrum.vectors.T
    return solved
