"""Gauss-Newton in its three forms against dense Jacobians, Hessians and matrix functions built here.

Jacobians come from `torch.func.jacrev` over the whole batch, loss Hessians from `torch.func.hessian`, and f(C) from
inverses, matrix exponentials and optimizers that really run: nothing here uses an eigenvalue.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev

from whence.algebra import Damping, Flow, Horizon, Steps, damped_inverse, first_order
from whence.curvature import FORMS, GaussNewton, KrylovForm, choose_form, fit_gauss_newton
from whence.curvature.linearized import LinearizedTrain
from whence.data import Examples
from whence.errors import ConvergenceError, NumericalError, UnknownNameError, UnsupportedError
from whence.task import CrossEntropy, Pick, SquaredError, Task

# Relative to the largest entry. Dense forms lose a few digits to f(0)/f(s); Lanczos stops at a change of 1e-8.
TOLERANCE = {"dual": 1e-10, "primal": 1e-10, "krylov": 1e-7}
REORDERED = 1e-10  # sums in another order, through an eigen-decomposition
SINGLE = 1e-4  # float32 Jacobian rows and sums
# Two spectra of one matrix, two eigenvalue solvers: rounding of the largest eigenvalue.
EIGENVALUE = 1e-12
SATURATING = 60.0  # a lead of one logit: exp(-60) is lost against 1 even in float64

F64 = torch.float64


def assert_same(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Equal to `tolerance` times the largest entry wanted."""
    assert found.shape == wanted.shape
    assert found.dtype == F64
    gap = float((found - wanted).abs().max())
    assert gap <= tolerance * float(wanted.abs().max()), f"{gap:.3e} of {float(wanted.abs().max()):.3e}"


def mean_squared_error(outputs: Tensor, target: Tensor) -> Tensor:
    """Of one example."""
    return (outputs - target).square().mean()


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Of one example, in the textbook form."""
    return torch.logsumexp(outputs, 0) - outputs.gather(0, target[None])[0]


def shifted_outputs(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """A network plus an offset that comes with the example: it makes single rows as sure as wanted."""
    return model(batch[0]) + batch[2]


@dataclass(frozen=True, eq=False)
class Problem:
    """A task with everything about it in dense matrices."""

    task: Task
    train: Examples
    queries: Examples
    loss: object

    @property
    def n(self) -> int:
        return len(self.train)

    @cached_property
    def start(self) -> Tensor:
        """The parameters as one vector."""
        return torch.cat([p.detach().flatten() for p in self.task.model.parameters()]).double()

    def outputs(self, parameters: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return functional_call(self.task.model, parameters, batch[0]) + batch[2]

    def jacobian(self, examples: Examples) -> Tensor:
        """(n, c, n_params)."""
        named = {name: p.detach().double() for name, p in self.task.model.named_parameters()}
        batch = tuple(x.double() if x.is_floating_point() else x for x in examples.all())
        pieces = jacrev(lambda p: self.outputs(p, batch))(named)
        return torch.cat([pieces[name].flatten(2) for name in named], dim=2)

    def slopes(self, examples: Examples) -> Tensor:
        """(n, c)."""
        batch = examples.all()
        with torch.no_grad():
            now = shifted_outputs(self.task.model, batch)
        return torch.stack([grad(self.loss)(z.double(), y) for z, y in zip(now, batch[1], strict=True)])

    @cached_property
    def jacobians(self) -> Tensor:
        return self.jacobian(self.train)

    @cached_property
    def loss_hessians(self) -> Tensor:
        """(n, c, c)."""
        batch = self.train.all()
        with torch.no_grad():
            now = shifted_outputs(self.task.model, batch)
        return torch.stack([hessian(self.loss)(z.double(), y) for z, y in zip(now, batch[1], strict=True)])

    @cached_property
    def squares(self) -> Tensor:
        """J_i^T V_i J_i, (n, n_params, n_params)."""
        return torch.einsum("iap,iab,ibq->ipq", self.jacobians, self.loss_hessians, self.jacobians)

    @cached_property
    def curvature(self) -> Tensor:
        return self.squares.mean(0)

    @cached_property
    def gradients(self) -> Tensor:
        """b_i, (n, n_params)."""
        return torch.einsum("iap,ia->ip", self.jacobians, self.slopes(self.train))

    @cached_property
    def query_gradients(self) -> Tensor:
        return torch.einsum("iap,ia->ip", self.jacobian(self.queries), self.slopes(self.queries))

    @cached_property
    def safe_lr(self) -> float:
        """Below where gradient descent diverges, with and without Nesterov's momentum of 0.8."""
        return 1.2 / float(torch.linalg.matrix_norm(self.curvature, ord=2))


