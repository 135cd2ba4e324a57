"""The second-order kernel of the look-ahead: how training on b while moving along b shows up along a.

A run that leaves one example out also moves while it trains, so that example's gradient is taken at parameters that
have drifted by -f_t(C) g. In the eigenbasis of C the effect of that drift on the end of the run is

    F_ab = lr * sum_{t<T} (1 - lr s_a)^(T-1-t) f_t(s_b) = (f_T(s_a) - f_T(s_b)) / (s_b - s_a),

the second divided difference of (1 - lr s)^T at 0, s_a and s_b. The last form, minus the divided difference of the
filter, holds for every linear optimizer (momentum, schedules) and shows that F is symmetric.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whence.algebra.differences import power_difference
from whence.algebra.precision import FLOAT64, as_float64
from whence.algebra.recurrence import forced_response, impulse_responses, unit_path
from whence.algebra.steps import Steps

# Entries of one block of the kernel, so that its dozen temporaries stay near the processor's cache.
_BLOCK_ENTRIES = 1 << 18
# Entries of a stored path of displacements or impulses: 64 MiB of float64.
_PATH_ENTRIES = 1 << 23
# The closed form costs about 600 ns an entry; a matrix product over the steps, 0.1 ns an entry and a step plus 50 us a
# step (two CPU threads). So up to this many steps, and from this many entries a step, the product is the faster one.
_PRODUCT_STEPS = 4000
_PRODUCT_ENTRIES_PER_STEP = 200


def look_ahead_kernel(s_a: Tensor, s_b: Tensor, steps: Steps) -> Tensor:
    """F_ab for all pairs of eigenvalues. `s_a` (n,), `s_b` (k,) -> (n, k), float64.

    Weight decay shifts every eigenvalue, so plain gradient descent with decay is the same closed form at
    `s + weight_decay`. Exact to rounding, for eigenvalues at 0, equal, negative, or with `lr * s` above 1.

    Cost:
        The cheaper of O(n k), a few transcendental functions an entry (plain gradient descent only), and O(n k T) as
        one matrix product of impulse responses and displacements.
    """
    s_a, s_b = as_float64(s_a), as_float64(s_b)
    many = len(s_a) * len(s_b) > _PRODUCT_ENTRIES_PER_STEP * steps.n_steps
    if not steps.constant or (steps.n_steps <= _PRODUCT_STEPS and many):
        return _kernel_by_product(s_a, s_b, steps)
    return _kernel_in_closed_form(s_a, s_b, steps)


def look_ahead_kernel_recurrence(s_a: Tensor, s_b: Tensor, steps: Steps) -> Tensor:
    """The slow exact twin of `look_ahead_kernel`: run the optimizer at s_a under the force f_t(s_b), pair by pair.

    Cost:
        O(n k T) elementwise, memory O(n k).
    """
    return forced_response(as_float64(s_a)[:, None], as_float64(s_b)[None, :], steps)


def _kernel_in_closed_form(s_a: Tensor, s_b: Tensor, steps: Steps) -> Tensor:
    """The second divided difference, in blocks of rows. For a constant learning rate without momentum."""
    lr = steps.lr[0]
    x, y = lr * (s_a + steps.weight_decay), lr * (s_b + steps.weight_decay)
    kernel = torch.empty(len(x), len(y), dtype=FLOAT64, device=x.device)
    n_rows = max(1, _BLOCK_ENTRIES // max(1, len(y)))
    for start in range(0, len(x), n_rows):
        block = x[start : start + n_rows, None]
        kernel[start : start + n_rows] = lr**2 * power_difference(block, y[None, :], steps.n_steps)
    return kernel


def _kernel_by_product(s_a: Tensor, s_b: Tensor, steps: Steps) -> Tensor:
    """F = sum_t impulse_t(s_a) f_t(s_b), in blocks of eigenvalues b and of steps."""
    kernel = torch.zeros(len(s_a), len(s_b), dtype=FLOAT64, device=s_a.device)
    n_columns = max(1, _PATH_ENTRIES // steps.n_steps)
    n_times = max(1, _PATH_ENTRIES // max(1, len(s_a)))
    for start in range(0, len(s_b), n_columns):
        columns = slice(start, start + n_columns)
        path = torch.stack(list(unit_path(s_b[columns], steps)))  # (T, columns), step by step
        _accumulate(kernel[:, columns], s_a, path.flip(0), steps, n_times)
    return kernel


def _accumulate(kernel: Tensor, s_a: Tensor, reversed_path: Tensor, steps: Steps, n_times: int) -> None:
    """Add the sum over steps to `kernel` in place, `n_times` steps a matrix product."""
    pending: list[Tensor] = []
    done = 0
    for impulse in impulse_responses(s_a, steps):
        pending.append(impulse)
        if len(pending) == n_times or done + len(pending) == steps.n_steps:
            block = torch.stack(pending, dim=1)
            kernel += block @ reversed_path[done : done + len(pending)]
            done += len(pending)
            pending = []
