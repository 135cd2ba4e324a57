"""Fisher matrices against dense outer products of gradients built here, and against the Gauss-Newton matrix."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from whence.algebra import Damping, Horizon, Steps, damped_inverse
from whence.curvature import FORMS, fit_gauss_newton, fit_kronecker
from whence.curvature.drawn_labels import drawn_labels, slopes_at_labels
from whence.curvature.fisher import fit_fisher
from whence.data import Examples
from whence.errors import InputError, UnknownNameError, UnsupportedError
from whence.rng import torch_generator
from whence.task import CallableLoss, CrossEntropy, Pick, SquaredError, Task
from whence.task.losses import draw_classes

F64 = torch.float64
# Relative to the largest entry: eigen-decompositions of at most 60 rows; Lanczos stops at a change of 1e-8.
TOLERANCE = {"dual": 1e-9, "primal": 1e-9, "krylov": 1e-7}
SUMS = 1e-12  # sums of a hundred products


def network(n_outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, n_outputs)).double().eval()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def problem(kind: str, n_outputs: int, n: int = 9) -> tuple[Task, Examples]:
    x = draw(n, 3, seed=1)
    if kind == "mse":
        return Task.regression(network(n_outputs)), Examples((x, draw(n, n_outputs, seed=2)))
    return Task.classification(network(n_outputs)), Examples((x, torch.arange(n) % n_outputs))


PROBLEMS = {
    "mse of 1": ("mse", 1),
    "mse of 4": ("mse", 4),
    "2 classes": ("classes", 2),
    "3 classes": ("classes", 3),
    "6 classes": ("classes", 6),
}


def pulled_back(task: Task, train: Examples, slopes: Tensor) -> Tensor:
    """J_i^T v_i for slopes (n, c), by autograd through torch's own call of the model: (n, n_params)."""
    named = {name: p.detach() for name, p in task.model.named_parameters()}

    def projected(parameters: dict[str, Tensor], x: Tensor, v: Tensor) -> Tensor:
        return (functional_call(task.model, parameters, x[None])[0] * v).sum()

    pieces = vmap(grad(projected), (None, 0, 0))(named, train.all()[0], slopes)
    return torch.cat([pieces[name].flatten(1) for name in named], 1)


def true_slopes(task: Task, train: Examples, kind: str) -> Tensor:
    x, y = train.all()
    z = task.model(x).detach()
    if kind == "mse":
        return 2 * (z - y) / z.shape[1]
    return z.softmax(1) - nn.functional.one_hot(y, z.shape[1]).double()


def of_rows(curvature) -> Tensor:
    """A^T A of the rows it uses."""
    rows = torch.cat([block for _, block in curvature.linear.factor_blocks()])
    return rows.T @ rows


def assert_same(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    gap, size = float((found - wanted).abs().max()), float(wanted.abs().max())
    assert gap <= tolerance * size, f"{gap:.3e} of {size:.3e}"


# --- slopes at drawn labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 5])
def test_drawn_slopes_of_cross_entropy_are_the_slopes_of_its_labels_drawn_by_its_probabilities(n_classes):
    loss, n = CrossEntropy(Pick(0)), 40_000
    z = draw(1, n_classes, seed=3).expand(n, -1)
    labels = loss.sample_labels(z, None, torch.Generator().manual_seed(0))
    slopes = loss.slopes_at(z, None, labels)
    leaf = z.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf, (labels,)).sum(), leaf)
    torch.testing.assert_close(slopes, wanted, rtol=1e-12, atol=1e-15)
    p, found = z[0].softmax(0), torch.bincount(labels, minlength=n_classes) / n
    # Five standard deviations of a binomial share; the seed is fixed.
    assert bool(((found - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all())


def test_classes_without_any_probability_are_never_drawn():
    z = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf], dtype=F64).expand(4, -1)
    uniform = torch.tensor([0.0, 0.4999, 0.5001, 1 - 2.0**-53], dtype=F64)
    assert draw_classes(z, uniform).tolist() == [1, 1, 2, 2]


