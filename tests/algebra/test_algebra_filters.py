"""Filters against 700-digit arithmetic, against runs of the optimizer, and at the edges of their spectra."""

import json
import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.algebra import (
    FILTERS,
    DampedInverse,
    Damping,
    FirstOrder,
    Flow,
    Horizon,
    Steps,
    apply_filter_dense,
    damped_inverse,
    first_order,
    flow,
    horizon,
    run_gradient_descent,
)
from whence.errors import InputError, NotPositiveDefiniteError, NumericalError

# Relative error allowed to a closed form: rounding of an exponent of a few hundred.
CLOSED = {"rtol": 1e-12, "atol": 0.0}
# A recurrence of a few hundred steps adds up the rounding of each.
RUN = {"rtol": 1e-10, "atol": 1e-13}

EVERY_KIND = [
    Steps.of(0.1, 40),
    Steps.of(0.1, 40, weight_decay=0.3),
    Steps.of(0.1, 40, momentum=0.9),
    Steps.of(0.1, 40, momentum=0.9, nesterov=True, weight_decay=0.05),
    Steps(tuple(0.15 * (1 - t / 30) for t in range(30))),
    Steps(tuple(0.1 * (1 + math.cos(0.2 * t)) for t in range(25)), momentum=0.5, weight_decay=0.2),
]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def exactly(f):
    """Evaluate `f` in 700-digit decimals: two cancellations of 300 digits leave enough."""
    with localcontext() as context:
        context.prec = 700
        return float(f())


def decimal_response(s, steps):
    """The closed form, in decimals."""
    lr, s = Decimal(steps.lr[0]), Decimal(s)
    return (1 - (1 - lr * s) ** steps.n_steps) / s if s else lr * steps.n_steps


SIZES = st.one_of(
    st.sampled_from([0.0, 1e-300, 1e-14, 1e-8, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 1.5, 1.99, -1e-10, -0.01]),
    st.floats(-0.05, 1.99),
    st.floats(-14, 0).map(lambda e: 10**e),
)
N_STEPS = st.sampled_from([1, 2, 3, 10, 77, 500, 3000])


@settings(max_examples=150, deadline=None)
@given(x=SIZES, n_steps=N_STEPS, lr=st.sampled_from([1.0, 0.25]), decay=st.sampled_from([0.0, 2.0**-12]))
def test_horizon_to_all_digits(x, n_steps, lr, decay):
    s = x / lr
    if lr * (s + decay) > 1 and lr * (s + decay) - 1 < 1e-300:
        return
    steps = Steps.of(lr, n_steps, weight_decay=decay)
    filter = Horizon(steps)
    # lr and decay are powers of two and s is shifted in float64 first, so that both sides see the same number.
    shifted = Decimal(s + decay)
    want = exactly(lambda: decimal_response(float(shifted), Steps.of(lr, n_steps)))
    assert_close(filter(tensor(s)), tensor(want), **CLOSED)


@settings(max_examples=150, deadline=None)
@given(x=SIZES, n_steps=N_STEPS)
def test_horizon_complement_to_all_digits(x, n_steps):
    def want():
        lr_s, total = Decimal(x), Decimal(n_steps)
        if not lr_s:
            return total * (total - 1) / 2
        return (total - (1 - (1 - lr_s) ** n_steps) / lr_s) / lr_s

    assert_close(Horizon(Steps.of(1.0, n_steps)).complement(tensor(x)), tensor(exactly(want)), rtol=1e-12, atol=1e-40)


@settings(max_examples=100, deadline=None)
@given(x=st.one_of(st.sampled_from([0.0, 1e-14, 1e-8, 0.24999, 0.25]), st.floats(-5, 60)))
def test_flow_and_complement_to_all_digits(x):
    def value():
        return (1 - (-Decimal(x)).exp()) / Decimal(x) if x else Decimal(1)

    def complement():
        return (1 - value()) / Decimal(x) if x else Decimal("0.5")

    if abs(x) > 1e-25:
        assert_close(Flow(1.0)(tensor(x)), tensor(exactly(value)), **CLOSED)
        assert_close(Flow(1.0).complement(tensor(x)), tensor(exactly(complement)), **CLOSED)


@pytest.mark.parametrize("steps", EVERY_KIND)
def test_horizon_is_the_run_of_the_optimizer(steps):
    s = tensor(0.0, 1e-9, 0.03, 0.7, 2.0, 5.0, 9.0, -0.2)
    run = run_gradient_descent(torch.diag(s), lambda t: torch.ones(1, len(s)), steps)[-1, 0]
    assert_close(Horizon(steps)(s), run, **RUN)


