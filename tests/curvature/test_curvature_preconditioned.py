"""Adam as preconditioned momentum descent, against runs of Adam and against dense matrices."""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from whence import GroupWeights, attribute, load
from whence import train as train_model
from whence.algebra import Flow, Horizon, Steps
from whence.curvature import FORMS, fit_gauss_newton
from whence.curvature.preconditioned import adam_preconditioner, second_moment, variance_share
from whence.data import Examples
from whence.errors import InputError, NonFiniteError, NumericalError
from whence.task import ParameterGroups, Task
from whence.testing.problems import classifier, linear_regression, mlp_regression
from whence.training import Recipe
from whence.training.preconditioner import AdamSteps

F64 = torch.float64
# Some twenty steps summed in another order, an eigen-decomposition on one side, autograd on the other.
EXACT = 1e-9
FORM = {"dual": EXACT, "primal": EXACT, "krylov": 1e-7}  # Lanczos stops at a change of 1e-8
ROUNDING = 1e-12
LR, AT, TOTAL = 0.02, 17, 24

OPTIONS = {
    "plain": {},
    "other betas": {"betas": (0.7, 0.99)},
    "no momentum": {"betas": (0.0, 0.99)},
    "linear": {"schedule": "linear"},
    "cosine and warm-up": {"schedule": "cosine", "warmup_steps": 5},
    "decoupled decay": {"optimizer": "adamw", "weight_decay": 0.6},
    "decoupled decay, other betas": {"optimizer": "adamw", "weight_decay": 2.0, "betas": (0.5, 0.99)},
}