def test_expected_outer_product_over_all_labels_is_the_hessian():
    loss = CrossEntropy(Pick(0))
    z = draw(7, 5, seed=4)
    total = torch.zeros(7, 5, 5, dtype=F64)
    for label in range(5):
        slope = z.softmax(1) - nn.functional.one_hot(torch.tensor(label), 5).double()
        total += z.softmax(1)[:, label, None, None] * slope[:, :, None] * slope[:, None, :]
    torch.testing.assert_close(total, loss.hessian(z, (torch.zeros(7, dtype=torch.int64),)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("margin", [40.0, 300.0])
def test_drawn_slopes_of_a_sure_row_do_not_vanish(margin):
    z = torch.tensor([[margin, 0.0, 0.0]], dtype=F64)
    loss = CrossEntropy(Pick(0))
    slope = loss.slopes_at(z, None, loss.sample_labels(z, None, torch.Generator().manual_seed(0)))[0]
    assert float(slope[0]) == pytest.approx(-2 * float(torch.tensor(-margin, dtype=F64).exp()), rel=1e-12)
    assert float(slope.sum()) == 0


@pytest.mark.parametrize("n_outputs", [1, 4])
def test_drawn_slopes_of_squared_error_have_its_hessian(n_outputs):
    loss, n = SquaredError(Pick(0)), 40_000
    z = draw(1, n_outputs, seed=5).expand(n, -1)
    slopes = loss.slopes_at(z, None, loss.sample_labels(z, None, torch.Generator().manual_seed(0)))
    hessian = loss.hessian(z[:1], (z[:1],))[0]
    moment = slopes.T @ slopes / n
    # A product of two normals of variance s has variance 2 s^2 on the diagonal and s^2 beside it.
    deviation = float(hessian[0, 0]) * (2 / n) ** 0.5
    assert float((moment - hessian).abs().max()) <= 5 * deviation
    assert slopes.dtype == z.dtype


def test_a_loss_of_ones_own_has_no_labels_to_draw():
    loss = CallableLoss(lambda outputs, batch: outputs.square().sum(1))
    with pytest.raises(UnsupportedError, match=r"no known predictive distribution.*empirical Fisher"):
        loss.sample_labels(torch.zeros(2, 3), None, torch.Generator())
    task, train = problem("mse", 2)
    task = Task(task.model, outputs=lambda model, batch: model(batch[0]), loss=lambda z, batch: (z**4).sum(1))
    with pytest.raises(UnsupportedError, match="no known predictive distribution"):
        fit_fisher(task, train, fisher="sampled")
    assert_same(
        of_rows(fit_fisher(task, train)), outer(task, train, 4 * task.model(train.all()[0]).detach() ** 3), SUMS
    )


def outer(task: Task, train: Examples, slopes: Tensor) -> Tensor:
    rows = pulled_back(task, train, slopes)
    return rows.T @ rows / len(train)


# --- matrices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_empirical_fisher_is_the_mean_outer_product_of_gradients(name, form):
    kind, n_outputs = PROBLEMS[name]
    task, train = problem(kind, n_outputs)
    gradients = pulled_back(task, train, true_slopes(task, train, kind))
    wanted = gradients.T @ gradients / len(train)
    curvature = fit_fisher(task, train, form=form)
    assert curvature.linear.n_rows == len(train)  # one row an example, whatever the number of outputs
    check_operator(curvature, wanted, gradients, TOLERANCE[form])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_samples", [1, 2, 3, 20])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_sampled_fisher_is_the_mean_outer_product_at_its_labels(name, n_samples, form):
    """For few samples by their own rows, for some in the shared basis, for many by a root of their moments."""
    kind, n_outputs = PROBLEMS[name]
    task, train = problem(kind, n_outputs)
    curvature = fit_fisher(task, train, fisher="sampled", n_samples=n_samples, seed=3, form=form)
    n_directions = n_outputs if kind == "mse" else n_outputs - 1
    assert curvature.linear.n_roots == min(n_samples, n_directions)
    assert curvature.linear.n_contrasts == min(n_samples + 1, n_directions)
    gradients = pulled_back(task, train, true_slopes(task, train, kind))
    check_operator(curvature, sampled_outer(task, train, n_samples, 3), gradients, TOLERANCE[form])


def sampled_outer(task: Task, train: Examples, n_samples: int, seed: int) -> Tensor:
    """The same labels, by the same stream, pulled back one after another."""
    batch, z = train.all(), task.model(train.all()[0]).detach()
    labels = [task.loss.sample_labels(z, batch, torch_generator(seed, "fisher labels", k)) for k in range(n_samples)]
    drawn = [task.loss.slopes_at(z, batch, one) for one in labels]
    return torch.stack([outer(task, train, slopes) for slopes in drawn]).mean(0)


def check_operator(curvature, wanted: Tensor, gradients: Tensor, tolerance: float) -> None:
    """Rows, statistics, solves and scores are those of the dense matrix and of the true gradients."""
    n = len(gradients)
    assert_same(of_rows(curvature), wanted, SUMS)
    assert curvature.form.mean_eigenvalue == pytest.approx(float(wanted.trace()) / len(wanted), rel=1e-10)
    queries, eye = draw(3, len(wanted), seed=8), torch.eye(len(wanted), dtype=F64)
    damping = 0.1 * float(wanted.trace()) / len(wanted)
    inverse = torch.linalg.inv(wanted + damping * eye)
    used = damped_inverse(Damping.relative(0.1))
    assert_same(curvature.form.solve(curvature.resolve(used), queries), queries @ inverse, tolerance)
    assert_same(curvature.scores(used, queries), queries @ inverse @ gradients.T / n, tolerance)
    assert_same(curvature.linear.mean_gradient, gradients.mean(0), SUMS)
    steps = Steps.of(1.0 / float(torch.linalg.matrix_norm(wanted, ord=2)), 7)
    run = sum((steps.lr[0] * torch.linalg.matrix_power(eye - steps.lr[0] * wanted, k) for k in range(7)), 0 * eye)
    assert_same(curvature.scores(Horizon(steps), queries), queries @ run @ gradients.T / n, tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"fisher": "sampled", "n_samples": 2}], ids=["empirical", "sampled"])
