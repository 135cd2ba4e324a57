"""Influence functions through `attribute` against dense inverses, and what they refuse."""

import pytest
import torch
from torch import nn

from whence import Damping, Recipe, attribute, damped_inverse, first_order, flow
from whence import horizon as horizon_of
from whence.curvature import FORMS
from whence.data import Examples
from whence.errors import ConvergenceError, InputError, NotPositiveDefiniteError, UnsupportedError
from whence.task import Task

F64 = torch.float64
SOLVED = 1e-9  # an eigen-decomposition here, a linear solve there; condition numbers of about 100
FORM = {"dual": SOLVED, "primal": SOLVED, "krylov": 1e-7}  # Lanczos stops at a change of 1e-8


def inverse_scores(parts, curvature, damping, n):
    eye = torch.eye(len(curvature), dtype=F64)
    return parts.measures @ torch.linalg.solve(curvature + damping * eye, parts.losses.T) / n


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_influence_gn_is_the_dense_inverse_in_every_unit_of_damping(kind, form, dense, assert_same, request):
    problem = request.getfixturevalue(kind)(hidden=4)
    parts, n = dense(problem), len(problem.train)
    p = len(parts.gauss_newton)
    absolute = {
        Damping.absolute(0.02): 0.02,
        Damping.relative(0.1): 0.1 * float(parts.gauss_newton.trace()) / p,
        Damping.mean_square_gradient(5.0): 5.0 * float(parts.losses.square().mean()),
    }
    for damping, value in absolute.items():
        scores = attribute(*problem, "influence_gn", damping=damping, form=form)
        assert_same(scores.values, inverse_scores(parts, parts.gauss_newton, value, n), FORM[form])
        used = scores.provenance["settings"]
        assert used["filter"] == "damped_inverse"
        assert used["form"] == form
        assert used["damping"] == pytest.approx(value, rel=1e-12)
    default = attribute(*problem, "influence_gn", form=form)
    assert_same(
        default.values, inverse_scores(parts, parts.gauss_newton, absolute[Damping.relative(0.1)], n), FORM[form]
    )


def test_influence_gn_takes_any_filter(regression, assert_same):
    problem = regression(hidden=4)
    n = len(problem.train)
    dot = attribute(*problem, "grad_dot").values
    found = attribute(*problem, "influence_gn", filter=first_order(0.3)).values
    assert_same(found, 0.3 / n * dot, SOLVED)
    recipe = Recipe(lr=0.1, batch_size=5, epochs=6, momentum=0.5)  # three batches of at most five
    assert_same(
        attribute(*problem, "influence_gn", filter=horizon_of(recipe, 4)).values,
        attribute(*problem, "horizon", recipe=recipe, at=4).values,
        SOLVED,
    )
    follows = attribute(*problem, "influence_gn", filter=horizon_of(recipe, flow=True)).values
    assert_same(follows, attribute(*problem, "horizon", recipe=recipe, flow=True).values, SOLVED)
    assert_same(follows, attribute(*problem, "influence_gn", filter=flow(0.1 * 18 / 0.5)).values, SOLVED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.1}, r"`damping` must be a `Damping`.*got 0.1.*Damping.absolute"),
        ({"damping": 0}, r"`damping` must be a `Damping`.*got 0\."),
        ({"filter": "horizon"}, r"`filter` must be a spectral filter; got 'horizon'.*whence.horizon\(recipe\)"),
        ({"filter": Recipe(lr=0.1, batch_size=4, epochs=1)}, "`filter` must be a spectral filter"),
        ({"damping": Damping.absolute(1.0), "filter": flow(1.0)}, "either `damping` or `filter`"),
    ],
)
def test_what_is_no_damping_or_filter_is_refused_before_the_curvature(options, message, regression, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the curvature was fitted")

    monkeypatch.setattr("whence.methods.inputs.fit_gauss_newton", never)
    monkeypatch.setattr("whence.methods.influence_hessian.fit_hessian", never)
    problem = regression()
    with pytest.raises(InputError, match=message):
        attribute(*problem, "influence_gn", **options)
    if set(options) == {"damping"}:
        for method in ("influence_cg", "influence_hessian"):
            with pytest.raises(InputError, match=message):
                attribute(*problem, method, **options)


# --- orientation ------------------------------------------------------------------------------------------------------


def every_method(n_train):
    recipe = Recipe(lr=0.05, batch_size=n_train, epochs=7, momentum=0.5, weight_decay=0.01)
    return {
        "grad_dot": {},
        "grad_cos": {},
        "influence_gn": {},
        "influence_cg": {"tolerance": 1e-10},
        "influence_hessian": {"damping": Damping.absolute(2.0)},
        "horizon": {"recipe": recipe},
        "horizon_ahead": {"recipe": recipe},
    }


def assert_equal_but_for_the_basis(method, one, other):
    """To the last bit; a space that all queries share has a basis of its own for each sign, and solves to 1e-5."""
    if method == "influence_cg":
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(one.abs().max()))
    else:
        assert torch.equal(one, other), method


