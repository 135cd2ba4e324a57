"""horizon, horizon_ahead and ridge influence against training that really happens.

The reference is the definition of a score: the derivative of the query's measure, at the end of a run of full-batch SGD
(or of a closed-form ridge), in the weight of one example with 1/n kept fixed.
"""

import itertools

import pytest
import torch
from torch import Tensor, nn

from whence import Damping, Recipe, attribute
from whence.curvature import FORMS
from whence.data import Examples
from whence.errors import NumericalError, UnsupportedError
from whence.task import Task

F64 = torch.float64
# Both sides add up a few dozen steps in another order; an eigen-decomposition on one, autograd on the other.
EXACT = 1e-9
# Lanczos stops when f(C) v changes by 1e-8; the spaces are complete in most of these problems, not in all.
FORM = {"dual": EXACT, "primal": EXACT, "krylov": 1e-7}
# Central differences with one step of Richardson: truncation about h^4 = 1e-12, rounding 1e-16 / h = 1e-13.
DIFFERENCES = 1e-8
STEP = 1e-3

OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.8},
    "momentum and decay": {"momentum": 0.8, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "linear": {"schedule": "linear"},
    "cosine": {"schedule": "cosine"},
    "warm-up": {"warmup_steps": 5},
    "all": {"schedule": "cosine", "warmup_steps": 4, "momentum": 0.7, "nesterov": True, "weight_decay": 0.05},
}
LR, AT, TOTAL = 0.11, 17, 24  # measured before the schedule's end


def recipe_of(problem, options, lr=LR, total=TOTAL):
    return Recipe(lr=lr, batch_size=len(problem.train), epochs=total, **options)


def differences(measures, n, step=STEP):
    """-d measures / d weight_i at weights 1 by central differences; `measures` maps weights (n,) to (m,)."""

    def slope(i: int, h: float) -> Tensor:
        up, down = torch.ones(n, dtype=F64), torch.ones(n, dtype=F64)
        up[i] += h
        down[i] -= h
        return (measures(up) - measures(down)) / (2 * h)

    return -torch.stack([(4 * slope(i, step / 2) - slope(i, step)) / 3 for i in range(n)], dim=1)


def torch_sgd(problem, recipe, weights, at):
    """Query losses after `at` steps of `torch.optim.SGD` on the weighted mean loss."""
    x, y = problem.train.all()
    model = nn.Linear(x.shape[1], y.shape[1]).double()
    model.load_state_dict(problem.task.model.state_dict())
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    for step in range(at):
        optimizer.param_groups[0]["lr"] = recipe.lr_at(step, len(x))
        optimizer.zero_grad()
        ((weights * (model(x) - y).square().mean(1)).sum() / len(x)).backward()
        optimizer.step()
    queries, wanted = problem.queries.all()
    with torch.no_grad():
        return (model(queries) - wanted).square().mean(1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_reference_run_is_torch_sgd(options, regression, run_of, assert_same):
    problem = regression(n_outputs=2, n_train=6)
    found = run_of(LR, AT, TOTAL, **options).scores(problem)
    wanted = differences(lambda w: torch_sgd(problem, recipe_of(problem, options), w, AT), 6)
    assert_same(found, wanted, DIFFERENCES)


# --- look-ahead -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_look_ahead_is_the_derivative_of_the_run_for_linear_regression(
    n_outputs, options, form, regression, run_of, assert_same
):
    problem = regression(n_outputs=n_outputs)
    scores = attribute(*problem, "horizon_ahead", recipe=recipe_of(problem, options), at=AT, form=form)
    wanted = run_of(LR, AT, TOTAL, **options).scores(problem)
    assert_same(scores.values, wanted, FORM[form])


def test_look_ahead_over_many_amounts_and_many_steps(regression, run_of, assert_same):
    """400 steps: the closed form of the kernel, where 17 take a product of paths."""
    problem = regression()
    recipe = recipe_of(problem, {}, total=400)
    by_amount = attribute(*problem, "horizon_ahead", recipe=recipe, at=[1, 2, 30, 400])
    assert list(by_amount) == [1, 2, 30, 400]
    for amount, scores in by_amount.items():
        assert_same(scores.values, run_of(LR, amount).scores(problem), EXACT)
        assert scores.provenance["amount"] == amount