def test_blocks_of_examples_change_nothing(options, form, monkeypatch):
    """Rows in blocks of two examples; two samples have two rows of the factor, of three directions, an example."""
    task, train = problem("classes", 6)
    monkeypatch.setattr("whence.curvature.linearized.chunk_size", lambda *_: 2)
    gradients = pulled_back(task, train, true_slopes(task, train, "classes"))
    wanted = sampled_outer(task, train, 2, 0) if options else gradients.T @ gradients / len(train)
    check_operator(fit_fisher(task, train, form=form, **options), wanted, gradients, TOLERANCE[form])


@pytest.mark.parametrize("name", ["mse of 4", "3 classes", "6 classes"])
def test_more_samples_lead_to_the_gauss_newton_matrix(name):
    """The mean of k independent matrices is off by the deviation of one over sqrt(k), in the mean over draws."""
    kind, n_outputs = PROBLEMS[name]
    task, train = problem(kind, n_outputs)
    wanted = of_rows(fit_gauss_newton(task, train))
    few, many, n_draws = 1, 400, 40
    ones = torch.stack([of_rows(fit_fisher(task, train, fisher="sampled", seed=s)) for s in range(n_draws)])
    spread = float((ones - wanted).square().sum((1, 2)).mean().sqrt())  # of one sample, root mean square over draws
    found = of_rows(fit_fisher(task, train, fisher="sampled", n_samples=many, seed=1000))
    off = float((found - wanted).norm())
    # Expected: spread / 20. The norm of a mean of many terms is seldom three times its root mean square.
    assert off <= 3 * spread * (few / many) ** 0.5
    assert spread > 0.2 * float(wanted.norm())  # one sample is far off: the bound says something