def network(n_features: int, n_outputs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(n_features, 4), nn.Tanh(), nn.Linear(4, n_outputs)).double().eval()


def draw(n: int, n_features: int, seed: int) -> Tensor:
    return torch.randn(n, n_features, generator=torch.Generator().manual_seed(seed), dtype=F64)


def regression(n_outputs: int, n_train: int) -> Problem:
    model = network(3, n_outputs, seed=0)
    batches = [
        (draw(n, 3, s), draw(n, n_outputs, s + 1), torch.zeros(n, n_outputs, dtype=F64))
        for n, s in ((n_train, 10), (4, 20))
    ]
    task = Task(model, outputs=shifted_outputs, loss=SquaredError(Pick(1)))
    return Problem(task, Examples(batches[0]), Examples(batches[1]), mean_squared_error)


def flat_regression() -> Problem:
    """Five distinct examples four times each, and an input that is always zero: flat rows and flat parameters."""
    problem = regression(1, 5)
    x, y, offset = (rows.repeat(4, 1) for rows in problem.train.all())
    x[:, 2] = 0.0
    return Problem(problem.task, Examples((x, y, offset)), problem.queries, problem.loss)


def classification(n_classes: int, n_train: int, *, saturated: bool = False) -> Problem:
    model = network(3, n_classes, seed=1)
    batches = []
    for n, s in ((n_train, 30), (4, 40)):
        labels = torch.arange(n) % n_classes
        offset = torch.zeros(n, n_classes, dtype=F64)
        if saturated:
            offset[0, labels[0]] = SATURATING  # right, and sure of it
            offset[1, (labels[1] + 1) % n_classes] = SATURATING  # wrong, and sure of it
        batches.append((draw(n, 3, s), labels, offset))
    task = Task(model, outputs=shifted_outputs, loss=CrossEntropy(Pick(1)), target=Pick(1))
    return Problem(task, Examples(batches[0]), Examples(batches[1]), cross_entropy)


PROBLEMS = {
    "mse": lambda: regression(1, 9),
    "mse, more rows than parameters": lambda: regression(1, 40),
    "mse of 3 outputs": lambda: regression(3, 8),
    "mse, rank-deficient": flat_regression,
    "2 classes": lambda: classification(2, 11),
    "4 classes": lambda: classification(4, 9),
    "4 classes, more rows than parameters": lambda: classification(4, 30),
    "2 classes, saturated": lambda: classification(2, 7, saturated=True),
    "4 classes, saturated": lambda: classification(4, 7, saturated=True),
}


@cache
def problem_named(name: str) -> Problem:
    return PROBLEMS[name]()


@cache
def fitted(name: str, form: str):
    problem = problem_named(name)
    return fit_gauss_newton(problem.task, problem.train, form=form)


def run_filter(curvature: Tensor, steps: Steps) -> Tensor:
    """f(C): gradient descent on a quadratic under each unit force in turn, as `torch.optim.SGD` does it."""
    eye = torch.eye(len(curvature), dtype=F64)
    moved, buffer = torch.zeros_like(eye), torch.zeros_like(eye)
    for lr in steps.lr:
        slope = curvature @ moved + steps.weight_decay * moved - eye
        buffer = steps.momentum * buffer + slope
        moved = moved - lr * (slope + steps.momentum * buffer if steps.nesterov else buffer)
    return moved


def flow_filter(curvature: Tensor, time: float) -> Tensor:
    """The integral of exp(-C u) over 0 < u < time, as a corner of one matrix exponential (Van Loan 1978)."""
    p = len(curvature)
    block = torch.zeros(2 * p, 2 * p, dtype=F64)
    block[:p, :p], block[:p, p:] = -curvature, torch.eye(p, dtype=F64)
    return torch.linalg.matrix_exp(time * block)[:p, p:]


def damped(problem: Problem, damping: float) -> Tensor:
    return torch.linalg.inv(problem.curvature + damping * torch.eye(len(problem.curvature), dtype=F64))


def annealed(problem: Problem) -> Steps:
    rates = tuple(problem.safe_lr * (1 - t / 30) for t in range(30))
    return Steps(rates, momentum=0.8, nesterov=True, weight_decay=0.01)


def mean_eigenvalue(problem: Problem) -> float:
    return float(problem.curvature.trace()) / len(problem.curvature)


