"""The look-ahead kernel: closed form, product of paths and recurrence agree, and match 80-digit arithmetic."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.algebra import Flow, Horizon, Steps, look_ahead, look_ahead_kernel, look_ahead_kernel_recurrence
from whence.algebra.differences import decay_difference

# Both ways accumulate rounding over up to 3,000 steps.
AGREE = {"rtol": 1e-10, "atol": 0.0}


def sizes(n_steps):
    """lr * s: zero, tiny, around the switch to the Taylor series, around the sign change at 1, near 2, and equal."""
    hard = [0.0, 1e-14, 1e-14, 1e-9, 0.249 / n_steps, 0.251 / n_steps, 1 / n_steps, 1 / n_steps * (1 + 1e-12)]
    hard += [0.3, 0.3 + 1e-13, 0.999999, 1.0, 1.0, 1.0000001, 1.3, 1.5, 1.99, 1.99]
    generator = torch.Generator().manual_seed(0)
    spread = 10 ** (-8 * torch.rand(20, generator=generator, dtype=torch.float64))
    return torch.cat([torch.tensor([x for x in hard if x < 1.995], dtype=torch.float64), spread])


@pytest.mark.parametrize("decay", [0.0, 1e-3])
@pytest.mark.parametrize("n_steps", [1, 2, 4, 7, 50, 301, 3000])
def test_closed_form_is_the_recurrence(n_steps, decay):
    lr = 0.05
    s = sizes(n_steps) / lr
    steps = Steps.of(lr, n_steps, weight_decay=decay)
    assert_close(look_ahead_kernel(s, s, steps), look_ahead_kernel_recurrence(s, s, steps), **AGREE)


def test_three_steps_where_the_kernel_crosses_zero():
    """K = 1 + (1-x) + (1-y) vanishes at x + y = 3: only an absolute error can be asked for."""
    x = torch.linspace(0.0, 1.99, 41, dtype=torch.float64)
    kernel = look_ahead_kernel(x, x, Steps.of(1.0, 3))
    assert_close(kernel, 3 - x[:, None] - x[None, :], rtol=0.0, atol=1e-14)


@settings(max_examples=150, deadline=None)
@given(
    x=st.floats(-0.02, 1.99), gap=st.one_of(st.just(0.0), st.floats(-14, -0.5).map(lambda e: 10**e)), odd=st.booleans()
)
def test_closed_form_to_all_digits(x, gap, odd):
    n_steps, y = 300 + odd, x + gap if x < 1 else x - gap
    with localcontext() as context:
        context.prec = 80
        a, b = 1 - Decimal(x), 1 - Decimal(y)
        total, partial, power = Decimal(0), Decimal(0), Decimal(1)
        for _ in range(n_steps - 1):  # sum over j <= T - 2 of b^j sum over i <= T - 2 - j of a^i
            partial += power
            total = total * b + partial
            power *= a
        want = float(total)
    pair = torch.tensor([x], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)
    assert_close(look_ahead_kernel(*pair, Steps.of(1.0, n_steps)).item(), want, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize(
    "steps",
    [
        Steps.of(0.1, 60, momentum=0.9),
        Steps.of(0.1, 60, momentum=0.9, nesterov=True, weight_decay=0.1),
        Steps(tuple(0.2 * (1 - t / 50) for t in range(50))),
        Steps(tuple(0.1 * (1 + math.cos(0.2 * t)) for t in range(25)), momentum=0.5, weight_decay=0.2),
    ],
)
def test_product_of_paths_is_the_recurrence_and_the_divided_difference(steps, monkeypatch):
    monkeypatch.setattr("whence.algebra.look_ahead._PATH_ENTRIES", 100)  # several blocks of columns and of steps
    s = torch.tensor([0.0, 1e-14, 0.02, 0.5, 0.5, 3.0, 8.0, -0.3], dtype=torch.float64)
    other = torch.tensor([0.0, 0.7, 2.5, 9.0], dtype=torch.float64)
    kernel = look_ahead_kernel(s, other, steps)
    assert_close(kernel, look_ahead_kernel_recurrence(s, other, steps), rtol=1e-10, atol=1e-12)
    assert_close(kernel.T, look_ahead_kernel(other, s, steps), rtol=1e-10, atol=1e-12)
    f = Horizon(steps)
    difference = (f(s)[:, None] - f(other)[None, :]) / (other[None, :] - s[:, None])
    apart = (other[None, :] - s[:, None]).abs() > 0.1
    assert_close(kernel[apart], difference[apart], rtol=1e-9, atol=1e-10)


def test_product_of_paths_is_the_closed_form():
    s = sizes(300) / 0.1
    almost = Steps((0.1,) * 299 + (math.nextafter(0.1, 1),))
    assert_close(look_ahead_kernel(s, s, almost), look_ahead_kernel(s, s, Steps.of(0.1, 300)), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("n_steps", [1, 9, 100])
def test_large_kernels_take_the_faster_way_and_agree(n_steps):
    s = 20 * torch.rand(160, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    steps = Steps.of(0.05, n_steps, weight_decay=0.01)
    assert len(s) ** 2 > look_ahead._PRODUCT_ENTRIES_PER_STEP * n_steps
    closed = look_ahead._kernel_in_closed_form(s, s, steps)
    assert_close(look_ahead_kernel(s, s, steps), closed, rtol=1e-11, atol=0.0)


def test_kernel_against_zero_is_the_complement():
    s, zero = sizes(40) / 0.1, torch.zeros(1, dtype=torch.float64)
    for steps in (Steps.of(0.1, 40), Steps.of(0.1, 40, weight_decay=0.01), Steps.of(0.1, 40, momentum=0.8)):
        assert_close(look_ahead_kernel(s, zero, steps)[:, 0], Horizon(steps).complement(s), rtol=1e-11, atol=0.0)


def test_negative_eigenvalues_and_blocks(monkeypatch):
    s = torch.tensor([-2.0, -1.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 9.0], dtype=torch.float64)
    steps = Steps.of(0.1, 50)
    whole = look_ahead_kernel(s, s, steps)
    assert_close(whole, look_ahead_kernel_recurrence(s, s, steps), **AGREE)
    monkeypatch.setattr("whence.algebra.look_ahead._BLOCK_ENTRIES", 17)
    assert torch.equal(look_ahead_kernel(s, s, steps), whole)


def test_kernel_is_symmetric_and_starts_at_lr_squared():
    s = sizes(30)
    kernel = look_ahead_kernel(s, s, Steps.of(0.9, 30))
    assert torch.equal(kernel, kernel.T)
    assert torch.equal(look_ahead_kernel(s, s, Steps.of(0.9, 1)), torch.zeros_like(kernel))  # no step has moved yet
    assert_close(look_ahead_kernel(s, s, Steps.of(0.9, 2)), torch.full_like(kernel, 0.81), rtol=1e-14, atol=0.0)


def test_flow_difference_is_the_divided_difference_of_the_flow():
    x = torch.tensor([0.0, 0.1, 0.3, 2.0, 40.0, -1.0], dtype=torch.float64)
    difference = decay_difference(x[:, None], x[None, :])
    f = Flow(1.0)(x)
    apart = x[:, None] != x[None, :]
    plain = ((f[:, None] - f[None, :]) / (x[None, :] - x[:, None]))[apart]
    assert_close(difference[apart], plain, rtol=1e-12, atol=1e-14)
    slope = (Flow(1.0)(x - 1e-5) - Flow(1.0)(x + 1e-5)) / 2e-5
    assert_close(difference.diagonal(), slope, rtol=1e-6, atol=1e-9)