def test_seeds_give_labels_and_nothing_else_does():
    task, train = problem("classes", 6)
    first, again, other = (
        of_rows(fit_fisher(task, train, fisher="sampled", n_samples=2, seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert float((first - other).abs().max()) > 0.01 * float(first.abs().max())


@pytest.mark.parametrize("kind", ["mse", "classes"])
@pytest.mark.parametrize("n_outputs", [2, 4])
def test_one_seed_gives_one_set_of_labels_to_every_curvature(kind, n_outputs):
    """A linear model with one sample: the Kronecker form keeps the trace, to which every label contributes."""
    x = draw(7, 3, seed=1)
    model = nn.Linear(3, n_outputs, bias=False).double().eval()
    y = draw(7, n_outputs, seed=2) if kind == "mse" else torch.arange(7) % n_outputs
    task = Task.regression(model) if kind == "mse" else Task.classification(model)
    traces = {}
    for seed in (0, 1):
        rows = of_rows(fit_fisher(task, Examples((x, y)), fisher="sampled", seed=seed))
        kronecker = fit_kronecker(task, Examples((x, y)), fisher="sampled", seed=seed).to_dense()
        traces[seed] = float(rows.trace())
        assert float(kronecker.trace()) == pytest.approx(traces[seed], rel=1e-10)
    assert traces[0] != pytest.approx(traces[1], rel=1e-3)


@pytest.mark.parametrize("kind", ["mse", "classes"])
@given(size=st.integers(1, 9), memory=st.sampled_from([1, 2**20]))
def test_blocks_of_examples_draw_the_same_labels(kind, size, memory):
    task, train = problem(kind, 4)
    whole = drawn_labels(task, train, n_samples=3, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whence.gradients.rows.FORWARD_EXAMPLES", size)
        patch.setattr("whence.gradients.passes.OUTPUT_MEMORY", memory)
        split = drawn_labels(task, train, n_samples=3, seed=4)
    torch.testing.assert_close(split, whole, rtol=SUMS, atol=SUMS)
    assert torch.equal(whole[:1], drawn_labels(task, train, seed=4))
    assert not torch.equal(whole[:1], whole[1:2])


def test_slopes_of_a_block_are_those_of_its_part_of_the_labels():
    task, train = problem("classes", 6)
    labels, outputs = drawn_labels(task, train, n_samples=2), task.model(train.all()[0]).detach()
    slopes = slopes_at_labels(task, labels)
    whole = slopes(outputs, train.all(), slice(0, 9))
    for k in range(2):
        wanted = outputs.softmax(1) - nn.functional.one_hot(labels[k], 6)
        torch.testing.assert_close(whole[:, k], wanted, rtol=1e-12, atol=1e-15)
    assert torch.equal(slopes(outputs[4:7], train.batch([4, 5, 6]), slice(4, 7)), whole[4:7])


def test_very_many_outputs_are_refused_with_what_to_use_instead(monkeypatch):
    task, train = problem("classes", 6)
    monkeypatch.setattr("whence.task.losses.LARGEST_BASIS", 5)
    for fit in (fit_gauss_newton, fit_kronecker):
        with pytest.raises(UnsupportedError, match=r"each of the 6 outputs.*fisher='sampled'"):
            fit(task, train)
    gradients = pulled_back(task, train, true_slopes(task, train, "classes"))
    check_operator(
        fit_fisher(task, train, fisher="sampled", n_samples=2, form="dual"),
        sampled_outer(task, train, 2, 0),
        gradients,
        TOLERANCE["dual"],
    )


def test_where_every_example_is_fitted_the_empirical_fisher_vanishes_and_the_sampled_does_not():
    task, train = problem("mse", 1)
    fitted = Examples((train.all()[0], task.model(train.all()[0]).detach()))
    assert float(of_rows(fit_fisher(task, fitted)).abs().max()) == 0
    assert float(of_rows(fit_fisher(task, fitted, fisher="sampled")).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fisher": "true"}, UnknownNameError, "Unknown Fisher matrix 'true'"),
        ({"form": "dense"}, UnknownNameError, "Unknown curvature form 'dense'"),
        ({"n_samples": 2}, InputError, "one label an example; got n_samples=2"),
        ({"fisher": "sampled", "n_samples": 0}, InputError, "`n_samples` must be an integer of at least 1"),
    ],
)
def test_what_is_refused_is_refused_before_any_pass(options, error, message, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a pass was made")

    monkeypatch.setattr("whence.curvature.fisher.outputs_of", never)
    with pytest.raises(error, match=message):
        fit_fisher(*problem("classes", 3), **options)


def test_precision_is_the_one_asked_for():
    task, train = problem("classes", 6)
    for dtype, form in itertools.product((torch.float32, torch.float64), ("dual", "krylov")):
        assert fit_fisher(task, train, dtype=dtype, form=form).linear.dtype == dtype