def test_log_probability_scores_are_loss_scores(classification):
    """The measure changes its sign and so does the orientation."""
    loss, log_probability = classification(hidden=4), classification(hidden=4, measure="log_probability")
    for method, options in every_method(len(loss.train)).items():
        one, two = attribute(*loss, method, **options), attribute(*log_probability, method, **options)
        assert_equal_but_for_the_basis(method, one.values, two.values)
        assert (float(one.orientation[0]), float(two.orientation[0])) == (1.0, -1.0)


def test_a_measure_and_its_negative_in_the_other_direction_give_the_same_scores(regression):
    def cube(outputs, batch):
        return (outputs[:, 0] - batch[1][:, 0]) ** 3

    def minus_cube(outputs, batch):
        return -cube(outputs, batch)

    low = regression(hidden=4, measure=cube, lower_is_better=True)
    high = regression(hidden=4, measure=minus_cube, lower_is_better=False)
    for method, options in every_method(len(low.train)).items():
        one, two = attribute(*low, method, **options), attribute(*high, method, **options)
        assert_equal_but_for_the_basis(method, one.values, two.values)


@pytest.mark.parametrize("measure", ["margin", "logit"])
def test_higher_is_better_measures_score_what_keeps_them_up(measure, classification, run_of, assert_same):
    """Through the run itself: a positive score means that without the example the margin ends lower."""
    problem = classification(measure=measure)
    recipe = Recipe(lr=0.05, batch_size=len(problem.train), epochs=1)
    scores = attribute(*problem, "horizon_ahead", recipe=recipe)
    assert_same(scores.values, run_of(0.05, 1).scores(problem), SOLVED)
    assert scores.unit == measure
    labels = [examples.all()[1] for examples in (problem.queries, problem.train)]
    same = labels[0][:, None] == labels[1][None, :]
    assert float(scores.values[same].mean()) > 0 > float(scores.values[~same].mean())


# --- conjugate gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_influence_cg_is_influence_gn_to_its_tolerance(kind, tolerance, dense, request):
    """|x - x*| is at most the residual over the damping, the residual at most tolerance times |a_q|."""
    problem = request.getfixturevalue(kind)(hidden=4)
    parts, n, damping = dense(problem), len(problem.train), 0.05
    options = {"damping": Damping.absolute(damping), "tolerance": tolerance}
    solved = attribute(*problem, "influence_cg", **options)
    exact = attribute(*problem, "influence_gn", damping=Damping.absolute(damping)).values
    bound = tolerance / (n * damping) * parts.measures.norm(dim=1)[:, None] * parts.losses.norm(dim=1)
    assert bool(((solved.values - exact).abs() <= bound + 1e-12 * exact.abs().max()).all())
    facts = solved.provenance["settings"]
    assert facts["worst_relative_residual"] <= tolerance
    assert facts["damping"] == damping


def test_influence_cg_has_the_same_default_damping(classification, assert_same):
    problem = classification(hidden=4)
    found = attribute(*problem, "influence_cg", tolerance=1e-12).values
    assert_same(found, attribute(*problem, "influence_gn").values, SOLVED)