@pytest.mark.parametrize("steps", EVERY_KIND)
def test_horizon_is_torch_sgd_on_a_quadratic(steps):
    """theta_T - theta_0 = -f(C) g for a quadratic loss of gradient g at the start, decay around theta_0 = 0."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    curvature, g = a.T @ a / 7, torch.randn(5, generator=generator, dtype=torch.float64)
    theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD(
        [theta], lr=1.0, momentum=steps.momentum, nesterov=steps.nesterov, weight_decay=steps.weight_decay
    )
    for lr in steps.lr:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        (theta @ curvature @ theta / 2 + g @ theta).backward()
        optimizer.step()
    assert_close(theta.detach()[None], -apply_filter_dense(curvature, Horizon(steps), g[None]), **RUN)


@pytest.mark.parametrize(
    "filter",
    [FirstOrder(0.3), DampedInverse(0.01), Flow(7.0), Flow(7.0, 0.1), *map(Horizon, EVERY_KIND)],
    ids=lambda f: f.name,
)
def test_complement_is_f_at_zero_minus_f_over_s(filter):
    s = tensor(0.5, 1.0, 3.0, 8.0, -0.3)
    assert_close(filter.complement(s), (filter.at_zero() - filter(s)) / s, rtol=1e-11, atol=1e-12)
    zero, small = tensor(0.0), 1e-5
    assert_close(filter(zero), tensor(filter.at_zero()), **CLOSED)
    slope = (filter(-tensor(small)) - filter(tensor(small))) / (2 * small)  # error of second order
    assert_close(filter.complement(zero), slope, rtol=1e-5, atol=1e-9)
    assert_close(filter.complement(tensor(1e-14)), filter.complement(zero), rtol=1e-9, atol=0.0)


def test_long_horizon_is_the_pseudo_inverse_on_the_range_and_lr_t_off_it():
    steps = Steps.of(0.5, 20_000)
    curvature = torch.diag(tensor(2.0, 1.0, 0.1, 0.0, 0.0))
    rows = torch.eye(5, dtype=torch.float64)
    want = torch.diag(tensor(0.5, 1.0, 10.0, 0.0, 0.0)) + torch.diag(tensor(0, 0, 0, 1, 1)) * 0.5 * 20_000
    assert_close(apply_filter_dense(curvature, Horizon(steps), rows), want, **CLOSED)


def test_small_steps_approach_the_flow_and_early_steps_the_first_order():
    s = tensor(0.0, 0.1, 1.0, 4.0)
    fine = Steps.of(1e-4, 20_000)
    assert Flow.matching(fine) == flow(2.0)
    assert_close(Horizon(fine)(s), Flow.matching(fine)(s), rtol=1e-3, atol=0.0)
    assert_close(Horizon(Steps.of(0.1, 1))(s), first_order(0.1)(s), **CLOSED)
    assert Flow.matching(Steps.of(0.1, 10, momentum=0.9, weight_decay=0.2)).time == pytest.approx(10.0)


def test_momentum_horizon_without_momentum_is_the_closed_form():
    """Two equal rates written as different floats take the recurrence; the closed form must agree."""
    s = tensor(0.0, 1e-12, 0.5, 3.0, 12.0)
    closed, run = Steps.of(0.1, 200), Steps((0.1,) * 199 + (math.nextafter(0.1, 1),))
    assert closed.constant
    assert not run.constant
    assert_close(Horizon(closed)(s), Horizon(run)(s), **RUN)
    assert_close(Horizon(closed).complement(s), Horizon(run).complement(s), **RUN)


def spectral_radius(s, steps):
    """Of one step of the recurrence, by running it from both unit states."""
    columns = []
    for state in ((1.0, 0.0), (0.0, 1.0)):
        d, b = state
        g = s * d
        b = steps.momentum * b + g
        d = d - steps.lr[0] * (g + steps.momentum * b if steps.nesterov else b)
        columns.append([d, b])
    return float(torch.linalg.eigvals(tensor(*columns)).abs().max())


@pytest.mark.parametrize(
    "steps",
    [
        Steps.of(0.1, 5),
        Steps.of(0.1, 5, momentum=0.9),
        Steps.of(0.1, 5, momentum=0.9, nesterov=True),
        Steps.of(0.1, 5, momentum=0.3, nesterov=True),
    ],
)
def test_stability_bound_is_where_the_recurrence_starts_to_grow(steps):
    edge = steps.stability_bound / 0.1
    assert spectral_radius(edge * 0.999, steps) < 1 < spectral_radius(edge * 1.001, steps)
    Horizon(steps).check(0.0, edge * 0.999)
    with pytest.raises(NumericalError, match="diverges"):
        Horizon(steps).check(0.0, edge * 1.001)


def test_horizon_says_which_lr_would_do():
    with pytest.raises(NumericalError, match=r"Use an lr below 0\.05, or `flow\(time=2\)`") as error:
        Horizon(Steps.of(0.1, 20)).check(0.0, 40.0)
    assert "largest eigenvalue is 40" in str(error.value)
    with pytest.raises(NumericalError, match="diverges"):
        Horizon(Steps.of(0.1, 20, weight_decay=1.0)).check(0.0, 19.5)
    with pytest.raises(NumericalError, match=r"lr 0\.3"):
        Horizon(Steps((0.1, 0.3, 0.1))).check(0.0, 7.0)


def test_negative_eigenvalues_grow_until_they_overflow():
    steps = Steps.of(0.1, 100)
    Horizon(steps).check(-1.0, 1.0)
    assert_close(Horizon(steps)(tensor(-1.0)), tensor(1.1**100 - 1), **CLOSED)
    with pytest.raises(NumericalError, match="beyond float64"):
        Horizon(Steps.of(0.1, 10_000)).check(-1.0, 1.0)
    with pytest.raises(NumericalError, match="beyond float64"):
        Horizon(Steps.of(0.1, 10_000, momentum=0.5)).check(-1.0, 1.0)
    with pytest.raises(NumericalError, match="beyond float64"):
        Flow(1000.0).check(-1.0, 1.0)
    Flow(1000.0).check(0.0, 1e9)


def test_damped_inverse_names_the_damping_needed():
    assert_close(DampedInverse(0.5)(tensor(0.0, 1.5)), tensor(2.0, 0.5))
    DampedInverse(0.5).check(-0.4, 3.0)
    with pytest.raises(NotPositiveDefiniteError, match=r"smallest eigenvalue .* -0\.6.*damping above 0\.6"):
        DampedInverse(0.5).check(-0.6, 3.0)


def test_damped_inverse_is_resolved_by_its_statistic():
    assert damped_inverse(Damping.relative(0.1)).resolve(mean_eigenvalue=5.0) == DampedInverse(0.5)
    assert damped_inverse(Damping.absolute(0.1)).resolve() == DampedInverse(0.1)
    with pytest.raises(InputError, match="needs `mean_eigenvalue`"):
        damped_inverse(Damping.relative(0.1)).resolve()
    filter = horizon(Steps.of(0.1, 3))
    assert filter.resolve(mean_eigenvalue=5.0) is filter


@pytest.mark.parametrize(
    ("damping", "needs"),
    [
        (Damping.absolute(0.1), set()),
        (Damping.relative(0.1), {"mean_eigenvalue"}),
        (Damping.mean_square_gradient(0.1), {"mean_square_gradient"}),
    ],
)
def test_a_filter_needs_the_statistic_of_its_damping_and_no_other(damping, needs):
    filter = damped_inverse(damping)
    assert filter.needs == damping.needs == needs
    known = filter.resolve(**dict.fromkeys(needs, 2.0))
    assert known.needs == set()
    for name in needs:
        with pytest.raises(InputError, match=f"needs `{name}`"):
            filter.resolve(**dict.fromkeys({"mean_eigenvalue", "mean_square_gradient"} - {name}, 2.0))


class OnlyPositive(FirstOrder.__mro__[1]):
    """A filter that takes no negative eigenvalue."""

    name, accepts_indefinite = "only_positive", False

    def __call__(self, s):
        return s.sqrt()

    def at_zero(self):
        return 0.0

    def complement(self, s):
        return -1 / s.sqrt()

    def describe(self):
        return {"filter": self.name}


def test_check_refuses_indefinite_and_non_finite_spectra():
    with pytest.raises(NotPositiveDefiniteError, match=r"only_positive.*-0\.5"):
        OnlyPositive().check(-0.5, 1.0)
    OnlyPositive().check(0.0, 1.0)
    with pytest.raises(NumericalError, match="non-finite"):
        first_order().check(0.0, float("nan"))


def test_table_and_descriptions():
    made = {
        "first_order": first_order(2),
        "damped_inverse": damped_inverse(Damping.relative(0.1)),
        "horizon": horizon(Steps.of(0.1, 3)),
        "flow": flow(2, 0.1),
        "banded": FILTERS["banded"]([0.5], [1.0, 2.0], flow(2, 0.1)),
    }
    assert set(FILTERS) == set(made)
    for name, filter in made.items():
        assert filter.name == name
        assert filter.accepts_indefinite
        described = filter.describe()
        assert described["filter"] == name
        assert json.loads(json.dumps(described)) == described
    assert made["horizon"].describe()["n_steps"] == 3
    assert DampedInverse(0.5).describe() == {"filter": "damped_inverse", "damping": 0.5}


def test_filters_refuse_bad_settings():
    for make in (lambda: first_order(0.0), lambda: flow(-1.0), lambda: flow(1.0, -1.0), lambda: DampedInverse(0.0)):
        with pytest.raises(InputError):
            make()


def test_filters_take_float32_and_answer_in_float64():
    for filter in (first_order(), DampedInverse(1.0), flow(1.0), horizon(Steps.of(0.1, 3))):
        s = torch.rand(2, 3)
        assert filter(s).dtype == filter.complement(s).dtype == torch.float64
        assert filter(s).shape == filter.complement(s).shape == s.shape
