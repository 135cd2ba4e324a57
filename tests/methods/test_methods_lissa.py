"""LiSSA against its recurrence in dense loops, the Neumann series, the horizon filter and the dense inverse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from whence import Damping
from whence.algebra import DenseOperator, Horizon, ShiftedOperator, Steps, apply_filter_dense, neumann_series
from whence.data import Examples
from whence.errors import InputError, NotPositiveDefiniteError, NumericalError, UnsupportedError
from whence.methods import lissa as module
from whence.methods.inputs import Inputs
from whence.methods.lissa import LISSA, LISSA_HESSIAN, lissa, lissa_hessian
from whence.methods.scoring import block_source
from whence.rng import torch_generator
from whence.scores import ScoreMatrix
from whence.task import GroupWeights, ParameterGroups, Task

F64 = torch.float64
REORDERED = 1e-11  # the same sums in another order
SOLVED = 1e-8  # after 1 - damping / scale has been raised to the depth
SINGLE = 1e-4  # float32 over some dozens of steps
METHODS = {"lissa": (LISSA, lissa), "lissa_hessian": (LISSA_HESSIAN, lissa_hessian)}
DAMPING = Damping.absolute(4.0)  # above the most negative eigenvalue of every Hessian here


def scores(problem, method="lissa", weights=None, **options):
    inputs = Inputs(*problem)
    inputs = inputs if weights is None else inputs.weighted(weights)
    preset, compute = METHODS[method]
    return ScoreMatrix.from_blocks(block_source(preset, inputs, compute(inputs, **options)))


def curvature_of(parts, method):
    return parts.gauss_newton if method == "lissa" else parts.hessian


def single_curvatures(problem, dense, method):
    """The curvature of each example alone, (n, p, p)."""
    rows = range(len(problem.train))
    alone = [type(problem)(problem.task, problem.train.subset([i]), problem.queries) for i in rows]
    return torch.stack([curvature_of(dense(one), method) for one in alone])


def by_loops(problem, dense, method, damping, depth, scale, batch_size=None, repeats=1, seed=0):
    """One query at a time, one repeat at a time, one drawn example after the other."""
    parts, n = dense(problem), len(problem.train)
    alone = single_curvatures(problem, dense, method)
    found = torch.zeros(len(problem.queries), n, dtype=F64)
    for q, v in enumerate(parts.measures):
        for repeat in range(repeats):
            generator = torch_generator(seed, "lissa", repeat)
            h = v
            for _ in range(depth):
                drawn = range(n) if batch_size is None else torch.randint(n, (batch_size,), generator=generator)
                product = sum(alone[i] @ h for i in drawn) / len(drawn)
                h = v + h - (product + damping * h) / scale
            found[q] += problem.task.measure.orientation / n * parts.losses @ h / scale / repeats
    return found


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    """Products with a Hessian take a millisecond however small it is."""
    monkeypatch.setattr(module, "PROBES", 2)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture(params=["regression", "classification"])
def problem(request):
    return request.getfixturevalue(request.param)(hidden=4)


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_it_is_the_published_recurrence(method, batch_size, problem, dense, assert_same):
    options = {"depth": 9, "scale": 40.0, "batch_size": batch_size, "seed": 3}
    options |= {"repeats": 1 if batch_size is None else 2}
    wanted = by_loops(problem, dense, method, DAMPING.value, **options)
    assert_same(scores(problem, method, damping=DAMPING, **options).values, wanted, REORDERED)


def test_a_measure_where_more_is_better_keeps_its_sign(method, classification, dense, assert_same):
    problem = classification(measure="margin")
    wanted = by_loops(problem, dense, method, DAMPING.value, depth=5, scale=9.0)
    found = scores(problem, method, damping=DAMPING, depth=5, scale=9.0)
    assert_same(found.values, wanted, REORDERED)
    assert found.unit == "margin"


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.floats(0.51, 20.0), st.floats(0.01, 10.0))
def test_on_all_examples_it_is_the_neumann_series_and_the_horizon_filter(regression, dense, depth, factor, damping):
    """Depth d sums d + 1 terms: the horizon of d + 1 steps with lr = 1 / scale on C + damping."""
    problem = regression(hidden=3)
    parts, n = dense(problem), len(problem.train)
    scale = factor * (float(torch.linalg.eigvalsh(parts.gauss_newton)[-1]) + damping)
    options = {"damping": Damping.absolute(damping), "depth": depth, "scale": scale}
    found = scores(problem, **options).values
    shifted = ShiftedOperator(DenseOperator(parts.gauss_newton), damping)
    series = neumann_series(shifted, parts.measures, 1 / scale, depth + 1) @ parts.losses.T / n
    torch.testing.assert_close(found, series, rtol=0.0, atol=REORDERED * float(series.abs().max()))
    steps = Steps.of(1 / scale, depth + 1, weight_decay=damping)
    filtered = apply_filter_dense(parts.gauss_newton, Horizon(steps), parts.measures) @ parts.losses.T / n
    torch.testing.assert_close(found, filtered, rtol=0.0, atol=SOLVED * float(filtered.abs().max()))


def test_deep_enough_it_is_the_dense_inverse(method, problem, dense, assert_same):
    parts, n = dense(problem), len(problem.train)
    inverse = torch.linalg.inv(curvature_of(parts, method) + DAMPING.value * torch.eye(len(parts.hessian), dtype=F64))
    wanted = problem.task.measure.orientation / n * parts.measures @ inverse @ parts.losses.T
    found = scores(problem, method, damping=DAMPING, depth=150)
    assert_same(found.values, wanted, SOLVED)
    facts = found.provenance["settings"]
    largest = float(torch.linalg.eigvalsh(curvature_of(parts, method))[-1])
    assert facts["largest_eigenvalue"] == pytest.approx(largest, rel=1e-6)
    assert facts["scale"] == pytest.approx(largest + DAMPING.value, rel=1e-6)


def test_batches_average_to_the_whole(problem):
    """E h_t is the series on all examples: the mean of 64 runs is off by no more than its standard error explains."""
    inputs, options = Inputs(*problem), {"damping": DAMPING, "depth": 4, "scale": 20.0}

    def values(**drawn):
        return next(iter(lissa(inputs, **options, **drawn).blocks())).values

    gaps = torch.stack([values(batch_size=4, seed=seed) for seed in range(64)]) - values(batch_size=None)
    spread = float(gaps.square().sum((1, 2)).mean().sqrt())
    assert float(gaps.mean(0).norm()) < 3 * spread / 8
    assert spread > 1e-3 * float(values(batch_size=None).norm())


def test_the_default_scale_holds_for_single_examples(method, regression, monkeypatch):
    """Batches of one: their largest eigenvalues, many times that of the mean, decide."""
    monkeypatch.setattr(module, "PROBES", 8)
    problem = regression(hidden=4, n_train=40)
    found = scores(problem, method, damping=DAMPING, depth=100, batch_size=1)
    facts = found.provenance["settings"]
    assert facts["scale"] > facts["largest_eigenvalue"] + DAMPING.value
    assert bool(found.values.isfinite().all())


@pytest.mark.parametrize("batch_size", [None, 12, 13, 128])
def test_as_many_examples_as_there_are_draw_nothing(method, batch_size, problem):
    options = {"damping": DAMPING, "depth": 3}
    found = scores(problem, method, **options, batch_size=batch_size, repeats=5, seed=9)
    assert torch.equal(found.values, scores(problem, method, **options).values)
    assert found.provenance["settings"]["batch_size"] is None
    assert found.provenance["settings"]["repeats"] == 1


def test_rows_computed_for_each_batch_are_the_stored_ones(monkeypatch, problem, assert_same):
    options = {"damping": Damping.relative(0.3), "depth": 6, "batch_size": 5, "repeats": 2}
    wanted = scores(problem, **options)
    monkeypatch.setattr("whence.curvature.linearized.CACHE", 0)
    again = scores(problem, **options)
    assert_same(again.values, wanted.values, REORDERED)
    assert again.provenance["settings"]["scale"] == pytest.approx(wanted.provenance["settings"]["scale"], rel=1e-9)


def test_hessian_products_in_pieces_are_the_whole_ones(monkeypatch, problem, assert_same):
    options = {"damping": DAMPING, "depth": 4, "scale": 20.0}
    wanted = [scores(problem, "lissa_hessian", **options, batch_size=size).values for size in (None, 9)]
    monkeypatch.setattr(module, "EXAMPLES", 5)
    monkeypatch.setattr("whence.curvature.hessian.VECTORS", 3)
    for size, one in zip((None, 9), wanted, strict=True):
        assert_same(scores(problem, "lissa_hessian", **options, batch_size=size).values, one, REORDERED)


def test_damping_in_other_units_is_resolved(method, problem, dense):
    parts = dense(problem)
    found = scores(problem, method, damping=Damping.mean_square_gradient(400.0), depth=1)
    wanted = 400.0 * float(parts.losses.square().mean())
    assert found.provenance["settings"]["damping"] == pytest.approx(wanted, rel=1e-12)
    mean = float(parts.gauss_newton.trace()) / len(parts.gauss_newton)
    assert scores(problem, depth=1).provenance["settings"]["damping"] == pytest.approx(0.1 * mean, rel=1e-12)


# --- queries, seeds, precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 5])
def test_queries_together_are_queries_one_at_a_time(method, batch_size, problem, assert_same):
    options = {"damping": DAMPING, "depth": 8, "scale": 40.0, "batch_size": batch_size}
    together = scores(problem, method, **options).values
    for q in range(len(problem.queries)):
        alone = type(problem)(problem.task, problem.train, problem.queries.subset([q]))
        assert_same(scores(alone, method, **options).values, together[q : q + 1], REORDERED)


def test_a_seed_repeats_bitwise_and_another_differs(method, problem):
    options = {"damping": DAMPING, "depth": 4, "batch_size": 3, "repeats": 2}
    first = scores(problem, method, **options, seed=4)
    torch.manual_seed(99)  # the global stream plays no part
    state = torch.random.get_rng_state()
    assert torch.equal(scores(problem, method, **options, seed=4).values, first.values)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(scores(problem, method, **options, seed=5).values, first.values)
    given = {"seed": 4, "depth": 4, "batch_size": 3, "repeats": 2, "damping": DAMPING.value}
    facts = first.provenance["settings"]
    assert {name: facts[name] for name in given} == given
    again = scores(problem, method, **options, seed=4, scale=facts["scale"])
    assert torch.equal(again.values, first.values)


def test_group_weights_act_on_the_query(method, problem, dense, assert_same):
    layout = problem.task.layout
    groups = ParameterGroups.of(layout, "tensor")
    weights = GroupWeights(torch.tensor([0.0, 0.0, 1.0, 3.0], dtype=F64), groups)
    options = {"depth": 6, "scale": 20.0, "batch_size": 4}
    found = scores(problem, method, weights, damping=DAMPING, **options)
    inputs = Inputs(*problem)
    (block,) = METHODS[method][1](inputs.by_group(groups), damping=DAMPING, **options).blocks()
    by_group = block.values.reshape(4, 4, 12)
    assert_same(found.values, torch.einsum("qji,j->qi", by_group, weights.values), REORDERED)
    assert_same(scores(problem, method, damping=DAMPING, **options).values, by_group.sum(1), REORDERED)


def test_float32_models_are_close_to_float64_ones(method, classification, assert_same):
    problem = classification(hidden=4)
    wanted = scores(problem, method, damping=DAMPING, depth=60, scale=40.0, batch_size=5).values
    task = Task.classification(problem.task.model.float())
    rows = [examples.to(dtype=torch.float32) for examples in (problem.train, problem.queries)]
    found = scores((task, *rows), method, damping=DAMPING, depth=60, scale=40.0, batch_size=5).values
    assert found.dtype == F64
    assert_same(found, wanted, SINGLE)


# --- divergence -------------------------------------------------------------------------------------------------------


def refuse_steps(monkeypatch):
    def never(*_, **__):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(module._Step, "_run", never)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_scale_below_half_the_largest_eigenvalue_is_refused_before_the_first_step(
    method, batch_size, problem, dense, monkeypatch
):
    top = float(torch.linalg.eigvalsh(curvature_of(dense(problem), method))[-1]) + DAMPING.value
    options = {"damping": DAMPING, "depth": 10**9, "batch_size": batch_size}
    refuse_steps(monkeypatch)
    with pytest.raises(NumericalError, match=r"step size.*must exceed .*\. Use `scale=.*or more") as caught:
        scores(problem, method, **options, scale=0.49 * top)
    assert float(str(caught.value).split("must exceed ")[1].split(". ")[0]) == pytest.approx(top / 2, rel=1e-5)
    monkeypatch.undo()
    assert scores(problem, method, damping=DAMPING, scale=0.51 * top, depth=300).values.isfinite().all()


def test_the_advised_scale_converges(problem, dense):
    """The number is read from the message, as a user would."""
    with pytest.raises(NumericalError) as caught:
        scores(problem, damping=DAMPING, scale=0.1)
    scale = float(str(caught.value).split("`scale=")[1].split("`")[0])
    values = scores(problem, damping=DAMPING, scale=scale, depth=300).values
    inverse = torch.linalg.inv(
        dense(problem).gauss_newton + DAMPING.value * torch.eye(len(dense(problem).hessian), dtype=F64)
    )
    wanted = dense(problem).measures @ inverse @ dense(problem).losses.T / len(problem.train)
    torch.testing.assert_close(values, wanted, rtol=0.0, atol=SOLVED * float(wanted.abs().max()))


def uneven(problem):
    """One example in forty with a curvature ten thousand times that of the others."""
    x, y = problem.train.all()
    x = x.clone()
    x[0] *= 100.0
    return type(problem)(problem.task, Examples((x, y)), problem.queries)


def test_divergence_on_batches_is_said_in_the_step_that_shows_it(method, regression):
    """The mean converges at this scale, batches of one do not; a run to the end would take a day."""
    problem = uneven(regression(n_train=40))
    converging = scores(problem, method, damping=DAMPING, depth=20)
    scale = converging.provenance["settings"]["scale"]
    with pytest.raises(NumericalError, match=r"diverges: in step \d{1,3} of 1000000000 vector .* Use `scale="):
        scores(problem, method, damping=DAMPING, scale=scale, batch_size=1, depth=10**9)


def test_a_missed_giant_makes_the_default_scale_diverge_with_advice(regression, monkeypatch):
    problem = uneven(regression(n_train=40))
    monkeypatch.setattr(module, "PROBES", 1)
    with pytest.raises(NumericalError, match=r"diverges: in step") as caught:
        scores(problem, damping=DAMPING, batch_size=1, depth=10**9, seed=1)
    used, advised = (
        float(str(caught.value).split(word)[1].split(end)[0]) for word, end in (("with scale ", " "), ("`scale=", "`"))
    )
    assert advised == pytest.approx(2 * used, rel=1e-4)


def test_overflow_is_divergence(regression, monkeypatch):
    problem = uneven(regression(n_train=40))
    monkeypatch.setattr(module, "GROWTH", float("inf"))
    scale = 0.6 * scores(problem, damping=DAMPING, depth=1).provenance["settings"]["scale"]
    with pytest.raises(NumericalError, match="diverges: in step"):
        scores(problem, damping=DAMPING, scale=scale, batch_size=1, depth=10**6)


def test_an_indefinite_hessian_is_refused_before_the_first_step(problem, dense, monkeypatch):
    smallest = float(torch.linalg.eigvalsh(dense(problem).hessian)[0])
    assert smallest < -1e-3
    refuse_steps(monkeypatch)
    with pytest.raises(NotPositiveDefiniteError, match=rf"eigenvalue of {smallest:.3g}\d* .*damping above .*lissa"):
        scores(problem, "lissa_hessian", damping=Damping.absolute(-0.9 * smallest))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.1}, r"`damping` must be a `Damping`.*got 0.1"),
        ({"depth": 0}, "`depth` must be an integer of at least 1; got 0"),
        ({"depth": 2.5}, "`depth` must be an integer"),
        ({"scale": 0.0}, "`scale` must be a positive finite number"),
        ({"scale": float("nan")}, "`scale` must be a positive finite number"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"repeats": 0}, "`repeats` must be an integer of at least 1"),
        ({"seed": -1}, "`seed` must be an integer of at least 0"),
    ],
)
def test_bad_options_are_refused_before_any_work(method, options, message, regression, monkeypatch):
    def never(*_, **__):
        raise AssertionError("work was started")

    inputs = Inputs(*regression())
    for place in ("inputs.fit_gauss_newton", "inputs.measure_gradients", "lissa.loss_gradients"):
        monkeypatch.setattr(f"whence.methods.{place}", never)
    with pytest.raises(InputError, match=message):
        METHODS[method][1](inputs, **{"damping": DAMPING, **options})


def test_a_damping_relative_to_the_hessian_is_refused(regression):
    with pytest.raises(InputError, match=r"0.1 x mean eigenvalue.*mean_square_gradient"):
        lissa_hessian(Inputs(*regression()), damping=Damping.relative(0.1))


def test_a_loss_without_hessian_has_lissa_hessian(regression, assert_same):
    problem = regression(hidden=4)
    task = Task(
        problem.task.model, outputs=lambda m, b: m(b[0]), loss=lambda outputs, b: (outputs - b[1]).square().mean(1)
    )
    own = task, problem.train, problem.queries
    with pytest.raises(UnsupportedError, match="no known Hessian"):
        scores(own, damping=DAMPING)
    wanted = scores(problem, "lissa_hessian", damping=DAMPING, depth=5).values
    assert_same(scores(own, "lissa_hessian", damping=DAMPING, depth=5).values, wanted, REORDERED)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_without_gradients_scores_are_zero(method, batch_size, regression):
    """Queries and train examples that the model fits exactly."""
    problem = regression()
    with torch.no_grad():
        rows = [Examples((x, problem.task.model(x))) for x, _ in (problem.train.all(), problem.queries.all())]
    values = scores((problem.task, *rows), method, damping=DAMPING, depth=5, batch_size=batch_size).values
    assert torch.equal(values, torch.zeros_like(values))


class Choosy(nn.Module):
    """A path that depends on the data: no `vmap` can run it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 3).double()

    def forward(self, x):
        inner = torch.tanh(self.layer(x))
        return self.layer(inner if bool(inner.isfinite().all()) else x)


def test_a_model_that_cannot_be_vmapped(method, regression, dense, assert_same, monkeypatch):
    problem = regression(n_outputs=3)
    problem = type(problem)(Task.regression(Choosy().eval()), problem.train, problem.queries)
    options = {"depth": 5, "scale": 20.0, "batch_size": 4}
    wanted = by_loops(problem, dense, method, DAMPING.value, **options)
    assert_same(scores(problem, method, damping=DAMPING, **options).values, wanted, REORDERED)
    monkeypatch.setattr("whence.curvature.linearized.CACHE", 0)
    assert_same(scores(problem, method, damping=DAMPING, **options).values, wanted, REORDERED)