def test_unconverged_conjugate_gradients_raise_or_report_their_residual(classification, dense):
    problem = classification(hidden=4)
    options = {"damping": Damping.absolute(1e-3), "tolerance": 1e-8, "max_iterations": 2}
    with pytest.raises(ConvergenceError, match=r"after 2 iterations.*max_iterations"):
        attribute(*problem, "influence_cg", **options)
    rough = attribute(*problem, "influence_cg", **options, allow_unconverged=True)
    facts = rough.provenance["settings"]
    assert facts["iterations"] == 2
    # Two steps of conjugate gradients by hand, for the worst query.
    parts = dense(problem)
    matrix = parts.gauss_newton + 1e-3 * torch.eye(len(parts.gauss_newton), dtype=F64)
    worst = 0.0
    for a in parts.measures:
        x, r, p = torch.zeros_like(a), a, a
        for _ in range(2):
            step = (r @ r) / (p @ matrix @ p)
            x, kept = x + step * p, r
            r = r - step * matrix @ p
            p = r + (r @ r) / (kept @ kept) * p
        worst = max(worst, float((a - matrix @ x).norm() / a.norm()))
    assert worst > 1e-3
    assert facts["worst_relative_residual"] == pytest.approx(worst, rel=1e-6)


# --- the true Hessian -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_influence_hessian_is_the_dense_inverse(kind, dense, assert_same, request):
    problem = request.getfixturevalue(kind)(hidden=4)
    parts = dense(problem)
    smallest = float(torch.linalg.eigvalsh(parts.hessian)[0])
    assert smallest < -1e-3
    damping = -1.5 * smallest
    scores = attribute(*problem, "influence_hessian", damping=Damping.absolute(damping))
    assert_same(scores.values, inverse_scores(parts, parts.hessian, damping, len(problem.train)), SOLVED)
    assert scores.provenance["settings"]["smallest_eigenvalue"] == pytest.approx(smallest, rel=1e-9)
    with pytest.raises(NotPositiveDefiniteError, match=f"smallest eigenvalue of the curvature is {smallest:.4g}"):
        attribute(*problem, "influence_hessian", damping=Damping.absolute(-0.9 * smallest))


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_of_a_linear_model_hessian_and_gauss_newton_agree(kind, assert_same, request):
    problem = request.getfixturevalue(kind)()
    damping = Damping.absolute(0.05)
    one = attribute(*problem, "influence_hessian", damping=damping).values
    assert_same(one, attribute(*problem, "influence_gn", damping=damping).values, SOLVED)


def test_influence_hessian_needs_a_damping_and_a_small_model(regression):
    problem = regression()
    with pytest.raises(InputError, match="'influence_hessian' needs `damping`; it has no default"):
        attribute(*problem, "influence_hessian")
    with pytest.raises(InputError, match="`damping` must be a `Damping`"):
        attribute(*problem, "influence_hessian", damping=None)
    wide = nn.Linear(6000, 1).double().eval()
    rows = Examples((torch.zeros(2, 6000, dtype=F64), torch.zeros(2, 1, dtype=F64)))
    with pytest.raises(UnsupportedError, match=r"6001 parameters.*influence_gn, influence_cg or horizon_ahead"):
        attribute(Task.regression(wide), rows, rows, "influence_hessian", damping=Damping.absolute(1.0))


# --- losses of one's own ----------------------------------------------------------------------------------------------


def own_loss(outputs, batch):
    return (outputs - batch[1]).square().mean(1)


def own_hessian(outputs, batch):
    b, c = outputs.shape
    return (2.0 / c * torch.eye(c, dtype=outputs.dtype)).expand(b, c, c)


def softmax_loss(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch[1], reduction="none")


def softmax_hessian(outputs, batch):
    p = outputs.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_loss_with_its_own_hessian_is_as_good_as_a_built_in_one(kind, assert_same, request):
    """With a Jacobian row for every logit instead of one less: the same curvature by another factor."""
    problem = request.getfixturevalue(kind)(hidden=4, **({"n_outputs": 3} if kind == "regression" else {}))
    loss, hessian = (own_loss, own_hessian) if kind == "regression" else (softmax_loss, softmax_hessian)
    task = Task(problem.task.model, outputs=lambda model, b: model(b[0]), loss=loss, output_hessian=hessian)
    for method, options in every_method(len(problem.train)).items():
        found = attribute(task, problem.train, problem.queries, method, **options)
        assert_same(found.values, attribute(*problem, method, **options).values, SOLVED)
    with pytest.raises(InputError, match="knows its own Hessian"):
        Task(
            problem.task.model, outputs=lambda model, b: model(b[0]), loss=problem.task.loss, output_hessian=own_hessian
        )