def assert_same(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Equal to `tolerance` times the largest entry wanted."""
    assert found.shape == wanted.shape
    gap, size = float((found - wanted).abs().max()), float(wanted.abs().max())
    assert gap <= tolerance * size, f"{gap:.3e} of {size:.3e}"


def recipe_of(problem, batch_size=None, **options) -> Recipe:
    """In steps, so that the size of a batch changes the preconditioner and nothing else."""
    size = len(problem.train) if batch_size is None else batch_size
    return Recipe(**{"lr": LR, "batch_size": size, "steps": TOTAL, "optimizer": "adam"} | options)


def flat_start(task: Task) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.model.parameters()])


def outputs_at(task: Task, x: Tensor, flat: Tensor) -> Tensor:
    named = dict(task.model.named_parameters())
    pieces = flat.split([p.numel() for p in named.values()])
    return functional_call(
        task.model, {k: v.reshape(p.shape) for (k, p), v in zip(named.items(), pieces, strict=True)}, (x,)
    )


def losses_at(task: Task, examples: Examples, flat: Tensor) -> Tensor:
    x, y = examples.all()
    if y.is_floating_point():
        return (outputs_at(task, x, flat) - y).square().mean(1)
    return nn.functional.cross_entropy(outputs_at(task, x, flat), y, reduction="none")


def adam_with_fixed_scale(problem, recipe: Recipe, diagonal: Tensor, weights: Tensor, at: int) -> Tensor:
    """Parameters after `at` full-batch steps of Adam as it is written down, its second moment held fixed."""
    flat, first = flat_start(problem.task), torch.zeros(len(diagonal), dtype=F64)
    n, beta1 = len(problem.train), recipe.betas[0]
    slope = grad(lambda p: (weights * losses_at(problem.task, problem.train, p)).sum() / n)
    for t in range(at):
        lr = recipe.lr_at(t, n)
        gradient = slope(flat)
        if recipe.optimizer == "adamw":
            flat = flat * (1 - lr * recipe.weight_decay)
        first = beta1 * first + (1 - beta1) * gradient
        flat = flat - lr * diagonal * first / (1 - beta1 ** (t + 1))
    return flat


def scores_of_run(problem, recipe: Recipe, at: int) -> Tensor:
    """-d measure / d weight of every example, by autograd through the run."""
    diagonal = adam_preconditioner(problem.task, problem.train, recipe.batch_size, recipe.eps)
    ones = torch.ones(len(problem.train), dtype=F64)

    def measures(weights: Tensor) -> Tensor:
        return losses_at(problem.task, problem.queries, adam_with_fixed_scale(problem, recipe, diagonal, weights, at))

    return -jacrev(measures)(ones).detach()


# --- the second moment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 6, 7, 50])
def test_the_second_moment_is_the_mean_square_over_all_batches_there_are(batch_size):
    problem = mlp_regression(n_train=7)
    rows = jacrev(lambda p: losses_at(problem.task, problem.train, p))(flat_start(problem.task)).detach()
    sizes = [min(batch_size, 7)] * (7 // min(batch_size, 7)) + ([7 % batch_size] if 7 % batch_size else [])
    if batch_size > 7:
        sizes = [7]
    of_size = {
        b: torch.stack([rows[list(c)].mean(0).square() for c in itertools.combinations(range(7), b)]).mean(0)
        for b in set(sizes)
    }
    wanted = torch.stack([of_size[b] for b in sizes]).mean(0)
    assert_same(second_moment(problem.task, problem.train, batch_size), wanted, ROUNDING)
    found = adam_preconditioner(problem.task, problem.train, batch_size, 1e-3)
    assert_same(found, 1 / (wanted.sqrt() + 1e-3), ROUNDING)


def test_one_example_has_no_variance():
    assert variance_share(1, 1) == 0.0
    assert variance_share(10, 1) == 1.0


def test_a_parameter_without_gradient_is_divided_by_eps_alone():
    problem = linear_regression()
    x, y = problem.train.all()
    x = x.clone()
    x[:, 1] = 0.0
    train = Examples((x, y))
    found = adam_preconditioner(problem.task, train, 4, 1e-3)
    assert float(found[1]) == pytest.approx(1000.0, rel=1e-12)
    with pytest.raises(NumericalError, match=r"1 parameters, the first in 'weight'.*eps=0.*positive `eps`"):
        adam_preconditioner(problem.task, train, 4, 0.0)
    recipe = Recipe(lr=1e-3, batch_size=4, epochs=2, optimizer="adam")
    assert bool(attribute(problem.task, train, problem.queries, "horizon_ahead", recipe=recipe).values.isfinite().all())


def test_small_steps_go_where_torch_adam_goes():
    """Full batch, a learning rate so small that gradients stay: the displacement of the real optimizer, to O(lr)."""
    problem = mlp_regression()
    recipe = recipe_of(problem, lr=1e-6, eps=1e-3)
    start, model = flat_start(problem.task), copy.deepcopy(problem.task.model)
    optimizer, (x, y) = recipe.make_optimizer(model.parameters()), problem.train.all()
    for _ in range(AT):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    wanted = torch.cat([p.detach().flatten() for p in model.parameters()]) - start
    diagonal = adam_preconditioner(problem.task, problem.train, recipe.batch_size, recipe.eps)
    curvature = fit_gauss_newton(problem.task, problem.train, preconditioner=diagonal)
    found = curvature.displacement(Horizon(recipe.scaled_dynamics(AT, len(x))))
    # Gradients change by about lr T times a slope, relative to gradients of size 0.01 to 1 and eps: below a percent.
    assert_same(found, wanted, 1e-2)
    assert float(wanted.abs().max()) > 0.5 * AT * recipe.lr


# --- the preconditioned curvature -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_preconditioner_of_ones_changes_nothing(form):
    problem = classifier()
    plain = fit_gauss_newton(problem.task, problem.train, form=form)
    same = fit_gauss_newton(problem.task, problem.train, form=form, preconditioner=torch.ones(plain.linear.n_params))
    queries = torch.randn(3, plain.linear.n_params, dtype=F64, generator=torch.Generator().manual_seed(0))
    steps = Steps.of(0.5, 9, momentum=0.5, weight_decay=0.01)
    assert_same(same.scores(Horizon(steps), queries), plain.scores(Horizon(steps), queries), ROUNDING)
    assert_same(same.look_ahead(steps, queries), plain.look_ahead(steps, queries), ROUNDING)
    one, two = (c.displacement(Horizon(steps), 0.01) for c in (plain, same))
    assert_same(two, one, ROUNDING)
    assert_same(same.slopes_after(two), plain.slopes_after(one), ROUNDING)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_filter_of_the_scaled_dense_matrix(form):
    problem = classifier()
    plain = fit_gauss_newton(problem.task, problem.train)
    n, n_params = len(problem.train), plain.linear.n_params
    generator = torch.Generator().manual_seed(0)
    diagonal = torch.rand(n_params, dtype=F64, generator=generator) * 5 + 0.1
    queries = torch.randn(3, n_params, dtype=F64, generator=generator)
    curvature = fit_gauss_newton(problem.task, problem.train, form=form, preconditioner=diagonal)
    rows = torch.cat([block for _, block in plain.linear.factor_blocks()])
    matrix = rows.T @ rows
    gradients = jacrev(lambda p: losses_at(problem.task, problem.train, p))(flat_start(problem.task)).detach()
    # T steps of theta <- theta - lr P (C theta - force): no square root of P, no eigenvalue.
    lr, total = 0.1, torch.zeros(n_params, n_params, dtype=F64)
    for _ in range(12):
        total = total - lr * diagonal[:, None] * (matrix @ total - torch.eye(n_params, dtype=F64))
    used = Horizon(Steps.of(lr, 12))
    assert_same(curvature.scores(used, queries), queries @ total @ gradients.T / n, FORM[form])
    moved = curvature.displacement(used)
    assert_same(moved, -total @ gradients.mean(0), FORM[form])
    assert_same(curvature.slopes_after(moved), plain.slopes_after(moved), ROUNDING)
    trace = float((matrix.diagonal() * diagonal).sum())
    assert curvature.form.mean_eigenvalue == pytest.approx(trace / n_params, rel=1e-10)


@pytest.mark.parametrize(
    ("diagonal", "error", "message"),
    [
        (torch.ones(3), InputError, r"each of the 38 parameters; got shape \(3,\)"),
        (torch.zeros(38), InputError, "smallest entry 0"),
        (torch.full((38,), math.inf), NonFiniteError, "`preconditioner`"),
    ],
)
def test_what_is_no_preconditioner_is_refused(diagonal, error, message):
    problem = classifier()
    with pytest.raises(error, match=message):
        fit_gauss_newton(problem.task, problem.train, preconditioner=diagonal)


# --- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_look_ahead_is_the_derivative_of_adam_with_a_fixed_scale_for_linear_regression(options, form):
    problem = linear_regression()
    recipe = recipe_of(problem, **options)
    found = attribute(problem.task, problem.train, problem.queries, "horizon_ahead", recipe=recipe, at=AT, form=form)
    assert_same(found.values, scores_of_run(problem, recipe, AT), FORM[form])


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_size_of_a_batch_sets_the_scale(batch_size):
    problem = linear_regression()
    recipe, whole = recipe_of(problem, batch_size), recipe_of(problem)
    found, full = (
        attribute(problem.task, problem.train, problem.queries, "horizon_ahead", recipe=r, at=AT)
        for r in (recipe, whole)
    )
    assert_same(found.values, scores_of_run(problem, recipe, AT), EXACT)
    assert float((found.values - full.values).abs().max()) > 0.1 * float(full.values.abs().max())
    diagonal = adam_preconditioner(problem.task, problem.train, batch_size, recipe.eps)
    facts = found.provenance["settings"]
    wanted = {"mean": float(diagonal.mean()), "min": float(diagonal.min()), "max": float(diagonal.max())}
    assert facts["preconditioner"] == pytest.approx(wanted, rel=1e-12)
    assert (facts["lr"], facts["n_steps"], facts["beta1"]) == (LR, AT, 0.9)
    assert (facts["form"], facts["decoupled_weight_decay"]) == ("primal", 0.0)


def test_from_a_minimum_plain_horizon_is_the_derivative_too():
    """With batches of less than all the scale is finite where the mean gradient is zero."""
    problem = linear_regression()
    with torch.no_grad():
        problem.task.model.weight.copy_(problem.minimum()[None])
    recipe = recipe_of(problem, 5)
    given = problem.task, problem.train, problem.queries
    wanted = scores_of_run(problem, recipe, AT)
    for method, options in (
        ("horizon", {}),
        ("horizon_ahead", {}),
        ("horizon_ahead", {"look_ahead": "both_shifts"}),
    ):
        assert_same(attribute(*given, method, recipe=recipe, at=AT, **options).values, wanted, EXACT)


def test_flow_is_the_limit_of_small_learning_rates():
    """At one lr T each halving of lr halves the gap: the momentum of Adam neither lags nor leads."""
    problem = mlp_regression()
    given = problem.task, problem.train, problem.queries
    gaps = []
    for split in (64, 128, 256):
        recipe = Recipe(lr=0.5 / split, batch_size=5, steps=2 * split, optimizer="adam", betas=(0.5, 0.9))
        flow = attribute(*given, "horizon", recipe=recipe, flow=True)
        assert flow.provenance["settings"]["time"] == pytest.approx(1.0, rel=1e-12)
        gaps.append(float((attribute(*given, "horizon", recipe=recipe).values - flow.values).norm()))
    for coarse, fine in itertools.pairwise(gaps):
        assert coarse / fine == pytest.approx(2.0, rel=0.15)


def test_groups_add_up_with_a_preconditioner():
    problem = classifier()
    given = problem.task, problem.train, problem.queries
    recipe = recipe_of(problem, 5, lr=1e-3)
    groups = ParameterGroups.of(problem.task.layout)
    whole = attribute(*given, "horizon_ahead", recipe=recipe).values
    total = torch.zeros_like(whole)
    for name in groups.names:
        only = GroupWeights.only(groups, name)
        size = only.of_parameter(problem.task.layout).max()
        total += attribute(*given, "horizon_ahead", recipe=recipe, weights=only).values / float(size)
    assert_same(total, whole, ROUNDING)


def test_it_is_nearer_to_real_adam_than_gradients_alone():
    """The exact derivative of real Adam, whose second moment moves, on a trained network with real data."""
    split = load("breast_cancer")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    task = train_model(Task.classification(model), split.train, Recipe(lr=0.05, batch_size=64, epochs=10))
    given = task, split.train, split.test.subset(range(8))
    recipe = Recipe(lr=1e-4, batch_size=64, epochs=5, optimizer="adam")
    wanted = attribute(*given, "unrolled", recipe=recipe).values
    ahead = attribute(*given, "horizon_ahead", recipe=recipe).values
    assert agreement(ahead, wanted) > agreement(attribute(*given, "grad_dot").values, wanted)
    # It predicts a change, not only an order.
    assert float(ahead.norm() / wanted.norm()) == pytest.approx(1.0, abs=0.3)


def agreement(found: Tensor, wanted: Tensor) -> float:
    """Pearson's correlation over train examples, mean over queries."""
    one, two = (v - v.mean(1, keepdim=True) for v in (found, wanted))
    return float(nn.functional.cosine_similarity(one, two).mean())


# --- the recurrence ---------------------------------------------------------------------------------------------------


def written_out(s: Tensor, lr: list[float], beta1: float, decay: float) -> Tensor:
    """Displacement of Adam on a quadratic of curvature s under a unit force, scale 1, as it is written down."""
    z, first = torch.zeros_like(s), torch.zeros_like(s)
    for t, rate in enumerate(lr):
        gradient = s * z - 1
        first = beta1 * first + (1 - beta1) * gradient
        z = z * (1 - rate * decay) - rate * first / (1 - beta1 ** (t + 1))
    return z


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_are_adam_written_out(beta1, decay):
    s = torch.linspace(0, 30, 11, dtype=F64)
    steps = AdamSteps.following((0.05,) * 40, beta1, decay)
    assert_same(Horizon(steps)(s), written_out(s, [0.05] * 40, beta1, decay), ROUNDING)
    first = steps.first(7)
    assert isinstance(first, AdamSteps)
    assert_same(Horizon(first)(s), written_out(s, [0.05] * 7, beta1, decay), ROUNDING)


def test_steps_follow_a_schedule_but_not_with_decay():
    rates = tuple(0.05 * (1 - t / 40) for t in range(40))
    s = torch.linspace(0, 30, 11, dtype=F64)
    assert_same(Horizon(AdamSteps.following(rates, 0.9))(s), written_out(s, list(rates), 0.9, 0.0), ROUNDING)
    assert AdamSteps.following(rates, 0.9).to_dict()["lr"] == list(rates)
    with pytest.raises(InputError, match="constant learning rate only"):
        AdamSteps.following(rates, 0.9, 0.1)
    with pytest.raises(InputError, match="at most the 40 steps"):
        AdamSteps.following(rates, 0.9).first(41)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_stable_learning_rates_are_accepted_up_to_where_adam_diverges(beta1, decay):
    lr = 0.05
    bound = AdamSteps.following((lr,), beta1, decay).stability_bound / lr - decay
    for factor, stays in ((0.99, True), (1.01, False)):
        s = torch.tensor([factor * bound], dtype=F64)
        steps = AdamSteps.following((lr,) * 4000, beta1, decay)
        end = written_out(s, [lr] * 4000, beta1, decay)
        assert (float(end.abs()) < 10) is stays
        if stays:
            Horizon(steps).check(0.0, float(s))
        else:
            with pytest.raises(NumericalError, match=r"with lr 0\.05 diverges"):
                Horizon(steps).check(0.0, float(s))


def test_a_flow_lasts_as_long_as_the_learning_rates_add_up():
    assert Flow.matching(AdamSteps.following((0.1, 0.2, 0.3), 0.9)).time == pytest.approx(0.6, rel=1e-12)
