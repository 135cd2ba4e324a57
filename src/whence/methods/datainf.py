"""DataInf: influence functions with a closed form for each parameter tensor, the mean of inverses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whence.algebra import Damping, pairwise
from whence.gradients import loss_gradients
from whence.methods.filters import damping_filter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock
from whence.task import working_dtype

# The published lam_l = mean squared gradient entry of the tensor / c, with c = 10.
PUBLISHED_DAMPING = Damping.mean_square_gradient(0.1)
KEPT = 2**30  # bytes of per-example gradients kept in memory; above it each of the three passes computes them anew

Gradients = Callable[[], Iterable[tuple[slice, Tensor]]]


def datainf(inputs: Inputs, *, damping: Damping | None = None) -> Result:
    """(o_q / n) sum_l a_ql^T [(1/n) sum_i (b_il b_il^T + lam_l I)^-1] b_kl, a sum over parameter tensors l.

    The inverse of the mean of b b^T + lam_l I, a damped empirical Fisher matrix of the tensor, is replaced by the mean
    of the inverses, which Sherman and Morrison write down: with v the query's gradient,

        h_l = (1 / lam_l) [ v_l - (1/n) sum_i <v_l, b_il> / (lam_l + |b_il|^2) b_il ],  score_k = (o_q / n) <h, b_k>.

    Exact for one train example; otherwise too large, since the mean of inverses is never below the inverse of the mean,
    and the more so the smaller the damping: it only ranks. Where lam_l is far below |b_il|^2, as at the default, every
    i takes out a share of 1/n of its own direction only: scores are then near to Grad-Dot with each tensor weighted by
    1 / lam_l.

    Args:
        inputs: Task, train set, queries.
        damping: lam_l, for each tensor on its own. `Damping.mean_square_gradient(1 / c)` is the published one, and the
            default with c = 10; `Damping.relative` is the same, since that statistic is the mean eigenvalue of the
            tensor's empirical Fisher matrix. A tensor whose train gradients are all zero takes no part.
    Raises:
        InputError: `damping` is no `Damping`.
    Cost:
        O(n_query n n_params). Gradients are computed once and kept where they fit 1 GiB, otherwise computed in three
        passes: lam_l and norms; h; scores. Memory n_query n_params float64, and n numbers for each tensor.
    Reference:
        Kwon, Wu, Wu and Zou (2023), arXiv:2310.00902.
    """
    asked = PUBLISHED_DAMPING if damping is None else damping
    damping_filter(asked)  # refuses a number without a unit
    dtype = working_dtype(inputs.task.model)
    layout = inputs.task.layout
    queries = inputs.query_gradients_in(dtype)
    gradients = _gradients(inputs, dtype)
    tensors = _Tensors.of(list(layout.sizes), gradients(), asked)
    directions = inputs.orientation / inputs.n_train * tensors.solve(queries, gradients())

    def blocks() -> Iterator[ScoreBlock]:
        for part, rows in gradients():
            yield ScoreBlock(part, tensors.products(directions, rows))

    resolved = dict(zip(layout.names, tensors.dampings, strict=True))
    return Result(blocks, {"filter": "datainf", "damping": asked.to_dict(), "resolved_damping": resolved})


def _gradients(inputs: Inputs, dtype: torch.dtype) -> Gradients:
    """Passes over blocks of per-example loss gradients, from memory where they fit there."""

    def computed() -> Iterable[tuple[slice, Tensor]]:
        return loss_gradients(inputs.task, inputs.train, dtype=dtype)

    if inputs.n_train * inputs.task.layout.n_params * dtype.itemsize > KEPT:
        return computed
    kept = list(computed())
    return lambda: kept


@dataclass(frozen=True, eq=False)
class _Tensors:
    """Parameter tensors as pieces of the long vector, with what the closed form needs of their train gradients.

    Attributes:
        sizes: Entries of each tensor.
        square_norms: (n, n_tensors), |b_il|^2, float64.
        dampings: lam_l of each tensor; None where all its gradients are zero.
    """

    sizes: list[int]
    square_norms: Tensor
    dampings: tuple[float | None, ...]

    @classmethod
    def of(cls, sizes: list[int], gradients: Iterable[tuple[slice, Tensor]], damping: Damping) -> _Tensors:
        """One pass over the train gradients."""
        norms = torch.cat([_norms(rows, sizes) for _, rows in gradients])
        squares = norms.square()
        means = [float(total) / max(1, len(squares) * size) for total, size in zip(squares.sum(0), sizes, strict=True)]
        return cls(sizes, squares, tuple(_damping_of(damping, mean) for mean in means))

    def solve(self, queries: Tensor, gradients: Iterable[tuple[slice, Tensor]]) -> Tensor:
        """h for each query (m, n_params), float64, in one pass over the train gradients."""
        total = torch.zeros(queries.shape, dtype=torch.float64, device=queries.device)
        of_queries = _power_of_two(_norms(queries, self.sizes).square().mean(0).sqrt())
        used = self._used(queries)
        pieces = zip(used, torch.split(queries, self.sizes, 1), of_queries, strict=True)
        own = [piece[rows] * unit for rows, piece, unit in pieces]
        sums = [torch.zeros_like(v, dtype=torch.float64) for v in own]
        for part, rows in gradients:
            columns = torch.split(rows, self.sizes, 1)
            for v, b, unit, scale, sum_l in zip(own, columns, self._units, self._scales[part].T, sums, strict=True):
                b = b * unit
                sum_l += ((v @ b.T) * scale.to(b.dtype)) @ b
        for some, unit, sum_l, out in zip(used, of_queries, sums, torch.split(total, self.sizes, 1), strict=True):
            out[some] = sum_l / unit
        return (queries - total / len(self.square_norms)) * self._inverse_dampings

    def products(self, directions: Tensor, rows: Tensor) -> Tensor:
        """Inner products (m, b) float64 of directions (m, n_params) and rows (b, n_params)."""
        total = torch.zeros(len(directions), len(rows), dtype=torch.float64, device=directions.device)
        pieces = zip(*(torch.split(x, self.sizes, 1) for x in (directions, rows)), strict=True)
        for some, (v, b) in zip(self._used(directions), pieces, strict=True):
            total[some] += pairwise(v[some], b)
        return total

    def _used(self, rows: Tensor) -> list[Tensor]:
        """For each tensor the positions of the rows (m, n_params) that are not zero in it: few, where rows are split
        into parameter groups."""
        return [piece.any(1).nonzero().flatten() for piece in torch.split(rows, self.sizes, 1)]

    @cached_property
    def _units(self) -> list[float]:
        """What each tensor's gradients are multiplied with: of size 1 their products stay far from float32's limits."""
        return _power_of_two(self.square_norms.mean(0).sqrt())

    @cached_property
    def _scales(self) -> Tensor:
        """1 / (lam_l + |b_il|^2) for gradients in these units, (n, n_tensors); 0 for a tensor that takes no part."""
        alive = torch.tensor([lam is not None for lam in self.dampings], device=self.square_norms.device)
        shifts = self.square_norms.new_tensor([0.0 if lam is None else lam for lam in self.dampings])
        units = self.square_norms.new_tensor(self._units)
        return torch.where(alive, 1 / (self.square_norms + shifts) / units.square(), 0.0)

    @cached_property
    def _inverse_dampings(self) -> Tensor:
        """1 / lam_l for each parameter, (n_params,); 0 in a tensor that takes no part."""
        inverse = self.square_norms.new_tensor([0.0 if lam is None else 1 / lam for lam in self.dampings])
        return inverse.repeat_interleave(torch.tensor(self.sizes, device=inverse.device))


def _norms(rows: Tensor, sizes: list[int]) -> Tensor:
    """Norm of each tensor's piece of each row (b, n_params): (b, n_tensors), float64."""
    pieces = torch.split(rows, sizes, 1)
    return torch.stack([torch.linalg.vector_norm(piece, dim=1, dtype=torch.float64) for piece in pieces], 1)


def _power_of_two(sizes: Tensor) -> list[float]:
    """The power of two that brings each size near 1, so that multiplying is exact; 1 for a size of 0."""
    return [2.0 ** -min(max(round(math.log2(size)), -100), 100) if size > 0 else 1.0 for size in sizes.tolist()]


def _damping_of(damping: Damping, mean_square: float) -> float | None:
    """lam_l. The mean eigenvalue of b b^T, averaged, is the mean squared entry too."""
    if mean_square == 0:
        return None
    return damping.resolve(mean_eigenvalue=mean_square, mean_square_gradient=mean_square)


DATAINF = Preset(
    "datainf",
    "influence function, mean of inverses for each parameter tensor (DataInf)",
    datainf,
    curvature="empirical Fisher by tensor, DataInf's inverse",
    filter="damped_inverse",
)