# name -> (the filter, f(C) by other means)
FILTERS = {
    "first order": lambda p: (first_order(0.7), 0.7 * torch.eye(len(p.curvature), dtype=F64)),
    "damped, absolute": lambda p: (damped_inverse(Damping.absolute(0.03)), damped(p, 0.03)),
    "damped, relative": lambda p: (damped_inverse(Damping.relative(0.2)), damped(p, 0.2 * mean_eigenvalue(p))),
    "damped, squared gradients": lambda p: (
        damped_inverse(Damping.mean_square_gradient(3.0)),
        damped(p, 3.0 * float(p.gradients.square().mean())),
    ),
    "horizon": lambda p: (Horizon(Steps.of(p.safe_lr, 25)), run_filter(p.curvature, Steps.of(p.safe_lr, 25))),
    "horizon, all options": lambda p: (Horizon(annealed(p)), run_filter(p.curvature, annealed(p))),
    "flow": lambda p: (Flow(20 * p.safe_lr), flow_filter(p.curvature, 20 * p.safe_lr)),
}


def test_saturated_problems_are_what_they_claim():
    for name in ("2 classes, saturated", "4 classes, saturated"):
        problem = problem_named(name)
        logits = shifted_outputs(problem.task.model, problem.train.all())
        sure = (logits.softmax(1) == 1).any(1)
        wrong = logits.argmax(1) != problem.train.all()[1]
        assert sure[:2].all()
        assert wrong[1]
        assert not wrong[0]
        assert problem.loss_hessians[:2].abs().max() < 1e-20
        assert problem.gradients[1].norm() > 0.1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_solve_and_scores_are_those_of_dense_matrices(name, filter_name, form):
    problem, curvature = problem_named(name), fitted(name, form)
    used, dense = FILTERS[filter_name](problem)
    rows = draw(3, len(problem.start), seed=5)  # mostly outside the range of C
    resolved = curvature.resolve(used)
    assert_same(curvature.form.solve(resolved, rows), rows @ dense, TOLERANCE[form])
    wanted = problem.query_gradients @ dense @ problem.gradients.T / problem.n
    assert_same(curvature.scores(used, problem.query_gradients), wanted, TOLERANCE[form])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_statistics_are_those_of_dense_matrices(name, form):
    problem, curvature = problem_named(name), fitted(name, form)
    assert curvature.form.mean_eigenvalue == pytest.approx(mean_eigenvalue(problem), rel=EIGENVALUE)
    largest = float(torch.linalg.matrix_norm(problem.curvature, ord=2))
    assert curvature.form.largest_eigenvalue == pytest.approx(largest, rel=EIGENVALUE)
    linear = curvature.linear
    assert linear.mean_square_gradient == pytest.approx(float(problem.gradients.square().mean()), rel=EIGENVALUE)
    assert_same(linear.mean_gradient, problem.gradients.mean(0), EIGENVALUE)
    assert (linear.n_train, linear.n_params) == (problem.n, len(problem.start))