def test_look_ahead_of_a_bent_measure_is_taken_where_the_run_ends(regression, run_of, assert_same):
    """A measure far from quadratic, and better when higher: its slope is that of the final outputs, exactly."""
    problem = regression(measure=lambda z, batch: (z[:, 0] ** 3 - batch[1][:, 0]).exp(), lower_is_better=False)
    scores = attribute(*problem, "horizon_ahead", recipe=recipe_of(problem, {}), at=AT)
    assert_same(scores.values, run_of(LR, AT, TOTAL).scores(problem), EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
@pytest.mark.parametrize("n_train", [6, 30])
def test_look_ahead_is_the_derivative_of_the_linearised_run_of_a_network(
    n_train, options, form, regression, run_of, assert_same
):
    problem = regression(n_train=n_train, hidden=4, n_outputs=2)
    scores = attribute(*problem, "horizon_ahead", recipe=recipe_of(problem, options), at=AT, form=form)
    run = run_of(LR, AT, TOTAL, **options)
    assert_same(scores.values, run.scores(problem, linearised=True), FORM[form])
    # The comparison would notice the bend of the network itself: the run that is not linearised differs.
    assert float((scores.values - run.scores(problem)).abs().max()) > 1e-3 * float(scores.values.abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_one_step_of_look_ahead_is_exact_for_any_loss_on_a_linear_model(form, classification, run_of, assert_same):
    problem = classification()
    scores = attribute(*problem, "horizon_ahead", recipe=recipe_of(problem, {}), at=1, form=form)
    assert_same(scores.values, run_of(LR, 1).scores(problem), EXACT)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_for_cross_entropy_the_error_of_look_ahead_shrinks_with_the_square_of_the_learning_rate(
    n_classes, classification, run_of
):
    """Exact look-ahead neglects the bend of the slopes, (lr T)^2; both shifts and no look-ahead are off by lr T."""
    problem = classification(n_classes=n_classes)
    methods = {
        "exact": ("horizon_ahead", {"look_ahead": "exact"}),
        "both_shifts": ("horizon_ahead", {"look_ahead": "both_shifts"}),
        "none": ("horizon", {}),
    }

    def error(name: str, lr: float) -> float:
        method, options = methods[name]
        found = attribute(*problem, method, recipe=recipe_of(problem, {}, lr=lr), at=8, **options).values
        wanted = run_of(lr, 8).scores(problem)
        return float((found - wanted).norm() / wanted.norm())

    for name, order in (("exact", 2), ("both_shifts", 1), ("none", 1)):
        errors = [error(name, lr) for lr in (0.02, 0.01, 0.005)]
        for coarse, fine in itertools.pairwise(errors):
            assert coarse / fine == pytest.approx(2**order, rel=0.15)  # the next order is a tenth of this one
    assert error("exact", 0.005) < error("both_shifts", 0.005) / 5


def test_both_shifts_are_close_to_the_exact_look_ahead(regression):
    problem = regression(n_train=20, n_query=8)
    recipe = recipe_of(problem, {}, total=40)
    for amount in (1, 5, 20, 40):
        exact = attribute(*problem, "horizon_ahead", recipe=recipe, at=amount).values
        shifted = attribute(*problem, "horizon_ahead", recipe=recipe, at=amount, look_ahead="both_shifts").values
        plain = attribute(*problem, "horizon", recipe=recipe, at=amount).values
        cosine = nn.functional.cosine_similarity(exact, shifted)
        assert float(cosine.mean()) > 0.9
        assert float((shifted - exact).norm()) < float((plain - exact).norm())


def test_where_nothing_moves_every_look_ahead_is_the_plain_horizon(regression, assert_same):
    problem = at_minimum(regression(n_train=10), 0.0)
    recipe = recipe_of(problem, {})
    plain = attribute(*problem, "horizon", recipe=recipe, at=AT).values
    for form, look_ahead in itertools.product(FORMS, ("exact", "both_shifts")):
        found = attribute(*problem, "horizon_ahead", recipe=recipe, at=AT, form=form, look_ahead=look_ahead)
        assert_same(found.values, plain, FORM[form])


# --- plain horizon ----------------------------------------------------------------------------------------------------


def at_minimum(problem, weight_decay):
    """The same linear regression at the minimum of its mean loss plus decay / 2 |parameters|^2."""
    x, y = problem.train.all()
    ones = torch.ones(len(x), 1, dtype=F64)
    design = torch.cat([x, ones], 1)
    n, c = y.shape
    matrix = 2 / (n * c) * design.T @ design + weight_decay * torch.eye(design.shape[1], dtype=F64)
    solution = torch.linalg.solve(matrix, 2 / (n * c) * design.T @ y)
    with torch.no_grad():
        problem.task.model.weight.copy_(solution[:-1].T)
        problem.task.model.bias.copy_(solution[-1])
    return problem


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_from_a_stationary_start_horizon_is_the_derivative_of_the_run(
    n_outputs, options, regression, run_of, assert_same
):
    problem = at_minimum(regression(n_outputs=n_outputs), options.get("weight_decay", 0.0))
    scores = attribute(*problem, "horizon", recipe=recipe_of(problem, options), at=AT)
    assert_same(scores.values, run_of(LR, AT, TOTAL, **options).scores(problem), EXACT)
    # Not so from elsewhere: without look-ahead the start must be stationary.
    with torch.no_grad():
        problem.task.model.bias += 1.0
    moved = attribute(*problem, "horizon", recipe=recipe_of(problem, options), at=AT).values
    wanted = run_of(LR, AT, TOTAL, **options).scores(problem)
    assert float((moved - wanted).norm()) > 0.1 * float(wanted.norm())


@pytest.mark.parametrize("form", FORMS)
def test_one_step_of_horizon_is_lr_over_n_grad_dot(form, classification, assert_same):
    problem = classification(hidden=5)
    dot = attribute(*problem, "grad_dot").values
    one = attribute(*problem, "horizon", recipe=recipe_of(problem, {}), at=1, form=form).values
    assert_same(one, LR / len(problem.train) * dot, EXACT)


def test_much_training_is_the_pseudo_inverse(regression, dense, assert_same):
    """Six examples, four parameters of which one is never touched: C is singular, the scores are finite."""
    problem = regression(n_train=6)
    x, y = problem.train.all()
    x = x.clone()
    x[:, 1] = 0.0
    problem = type(problem)(problem.task, Examples((x, y)), problem.queries)
    parts = dense(problem)
    wanted = parts.measures @ torch.linalg.pinv(parts.gauss_newton, hermitian=True) @ parts.losses.T / 6
    scores = attribute(*problem, "horizon", recipe=recipe_of(problem, {}, total=20_000))
    assert_same(scores.values, wanted, 1e-8)  # lr T = 2,200: the dual form loses three digits


@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_row_without_curvature_is_followed_for_lr_times_steps(n_classes, classification, assert_same):
    """All rows sure, one of them wrong: no curvature anywhere, and the wrong row pushes at every step."""
    problem = classification(n_classes=n_classes, n_train=5)
    x, _ = problem.train.all()
    with torch.no_grad():
        problem.task.model.weight.zero_()
        problem.task.model.bias.zero_()
        problem.task.model.bias[0] = 60.0
    labels = torch.zeros(5, dtype=torch.long)
    labels[3] = 1
    problem = type(problem)(problem.task, Examples((x, labels)), problem.queries)
    dot = attribute(*problem, "grad_dot").values
    found = attribute(*problem, "horizon", recipe=recipe_of(problem, {}), at=AT).values
    assert_same(found, LR * AT / 5 * dot, EXACT)
    assert bool((found[:, 3].abs() > 1e6 * found[:, [0, 1, 2, 4]].abs().max(1).values).all())


def test_flow_is_the_limit_of_many_small_steps(regression):
    """At one time lr T the horizon approaches the flow; each halving of the steps halves the gap."""
    problem = regression(hidden=4)
    flow = attribute(*problem, "horizon", recipe=recipe_of(problem, {}, lr=0.1, total=10), flow=True).values
    gaps = []
    for split in (16, 32, 64):
        recipe = recipe_of(problem, {}, lr=0.1 / split, total=10 * split)
        gaps.append(float((attribute(*problem, "horizon", recipe=recipe).values - flow).norm()))
    for coarse, fine in itertools.pairwise(gaps):
        assert coarse / fine == pytest.approx(2.0, rel=0.1)


def test_epochs_count_batches(regression, assert_same):
    problem = regression(n_train=12)
    epochs = Recipe(lr=0.05, batch_size=5, epochs=4)  # three batches an epoch
    steps = Recipe(lr=0.05, batch_size=5, steps=12)
    for method in ("horizon", "horizon_ahead"):
        by_epoch = attribute(*problem, method, recipe=epochs, at=3)
        assert by_epoch.provenance["settings"]["n_steps"] == 9
        assert torch.equal(by_epoch.values, attribute(*problem, method, recipe=steps, at=9).values)


@pytest.mark.parametrize("method", ["horizon", "horizon_ahead"])
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"clip_norm": 1.0}, "clipped"),
        ({"optimizer": "adam", "clip_norm": 1.0}, "clipped"),
        ({"optimizer": "adam", "weight_decay": 0.1}, r"optimizer 'adam' with weight_decay=0.1.*adamw"),
        ({"optimizer": "adamw", "weight_decay": 0.1, "schedule": "linear"}, r"weight_decay=0.1, schedule 'linear'"),
        ({"optimizer": "adamw", "weight_decay": 0.1, "warmup_steps": 3}, "3 warm-up steps"),
    ],
)
def test_recipes_that_no_filter_describes_are_refused_before_the_curvature(
    method, options, what, regression, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("the curvature was fitted")

    monkeypatch.setattr("whence.methods.inputs.fit_gauss_newton", never)
    problem = regression()
    with pytest.raises(UnsupportedError, match=rf"{what}.*influence_gn or grad_dot"):
        attribute(*problem, method, recipe=recipe_of(problem, options))


@pytest.mark.parametrize("method", ["horizon", "horizon_ahead"])
def test_a_divergent_recipe_names_a_learning_rate_that_would_do(method, regression, dense):
    problem = regression()
    largest = float(torch.linalg.matrix_norm(dense(problem).gauss_newton, ord=2))
    with pytest.raises(NumericalError, match="diverges") as refusal:
        attribute(*problem, method, recipe=recipe_of(problem, {}, lr=2.0001 / largest))
    named = float(str(refusal.value).split("lr below ")[1].split(",")[0])
    assert named == pytest.approx(2 / largest, rel=1e-5)  # six digits are printed
    attribute(*problem, method, recipe=recipe_of(problem, {}, lr=0.999 * named))


# --- ridge ------------------------------------------------------------------------------------------------------------


def ridge(x: Tensor, y: Tensor, strength: float, weights: Tensor) -> Tensor:
    """Minimum of sum_i weight_i (x_i p - y_i)^2 + strength |p|^2."""
    matrix = (x * weights[:, None]).T @ x + strength * torch.eye(x.shape[1], dtype=F64)
    return torch.linalg.solve(matrix, (x * weights[:, None]).T @ y)


def ridge_problem(regression, n_train, strength, n_query=6):
    problem = regression(n_train=n_train, n_query=n_query, bias=False)
    solution = ridge(*problem.train.all(), strength, torch.ones(n_train, dtype=F64))
    with torch.no_grad():
        problem.task.model.weight.copy_(solution.T)
    return problem


def query_losses(problem, solution):
    x, y = problem.queries.all()
    return (x @ solution - y).square()[:, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", [0.3, 5.0])
def test_influence_is_the_derivative_of_ridge_regression(form, strength, regression, assert_same):
    """The sum of squares has twice the Gram matrix as Hessian and C is a mean: a ridge rho is damping 2 rho / n."""
    n = 15
    problem = ridge_problem(regression, n, strength)
    x, y = problem.train.all()
    damping = Damping.absolute(2 * strength / n)
    scores = attribute(*problem, "influence_gn", damping=damping, form=form)
    assert scores.unit == "loss"
    # Closed form: d p / d weight_i = -(X^T X + rho)^-1 x_i (x_i p - y_i).
    solution = ridge(x, y, strength, torch.ones(n, dtype=F64))
    inverse = torch.linalg.inv(x.T @ x + strength * torch.eye(x.shape[1], dtype=F64))
    at, target = problem.queries.all()
    wanted = 2 * (at @ solution - target) * (at @ inverse @ x.T) * (x @ solution - y).T
    assert_same(scores.values, wanted, FORM[form])
    # And by solving again with slightly other weights.
    solved = differences(lambda w: query_losses(problem, ridge(x, y, strength, w)), n)
    assert_same(scores.values, solved, DIFFERENCES)


def test_influence_predicts_leaving_out_and_the_better_the_more_examples(regression):
    """The first order neglects the leverage of the example itself, about n_params / n."""
    errors = []
    for n in (20, 80, 320):
        problem = ridge_problem(regression, n, strength=0.5, n_query=10)
        x, y = problem.train.all()
        scores = attribute(*problem, "influence_gn", damping=Damping.absolute(2 * 0.5 / n)).values
        full = query_losses(problem, ridge(x, y, 0.5, torch.ones(n, dtype=F64)))
        without = torch.stack(
            [query_losses(problem, ridge(x, y, 0.5, 1.0 - nn.functional.one_hot(torch.tensor(i), n))) for i in range(n)]
        ).T
        really = without - full[:, None]  # positive: leaving i out made the loss higher, so i supports
        errors.append(float((scores - really).norm() / really.norm()))
        strong = scores.abs() > 0.25 * scores.abs().max()  # small ones can be overruled by the second order
        assert bool((scores.sign() == really.sign())[strong].all())
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
    assert errors[2] < 0.05


def test_hessian_and_conjugate_gradients_agree_with_ridge(regression, assert_same):
    problem = ridge_problem(regression, 15, 0.3)
    damping = Damping.absolute(2 * 0.3 / 15)
    wanted = attribute(*problem, "influence_gn", damping=damping).values
    assert_same(attribute(*problem, "influence_hessian", damping=damping).values, wanted, EXACT)
    assert_same(attribute(*problem, "influence_cg", damping=damping, tolerance=1e-12).values, wanted, EXACT)


def test_an_example_that_says_what_the_query_says_supports_it():
    """The sign, on paper: one parameter at 0, targets +1 and -1; training pulls both ways, and a +1 helps a +1."""
    model = nn.Linear(1, 1, bias=False).double().eval()
    with torch.no_grad():
        model.weight.zero_()
    one, targets = torch.ones(2, 1, dtype=F64), torch.tensor([[1.0], [-1.0]], dtype=F64)
    train, queries = Examples((one, targets)), Examples((one[:1], targets[:1]))
    task = Task.regression(model)
    recipe = Recipe(lr=0.1, batch_size=2, steps=1)
    # a = 2 (0 - 1) = -2 and b = -+2, C = 2: horizon 0.1 / 2 * 4, influence 4 / 2 / (2 + 2).
    expected = {"grad_dot": 4.0, "grad_cos": 1.0, "horizon": 0.2, "horizon_ahead": 0.2, "influence_gn": 0.5}
    expected |= {"influence_cg": 0.5, "influence_hessian": 0.5}
    for method, size in expected.items():
        options = {"damping": Damping.absolute(2.0)} if method.startswith("influence") else {}
        options |= {"recipe": recipe} if method.startswith("horizon") else {}
        scores = attribute(task, train, queries, method, **options).values
        torch.testing.assert_close(scores, torch.tensor([[size, -size]], dtype=F64), rtol=1e-12, atol=0.0)