@pytest.mark.parametrize("method", ["influence_gn", "influence_cg", "horizon", "horizon_ahead"])
def test_a_loss_without_hessian_is_refused_by_gauss_newton_methods_only(method, regression):
    problem = regression()
    task = Task(problem.task.model, outputs=lambda model, b: model(b[0]), loss=own_loss)
    options = {"recipe": Recipe(lr=0.1, batch_size=4, epochs=1)} if method.startswith("horizon") else {}
    with pytest.raises(UnsupportedError, match=r"'own_loss' has no known Hessian.*`output_hessian=`.*grad_dot"):
        attribute(task, problem.train, problem.queries, method, **options)
    for other, others in {"grad_dot": {}, "influence_hessian": {"damping": Damping.absolute(0.1)}}.items():
        found = attribute(task, problem.train, problem.queries, other, **others).values
        torch.testing.assert_close(found, attribute(*problem, other, **others).values, rtol=1e-12, atol=1e-14)


def test_a_frozen_layer_takes_no_part(regression, dense, assert_same):
    """Only what requires a gradient is attributed: C and gradients are those of the rest, and the scores say so."""
    problem = regression(hidden=4)
    parts = dense(problem)
    problem.task.model[0].requires_grad_(False)
    task = Task.regression(problem.task.model)
    kept = slice(16, None)  # behind a 4 x 3 weight and its bias
    scores = attribute(task, problem.train, problem.queries, "influence_gn", damping=Damping.absolute(0.05))
    eye = torch.eye(5, dtype=F64)
    inverse = torch.linalg.inv(parts.gauss_newton[kept, kept] + 0.05 * eye)
    wanted = parts.measures[:, kept] @ inverse @ parts.losses[:, kept].T / len(problem.train)
    assert_same(scores.values, wanted, SOLVED)
    assert scores.provenance["coverage_percent"] == pytest.approx(100 * 5 / 21)


def test_damping_is_resolved_once_and_reported(classification):
    """The provenance of a unit is the number that was added, so that a run can be repeated in absolute terms."""
    problem = classification(hidden=4)
    first = attribute(*problem, "influence_gn", filter=damped_inverse(Damping.mean_square_gradient(30.0)))
    number = first.provenance["settings"]["damping"]
    again = attribute(*problem, "influence_gn", damping=Damping.absolute(number))
    torch.testing.assert_close(again.values, first.values, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (3, 1, 2)])
def test_outputs_of_any_shape_are_flat_outputs(shape, regression, assert_same):
    """(n,), (n, 6), (n, 2, 3): one squared error, mean over the outputs, and one set of scores."""
    problem = regression(hidden=4, n_outputs=max(1, torch.Size(shape).numel()))
    model = nn.Sequential(*problem.task.model, nn.Unflatten(1, shape) if shape else nn.Flatten(0)).eval()
    rows = [Examples((x, y.reshape(len(x), *shape))) for x, y in (problem.train.all(), problem.queries.all())]
    for method, options in every_method(len(problem.train)).items():
        found = attribute(Task.regression(model), *rows, method, **options).values
        assert_same(found, attribute(*problem, method, **options).values, SOLVED)


class Twice(nn.Module):
    """A layer used twice, whose choice of path depends on its data: no `vmap` can run it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 3).double()

    def forward(self, x):
        inner = torch.tanh(self.layer(x))
        return self.layer(inner if bool(inner.isfinite().all()) else x)


def test_tied_weights_and_a_model_that_cannot_be_vmapped(regression, dense, assert_same):
    problem = regression(n_outputs=3)
    problem = type(problem)(Task.regression(Twice().eval()), problem.train, problem.queries)
    parts, n = dense(problem), len(problem.train)
    assert parts.losses.shape == (n, 12)  # a tied tensor counts once
    assert_same(attribute(*problem, "grad_dot").values, parts.measures @ parts.losses.T, SOLVED)
    for form in FORMS:
        scores = attribute(*problem, "influence_gn", damping=Damping.absolute(0.1), form=form)
        assert_same(scores.values, inverse_scores(parts, parts.gauss_newton, 0.1, n), FORM[form])
