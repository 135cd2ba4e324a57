"""Stable divided differences of (1 - x)^T and exp(-x): where the filters and the look-ahead kernel get their digits.

Written for plain gradient descent, with x = lr * s for an eigenvalue s:

    first difference    phi(x)  = (1 - (1-x)^T) / x = sum_{t<T} (1-x)^t                  = -p[0, x]
    second difference   K(x, y) = (phi(x) - phi(y)) / (y - x)                            =  p[0, x, y]

and the same for gradient flow, p(x) = exp(-x). All functions work elementwise on float64 tensors that broadcast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Below this size of x * T, phi is its two-term series: the next term is (xT)^2 / 6, less than float64 rounding.
_LINEAR = 1e-8
# Below this size of T * max(|x|, |y|), K is its Taylor series. Above it the closed form loses at most one digit.
_TAYLOR = 0.25
# Term k of that series is at most (k - 1) * _TAYLOR^(k - 2) / k! of T^2: 1e-17 at k = 14.
_TAYLOR_TERMS = 14


def power_sum(x: Tensor, n_steps: int) -> Tensor:
    """phi(x) = sum_{t < n_steps} (1 - x)^t, accurate for x near 0, near 1 and above 1, and for negative x."""
    near_zero = x.abs() * n_steps < _LINEAR
    safe = torch.where(near_zero, 1.0, x)
    below = -torch.expm1(n_steps * torch.log1p(-safe))
    above = 1 - (-1) ** n_steps * torch.exp(n_steps * torch.log(safe - 1))  # the base 1 - x is negative
    closed = torch.where(safe <= 1, below, above) / safe
    return torch.where(near_zero, n_steps * (1 - (n_steps - 1) / 2 * x), closed)


def power_difference(x: Tensor, y: Tensor, n_steps: int) -> Tensor:
    """K(x, y) = sum_{i + j <= n_steps - 2} (1-x)^i (1-y)^j, symmetric, to float64 rounding of its larger term."""
    if n_steps == 1:
        return torch.zeros_like(x + y)
    far, phi_near = _far_and_near(x, y, power_sum(x, n_steps), power_sum(y, n_steps))
    closed = (phi_near - _power_slope(x, y, n_steps)) / far
    small = far.abs() * n_steps < _TAYLOR
    coefficients = [float(math.comb(n_steps, k) * (-1) ** k) for k in range(2, min(n_steps, _TAYLOR_TERMS) + 1)]
    return _with_taylor(closed, small, x, y, coefficients)


def decay_sum(x: Tensor) -> Tensor:
    """The gradient-flow phi(x) = (1 - exp(-x)) / x, 1 at x = 0."""
    near_zero = x.abs() < _LINEAR
    safe = torch.where(near_zero, 1.0, x)
    return torch.where(near_zero, 1 - x / 2, -torch.expm1(-safe) / safe)


def decay_difference(x: Tensor, y: Tensor) -> Tensor:
    """The gradient-flow K(x, y) = (phi(x) - phi(y)) / (y - x), 1/2 at x = y = 0."""
    far, phi_near = _far_and_near(x, y, decay_sum(x), decay_sum(y))
    slope = torch.exp(-torch.minimum(x, y)) * decay_sum((x - y).abs())
    closed = (phi_near - slope) / far
    coefficients = [(-1) ** k / math.factorial(k) for k in range(2, _TAYLOR_TERMS + 1)]
    return _with_taylor(closed, far.abs() < _TAYLOR, x, y, coefficients)


def _far_and_near(x: Tensor, y: Tensor, phi_x: Tensor, phi_y: Tensor) -> tuple[Tensor, Tensor]:
    """The node farther from 0, to divide by, and phi at the other one."""
    x_is_far = x.abs() >= y.abs()
    return torch.where(x_is_far, x, y), torch.where(x_is_far, phi_y, phi_x)


def _power_slope(x: Tensor, y: Tensor, n_steps: int) -> Tensor:
    """((1-x)^T - (1-y)^T) / (y - x), without cancellation where x and y are close. For T >= 2."""
    low, high = torch.minimum(x, y), torch.maximum(x, y)
    gap = high - low
    # Bases of one sign: M^(T-1) (1 - r^T) / (1 - r) with M the larger size and 1 - r = gap / M.
    positive = high <= 1
    size = torch.where(positive, 1 - low, high - 1)
    log_size = torch.where(positive, torch.log1p(-low), torch.log(high - 1))
    sign = torch.where(positive, 1.0, float((-1) ** (n_steps - 1)))
    ratio = torch.where(size > 0, gap / size, 0.0)  # both bases 0: the factor M^(T-1) below is 0
    same = sign * torch.exp((n_steps - 1) * log_size) * power_sum(ratio, n_steps)
    straddle = (low < 1) & (high > 1)
    if not bool(straddle.any()):
        return same
    upper = torch.exp(n_steps * torch.log1p(-low))
    lower = (-1) ** n_steps * torch.exp(n_steps * torch.log(high - 1))
    return torch.where(straddle, (upper - lower) / gap, same)


def _with_taylor(closed: Tensor, small: Tensor, x: Tensor, y: Tensor, coefficients: list[float]) -> Tensor:
    """`closed`, replaced where `small` by sum_j coefficients[j] * h_j(x, y), h_j = sum_i x^i y^(j-i)."""
    if not bool(small.any()):
        return closed
    x_small, y_small = x.expand_as(small)[small], y.expand_as(small)[small]
    power = torch.ones_like(x_small)  # y^j
    complete = torch.ones_like(x_small)  # h_j
    total = torch.full_like(x_small, coefficients[0])
    for coefficient in coefficients[1:]:
        power = power * y_small
        complete = complete * x_small + power
        total += coefficient * complete
    closed[small] = total
    return closed