@pytest.mark.parametrize("name", ["2 classes", "4 classes", "mse of 3 outputs"])
def test_cross_entropy_needs_one_row_less_than_outputs(name):
    linear, n_outputs = fitted(name, "dual").linear, problem_named(name).jacobians.shape[1]
    assert linear.n_contrasts == (n_outputs if name.startswith("mse") else n_outputs - 1)
    factor = torch.cat([rows for _, rows in linear.factor_blocks()])
    assert_same(factor.T @ factor, problem_named(name).curvature, 1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_a_long_horizon_is_the_pseudo_inverse_and_lr_times_steps_on_flat_directions(form):
    problem = problem_named("mse, rank-deficient")
    lr, n_steps = problem.safe_lr, 2_000_000
    pseudo = torch.linalg.pinv(problem.curvature, rtol=1e-9, hermitian=True)
    inside = pseudo @ problem.curvature  # the projection on the range
    assert float((problem.curvature - problem.curvature @ inside).abs().max()) < 1e-12
    slowest = 1 / float(torch.linalg.matrix_norm(pseudo, ord=2))
    assert (1 - lr * slowest) ** n_steps < 1e-12  # else the horizon is not long enough for this comparison
    rows = draw(3, len(problem.start), seed=6)
    curvature = fitted("mse, rank-deficient", form)
    flat = lr * n_steps * (rows - rows @ inside)
    found = curvature.form.solve(Horizon(Steps.of(lr, n_steps)), rows)
    # A flat eigenvalue comes out as eps |C| instead of 0, and T steps at about lr = 1 / |C| see T times that.
    rounding = 10 * n_steps * torch.finfo(torch.float64).eps
    assert_same(found, rows @ pseudo + flat, max(TOLERANCE[form], rounding))
    # The flat part is a million times the larger: look at the rest on rows without one. By f(0) I - C h(C), as the dual
    # form has it, what is left is a difference of terms lr T = 700,000 times its size.
    within = rows @ inside
    found = curvature.form.solve(Horizon(Steps.of(lr, n_steps)), within)
    assert_same(found @ problem.curvature, within, {"dual": 1e-7, "primal": 1e-8, "krylov": 1e-6}[form])


def look_ahead_run(problem: Problem, steps: Steps) -> tuple[Tensor, Tensor]:
    """Both runs at once: the drift on all data, and what each example's absence adds to it; (T), (n, n_params)."""
    start = problem.gradients.mean(0) + steps.weight_decay * problem.start
    drift, drift_buffer = torch.zeros_like(start), torch.zeros_like(start)
    gap, gap_buffer = torch.zeros_like(problem.gradients), torch.zeros_like(problem.gradients)
    for lr in steps.lr:
        force = (problem.gradients + problem.squares @ drift) / problem.n
        slope = gap @ problem.curvature + steps.weight_decay * gap - force
        gap_buffer = steps.momentum * gap_buffer + slope
        gap = gap - lr * (slope + steps.momentum * gap_buffer if steps.nesterov else gap_buffer)
        slope = problem.curvature @ drift + steps.weight_decay * drift + start
        drift_buffer = steps.momentum * drift_buffer + slope
        drift = drift - lr * (slope + steps.momentum * drift_buffer if steps.nesterov else drift_buffer)
    return drift, gap


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps_of", [lambda p: Steps.of(p.safe_lr, 40), annealed], ids=["plain", "all options"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_look_ahead_and_displacement_are_those_of_runs(name, steps_of, form):
    problem, curvature = problem_named(name), fitted(name, form)
    steps = steps_of(problem)
    drift, gap = look_ahead_run(problem, steps)
    assert_same(curvature.displacement(Horizon(steps), steps.weight_decay), drift, TOLERANCE[form])
    queries = problem.query_gradients
    ahead = curvature.look_ahead(steps, queries)
    constant = curvature.scores(Horizon(steps), queries)
    assert_same(constant - ahead, queries @ gap.T, TOLERANCE[form])
    assert float(ahead.abs().max()) > 1e-3 * float(constant.abs().max())  # the correction is no rounding error


@pytest.mark.parametrize("form", FORMS)
def test_slopes_at_moved_outputs(form):
    problem, linear = problem_named("4 classes"), fitted("4 classes", form).linear
    direction = 0.3 * draw(1, linear.n_params, seed=7)
    moved = linear.slopes_at(linear.push(direction)[0])
    outputs = shifted_outputs(problem.task.model, problem.train.all()) + problem.jacobians @ direction[0]
    # The contrasts drop a shift of all logits, which the loss does not feel.
    wanted = torch.stack([grad(cross_entropy)(z, y) for z, y in zip(outputs, problem.train.all()[1], strict=True)])
    assert_same(moved @ linear.basis.T, wanted.detach(), 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mse of 3 outputs", "4 classes, saturated"])
def test_without_a_cache_and_in_chunks_nothing_changes(name, form, monkeypatch):
    problem = problem_named(name)
    steps = annealed(problem)
    cached = fitted(name, form)
    wanted = [cached.scores(Horizon(steps), problem.query_gradients), cached.look_ahead(steps, problem.query_gradients)]
    monkeypatch.setattr("whence.curvature.linearized.CACHE", 0)
    monkeypatch.setattr("whence.gradients.rows.chunk_size", lambda *_: 3)
    streamed = fit_gauss_newton(problem.task, problem.train, form=form)
    assert not streamed.linear.fits_memory
    found = [
        streamed.scores(Horizon(steps), problem.query_gradients),
        streamed.look_ahead(steps, problem.query_gradients),
    ]
    for ours, theirs in zip(found, wanted, strict=True):
        assert_same(ours, theirs, TOLERANCE[form])
    assert streamed.linear.mean_square_gradient == pytest.approx(cached.linear.mean_square_gradient, rel=EIGENVALUE)
    assert streamed.form.mean_eigenvalue == pytest.approx(cached.form.mean_eigenvalue, rel=EIGENVALUE)


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    name=st.sampled_from(["mse", "4 classes", "2 classes, saturated"]),
    size=st.integers(1, 12),
    seed=st.integers(0, 1000),
    kept=st.booleans(),
)
def test_chunk_sizes_and_row_order_do_not_change_scores(form, name, size, seed, kept):
    problem = problem_named(name)
    used = FILTERS["damped, relative"](problem)[0]
    wanted = fitted(name, form).scores(used, problem.query_gradients)
    order = torch.randperm(problem.n, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whence.gradients.rows.chunk_size", lambda *_: size)
        if not kept:
            patch.setattr("whence.curvature.linearized.CACHE", 0)
        shuffled = fit_gauss_newton(problem.task, problem.train.subset(order), form=form)
        found = shuffled.scores(used, problem.query_gradients)
    assert_same(found, wanted[:, order], max(REORDERED, TOLERANCE[form]))


def test_a_float32_model_is_linearised_in_float64_where_that_fits():
    problem = problem_named("4 classes")
    single = Task(network(3, 4, seed=1).float(), outputs=shifted_outputs, loss=CrossEntropy(Pick(1)), target=Pick(1))
    twin = Problem(
        Task(network(3, 4, seed=1).float().double(), outputs=shifted_outputs, loss=CrossEntropy(Pick(1))),
        problem.train.to(dtype=torch.float32).to(dtype=F64),
        problem.queries,
        cross_entropy,
    )
    train = problem.train.to(dtype=torch.float32)
    used = damped_inverse(Damping.relative(0.2))
    wanted = twin.query_gradients @ damped(twin, 0.2 * mean_eigenvalue(twin)) @ twin.gradients.T / twin.n
    exact = fit_gauss_newton(single, train)
    assert exact.linear.dtype == F64
    assert_same(exact.scores(used, twin.query_gradients), wanted, 1e-10)
    for form in FORMS:
        rough = fit_gauss_newton(single, train, form=form, dtype=torch.float32)
        assert_same(rough.scores(used, twin.query_gradients.float()), wanted, SINGLE)


def test_one_fit_serves_every_filter():
    """Curvature is fitted once, filtered later: a second damping costs no further pass over the train set."""
    problem = problem_named("mse")
    passes = []

    def counting(model, batch):
        passes.append(len(batch[0]))
        return shifted_outputs(model, batch)

    task = Task(problem.task.model, outputs=counting, loss=SquaredError(Pick(1)))
    curvature = fit_gauss_newton(task, problem.train)
    curvature.scores(damped_inverse(Damping.relative(0.1)), problem.query_gradients)
    before = len(passes)
    curvature.scores(damped_inverse(Damping.mean_square_gradient(10.0)), problem.query_gradients)
    curvature.scores(Flow(3.0), problem.query_gradients)
    assert len(passes) == before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("filter", "needs"),
    [
        (damped_inverse(Damping.absolute(0.1)), set()),
        (damped_inverse(Damping.relative(0.1)), {"mean_eigenvalue"}),
        (damped_inverse(Damping.mean_square_gradient(0.1)), {"mean_square_gradient"}),
        (Flow(3.0), set()),
    ],
)
def test_no_statistic_is_computed_that_the_filter_does_not_need(form, filter, needs, monkeypatch):
    """Each costs a pass over the rows."""
    problem = problem_named("mse")
    curvature = fit_gauss_newton(problem.task, problem.train, form=form)
    read = set()

    def counting(name):
        return property(lambda self: read.add(name) or 1.0)

    monkeypatch.setattr(FORMS[form], "mean_eigenvalue", counting("mean_eigenvalue"))
    monkeypatch.setattr(LinearizedTrain, "mean_square_gradient", counting("mean_square_gradient"))
    curvature.scores(filter, problem.query_gradients)
    assert read == needs


@pytest.mark.parametrize(
    ("n_rows", "n_params", "form"),
    [
        (10, 10, "dual"),
        (10, 9, "primal"),
        (6000, 10**9, "dual"),
        (10**9, 6000, "primal"),
        (6000, 6001, "dual"),
        (6001, 6000, "primal"),
        (6001, 6001, "krylov"),
        (10**9, 10**9, "krylov"),
    ],
)
def test_the_smaller_side_decides_the_form(n_rows, n_params, form):
    assert choose_form(n_rows, n_params) == form


@pytest.mark.parametrize(("name", "form"), [("mse", "dual"), ("mse, more rows than parameters", "primal")])
def test_auto_takes_the_smaller_side(name, form):
    problem = problem_named(name)
    assert fit_gauss_newton(problem.task, problem.train).form_name == form


@pytest.mark.parametrize("form", FORMS)
def test_a_divergent_horizon_is_refused_and_the_lr_that_would_do_is_named(form):
    problem = problem_named("mse")
    largest = float(torch.linalg.matrix_norm(problem.curvature, ord=2))
    steps = Steps.of(2.1 / largest, 50)
    with pytest.raises(NumericalError, match="diverges") as refusal:
        fitted("mse", form).scores(Horizon(steps), problem.query_gradients)
    named = float(str(refusal.value).split("lr below ")[1].split(",")[0])
    # Lanczos may meet the divergence before its largest Ritz value has converged.
    assert named == pytest.approx(2 / largest, rel=1e-5 if form != "krylov" else 0.05)
    with pytest.raises(NumericalError, match="diverges"):
        fitted("mse", form).look_ahead(steps, problem.query_gradients)
    flow = fitted("mse", form).scores(Flow(steps.time), problem.query_gradients)
    dense = flow_filter(problem.curvature, steps.time)
    assert_same(flow, problem.query_gradients @ dense @ problem.gradients.T / problem.n, TOLERANCE[form])


def test_a_loss_without_hessian_and_an_unknown_form_are_refused_before_any_pass():
    problem = problem_named("mse")
    passes = []

    def counting(model, batch):
        passes.append(1)
        return shifted_outputs(model, batch)

    task = Task(problem.task.model, outputs=counting, loss=SquaredError(Pick(1)))
    with pytest.raises(UnknownNameError, match=r"curvature form 'duel'. Did you mean 'dual'"):
        fit_gauss_newton(task, problem.train, form="duel")
    plain = Task(problem.task.model, outputs=counting, loss=lambda z, batch: (z - batch[1]).abs().mean(1))
    with pytest.raises(UnsupportedError, match="output_hessian"):
        fit_gauss_newton(plain, problem.train)
    assert passes == []


def test_relative_damping_of_a_zero_curvature_is_refused():
    """All rows sure to rounding beyond the smallest number: V is exactly zero, and so is the unit of damping."""
    problem = classification(2, 4)
    x, labels, offset = problem.train.all()
    offset = offset.clone()
    offset[torch.arange(4), labels] = 2000.0
    curvature = fit_gauss_newton(problem.task, Examples((x, labels, offset)))
    with pytest.raises(NumericalError, match=r"Damping.absolute"):
        curvature.scores(damped_inverse(Damping.relative(0.1)), problem.query_gradients)
    absolute = curvature.scores(damped_inverse(Damping.absolute(0.1)), problem.query_gradients)
    assert bool((absolute == 0).all())  # nothing is left to learn from them


def test_krylov_blocks_of_queries_do_not_change_scores(monkeypatch):
    problem = problem_named("4 classes")
    steps = annealed(problem)
    wanted = fitted("4 classes", "krylov").look_ahead(steps, problem.query_gradients)
    monkeypatch.setattr("whence.curvature.krylov.BASIS_MEMORY", 1)  # one query at a time
    linear = fitted("4 classes", "krylov").linear
    one_by_one = GaussNewton(KrylovForm(linear), "krylov")
    assert_same(one_by_one.look_ahead(steps, problem.query_gradients), wanted, TOLERANCE["krylov"])
    assert len(one_by_one.form.steps_taken) == 1 + len(problem.query_gradients)  # the mean gradient comes first


def test_krylov_says_when_it_has_not_converged():
    problem = problem_named("4 classes")
    form = KrylovForm(fitted("4 classes", "krylov").linear, max_steps=6)
    with pytest.raises(ConvergenceError, match=r"after 6 steps.*max_steps"):
        form.scores(Horizon(annealed(problem)), problem.query_gradients, form.linear.contrast_slopes)


def test_the_horizon_of_a_schedule_that_ends_in_zero_is_finite():
    """A cosine that reaches zero: its last step moves nothing, and nothing is divided by it."""
    problem = problem_named("mse")
    rates = tuple(problem.safe_lr * 0.5 * (1 + math.cos(math.pi * t / 9)) for t in range(10))
    steps = Steps((*rates[:-1], 0.0))
    for form in FORMS:
        found = fitted("mse", form).scores(Horizon(steps), problem.query_gradients)
        wanted = problem.query_gradients @ run_filter(problem.curvature, steps) @ problem.gradients.T / problem.n
        assert_same(found, wanted, TOLERANCE[form])
