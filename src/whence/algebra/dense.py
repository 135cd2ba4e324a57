"""Slow exact references for everything else in this room: dense matrices and optimizers that really run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from whence.algebra.precision import as_float64, require_shape, require_square
from whence.algebra.steps import Steps


def apply_filter_dense(matrix: Tensor, f: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """f(C) applied to each row, by a full eigen-decomposition. `rows` (m, dim) -> (m, dim), float64."""
    require_square(matrix, "matrix")
    eigenvalues, vectors = torch.linalg.eigh(as_float64(matrix))
    filtered: Tensor = (as_float64(rows) @ vectors * f(eigenvalues)) @ vectors.T
    return filtered


def run_gradient_descent(matrix: Tensor, forcing: Callable[[int], Tensor], steps: Steps) -> Tensor:
    """Run the optimizer on quadratics that share the curvature `matrix`, one a row.

    The gradient of step t is `(C + weight_decay) delta - forcing(t)`; delta and the momentum buffer start at 0.

    Args:
        matrix: (dim, dim), C.
        forcing: From the step t to a block (m, dim).
        steps: The optimizer.
    Returns:
        (T + 1, m, dim), float64: delta_0 = 0, ..., delta_T.
    Cost:
        O(T m dim^2), memory T m dim.
    """
    require_square(matrix, "matrix")
    curvature = as_float64(matrix)
    delta = torch.zeros_like(as_float64(forcing(0)))
    buffer = torch.zeros_like(delta)
    path = [delta]
    for t, lr in enumerate(steps.lr):
        gradient = delta @ curvature + steps.weight_decay * delta - as_float64(forcing(t))
        buffer = steps.momentum * buffer + gradient
        delta = delta - lr * (gradient + steps.momentum * buffer if steps.nesterov else buffer)
        path.append(delta)
    return torch.stack(path)


def exact_look_ahead_dense(blocks: Sequence[Tensor], start: Tensor, gradient: Tensor, steps: Steps) -> Tensor:
    """Displacement of the parameters, at the end of further training, when each example is left out in turn.

    For losses quadratic in the parameters: example i adds A_i^T A_i to C, and its gradient at the drifted parameters
    is `start[i] + A_i^T A_i Delta_t`. Delta_t, the drift of the ordinary run, and the response to that forcing are
    both found by running the optimizer.

    Args:
        blocks: A_i, each (n_rows_i, dim), 1 / sqrt(n_train) included, so that C = sum_i A_i^T A_i.
        start: (n_train, dim), each example's gradient at the start over n_train.
        gradient: (dim,), gradient of the mean train loss at the start, decay term included.
        steps: The further training.
    Returns:
        (n_train, dim), float64.
    Cost:
        O(T n_train dim^2).
    """
    dim = gradient.shape[0]
    require_shape(start, (len(blocks), dim), "start", "gradients over n_train (n_train, dim)")
    squares = torch.stack([as_float64(block).T @ as_float64(block) for block in blocks])
    curvature = squares.sum(0)
    drift = run_gradient_descent(curvature, lambda t: -gradient[None], steps)[:, 0]
    forced = run_gradient_descent(curvature, lambda t: as_float64(start) + squares @ drift[t], steps)
    return forced[-1]
