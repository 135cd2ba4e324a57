"""The network linearised around the final parameters, as its train set sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from whence.batches import cast_batch
from whence.data import Examples
from whence.errors import UnsupportedError
from whence.gradients import chunk_size, n_outputs, outputs_of, pull_back, slopes
from whence.task import Task, model_state, working_dtype
from whence.task.losses import hessian_root, output_basis, require_few_outputs

CACHE = 4 * 2**30  # bytes of Jacobian rows kept in memory; above it they are computed anew in every pass
EXACT_CACHE = 2**30  # bytes up to which a float32 model is linearised in float64


@final
@dataclass(frozen=True, eq=False)
class LinearizedTrain:
    """Jacobian rows `H^T J_i`, loss slopes and loss-Hessian roots of every train example.

    The rows of example i span what its loss can feel: `V_i = H S_i S_i^T H^T` and `l'_i = H t_i`, with the fixed basis
    H of the loss (see `whence.task.losses`). Fisher matrices put other slopes in the place of the Hessian's roots, and
    may have a basis H_i for each example.

    With a `scale` d all rows are those of the parameters in other units, z = parameters / d: Jacobians are multiplied
    by d, parameters divided by it, and `mean_gradient`, `pull` and `push` are in the new units. See `scaled`.

    Attributes:
        task: Model and loss.
        train: Train examples.
        dtype: Precision of the rows.
        outputs: (n, ...), outputs of the final model.
        basis: H (c, r), or (n, c, r) with one for each example.
        roots: S (n, r, k), float64.
        contrast_slopes: t (n, r), float64: the slopes of the losses in the basis.
        scale: d (n_params,), float64, positive; None for 1.
    """

    task: Task
    train: Examples
    dtype: torch.dtype
    outputs: Tensor
    basis: Tensor
    roots: Tensor
    contrast_slopes: Tensor
    scale: Tensor | None = None

    @classmethod
    def of(cls, task: Task, train: Examples, *, dtype: torch.dtype | None = None) -> LinearizedTrain:
        """Linearise the task's model on the train set.

        Args:
            task: The final model, in eval mode.
            train: Train examples.
            dtype: Precision of Jacobian rows; default float64 where the rows fit 1 GiB, else the model's own.
        Raises:
            UnsupportedError: The loss has no known Hessian in the outputs.
        Cost:
            One forward pass.
        """
        if not task.loss.has_hessian:
            raise UnsupportedError(
                f"The loss {task.loss.name!r} has no known Hessian in the outputs, which Gauss-Newton methods need. "
                "Pass `output_hessian=` to Task, or use a first-order method such as grad_dot."
            )
        require_few_outputs(n_outputs(task, train))
        exact = outputs_of(task, train, dtype=torch.float64)
        flat = exact.reshape(len(train), -1)
        basis = output_basis(task.loss, flat.shape[1], torch.float64, flat.device)
        batch = cast_batch(train.all(), torch.float64, task.device)
        roots = hessian_root(task.loss.hessian(flat, batch), basis)
        contrasts = slopes(task.loss, exact, train) @ basis
        return cls(task, train, dtype or rows_dtype(task, len(train) * basis.shape[1]), exact, basis, roots, contrasts)

    @property
    def n_train(self) -> int:
        """n, the number of train examples."""
        return len(self.train)

    @property
    def n_contrasts(self) -> int:
        """r, Jacobian rows of each example."""
        return self.basis.shape[-1]

    @property
    def n_roots(self) -> int:
        """k, rows of the curvature's factor for each example; r for a Gauss-Newton matrix."""
        return self.roots.shape[-1]

    @property
    def n_rows(self) -> int:
        """n * k, rows of the curvature's factor."""
        return self.n_train * self.n_roots

    @property
    def n_params(self) -> int:
        """Length of the parameter vector."""
        return self.task.layout.n_params

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """(slice of examples, H^T J_i (b, r, n_params)), from memory where they fit there."""
        if not self.fits_memory:
            yield from self._computed()
            return
        # In pieces even from memory: what a caller makes of a block is then small too.
        size = chunk_size(self.n_contrasts, self.n_params, self.dtype)
        for start in range(0, self.n_train, size):
            part = slice(start, min(start + size, self.n_train))
            yield part, self._cached[part]

    @property
    def fits_memory(self) -> bool:
        """Whether all rows are kept in memory."""
        return self.n_train * self.n_contrasts * self.n_params * self.dtype.itemsize <= CACHE

    def factor_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """(slice of examples, rows of A (b * k, n_params)) with C = A^T A: A_i = S_i^T H^T J_i / sqrt(n)."""
        scaled = (self.roots / self.n_train**0.5).to(self.dtype)
        for part, rows in self.blocks():
            yield part, (scaled[part].transpose(1, 2) @ rows).flatten(0, 1)

    def pull(self, contrasts: Tensor) -> Tensor:
        """`sum_i J_i^T H t_i` for vectors t (n, r) or (m, n, r) in the basis: (n_params,) or (m, n_params)."""
        total = contrasts.new_zeros(*contrasts.shape[:-2], self.n_params)
        for part, rows in self.blocks():
            total += contrasts[..., part, :].flatten(-2).to(rows.dtype) @ rows.flatten(0, 1)
        return total

    def push(self, directions: Tensor) -> Tensor:
        """`H^T J_i d` for directions (m, n_params): (m, n, r) float64."""
        moved = [(directions.to(rows.dtype) @ rows.flatten(0, 1).T).double() for _, rows in self.blocks()]
        return torch.cat(moved, 1).reshape(len(directions), self.n_train, self.n_contrasts)

    @cached_property
    def mean_gradient(self) -> Tensor:
        """grad R (n_params,) float64: the mean over the train set of the loss gradients."""
        return self.pull(self.contrast_slopes).double() / self.n_train

    @cached_property
    def mean_square_gradient(self) -> float:
        """Mean squared entry of the per-example loss gradients: the published unit of damping."""
        total = 0.0
        for part, rows in self.blocks():
            gradients = (self.contrast_slopes[part].to(rows.dtype)[:, None] @ rows)[:, 0]
            total += float(gradients.square().sum(dtype=torch.float64))
        return total / (self.n_train * self.n_params)

    def parameters(self) -> Tensor:
        """The final parameters as one vector, in the units of the rows, float64."""
        trainable, _ = model_state(self.task.model, torch.float64)
        flat = self.task.layout.flatten(trainable)
        return flat if self.scale is None else flat / self.scale

    def scaled(self, vectors: Tensor) -> Tensor:
        """Gradients (..., n_params) into the units of the rows, or displacements out of them: both times `scale`."""
        return vectors if self.scale is None else vectors * self.scale.to(vectors.dtype)

    def slopes_at(self, shift: Tensor) -> Tensor:
        """Loss slopes in the shared basis after the outputs move by `H shift`; shift (n, r) -> (n, r)."""
        moved = self.outputs + (shift @ self.basis.T).reshape(self.outputs.shape)
        return slopes(self.task.loss, moved, self.train) @ self.basis

    @cached_property
    def _cached(self) -> Tensor:
        rows = torch.empty(self.n_train, self.n_contrasts, self.n_params, dtype=self.dtype, device=self.task.device)
        for part, block in self._computed():
            rows[part] = block
        return rows

    def _computed(self) -> Iterator[tuple[slice, Tensor]]:
        cotangents = self.basis.transpose(-1, -2).expand(self.n_train, -1, -1)
        for part, rows in pull_back(self.task, self.train, cotangents, dtype=self.dtype):
            yield part, self.scaled(rows)


def rows_dtype(task: Task, n_rows: int) -> torch.dtype:
    """Precision of `n_rows` Jacobian rows: float64 where they fit 1 GiB, else the model's own."""
    size = n_rows * task.layout.n_params * torch.float64.itemsize
    return torch.float64 if size <= EXACT_CACHE else working_dtype(task.model)
