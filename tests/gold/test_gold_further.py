"""Further training: closed forms, plain loops, and what is refused before any training."""

import pytest
import torch
from torch.testing import assert_close

from whence.data import Examples, LeftOutSets
from whence.errors import DataError, InputError, ModeError, NonFiniteError, ShapeError, WhenceError
from whence.gold import further_train
from whence.task import Task, fingerprint
from whence.testing.problems import PROBLEMS, classifier, linear_regression, mlp, mlp_regression
from whence.training import Recipe
from whence.training.processes import INLINE

FLOAT64 = {"rtol": 1e-10, "atol": 1e-11}  # rounding in another order, grown over some dozen steps
ENGINES = ["stacked", "loop"]
RECIPE = Recipe(lr=0.05, batch_size=4, epochs=3, momentum=0.9)


# Linear regression on the full batch: gradient descent in closed form


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_full_batch_linear_regression_is_the_closed_form_of_leaving_out(engine, decay):
    problem = linear_regression()
    sets = LeftOutSets.groups([[0], [7], [3, 4], [1, 5, 11]])
    recipe = Recipe(lr=0.1, batch_size=100, epochs=40, weight_decay=decay)
    points = (1, 5, 40)
    gold = further_train(
        problem.task, problem.train, problem.queries, recipe, left_out=sets, seeds=2, points=points, engine=engine
    )
    for p, n_steps in enumerate(points):
        for s, lacks in enumerate(sets):
            w = problem.descended(0.1, n_steps, lacks, decay)
            for seed in range(2):
                assert_close(gold.measures[seed, p, s], problem.losses(w, problem.queries), **FLOAT64)
                assert_close(gold.distances[seed, p, s], (w - problem.start).norm(), **FLOAT64)
        full = problem.losses(problem.descended(0.1, n_steps, (), decay), problem.queries)
        assert_close(gold.full[:, p], full.expand(2, -1), **FLOAT64)


@pytest.mark.parametrize("engine", ENGINES)
def test_down_weighting_is_leaving_out_at_a_smaller_rate(engine):
    """Mean loss - (1/n) l_i is (n-1)/n of the mean loss without i: the same minimum, the rate times (n-1)/n."""
    problem = linear_regression()
    recipe = Recipe(lr=0.1, batch_size=100, epochs=30, sampler="down_weight")
    gold = further_train(problem.task, problem.train, problem.queries, recipe, left_out=[0, 7], seeds=1, engine=engine)
    for s, lacks in enumerate([(0,), (7,)]):
        w = problem.descended(0.1 * 11 / 12, 30, lacks)
        assert_close(gold.measures[0, 0, s], problem.losses(w, problem.queries), **FLOAT64)


def test_long_training_reaches_the_minimum_without_the_example():
    """Leave-one-out of least squares, as any textbook has it."""
    problem = linear_regression()
    recipe = Recipe(lr=0.3, batch_size=100, epochs=400)
    gold = further_train(problem.task, problem.train, problem.queries, recipe, left_out=12, seeds=1, engine="stacked")
    expected = torch.stack([problem.losses(problem.minimum([i]), problem.queries) for i in range(12)])
    assert_close(gold.measures[0, 0], expected, rtol=1e-9, atol=1e-12)


# Mini-batches: a plain loop for every run


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n_train", [13, 14])  # 13 = 1 mod 4: without one example an epoch has a batch fewer
def test_every_run_is_a_plain_loop(train_plainly, engine, n_train):
    problem = mlp_regression(n_train)
    sets = LeftOutSets.groups([[0], [3], [2, 9], [1, 4, 5, 6, 7]])
    gold = further_train(
        problem.task, problem.train, problem.queries, RECIPE, left_out=sets, seeds=[4, 1], points=[1, 3], engine=engine
    )
    batch = problem.queries.all()
    for s, seed in enumerate(gold.seeds):
        for k, lacks in enumerate([(), *sets]):
            found = gold.full[s] if k == 0 else gold.measures[s, :, k - 1]
            for step, model in train_plainly(problem.task, problem.train, RECIPE, seed, lacks):
                if step in (4, 12):
                    own = problem.task.measure(problem.task.outputs(model, batch), batch).detach()
                    assert_close(found[(4, 12).index(step)], own, **FLOAT64)


def test_points_in_steps():
    problem = mlp_regression()
    steps = Recipe(lr=0.05, batch_size=4, steps=12, momentum=0.9)
    common = {"left_out": 3, "seeds": 1, "engine": "stacked"}
    epochs = further_train(problem.task, problem.train, problem.queries, RECIPE, points=[1, 3], **common)
    found = further_train(problem.task, problem.train, problem.queries, steps, points=[12, 4, 7], **common)
    assert (epochs.point_unit, found.point_unit, found.points) == ("epochs", "steps", (4, 7, 12))
    assert_close(found.measures[:, [0, 2]], epochs.measures, rtol=0, atol=0)
    end = further_train(problem.task, problem.train, problem.queries, steps, **common)
    assert end.points == (12,)
    assert_close(end.measures[:, 0], found.measures[:, 2], rtol=0, atol=0)


def test_engines_agree_and_leave_the_model_alone():
    problem = PROBLEMS["batch_norm"]()
    before = fingerprint(problem.task.model), problem.train.fingerprint
    found = {
        engine: further_train(
            problem.task, problem.train, problem.queries, RECIPE, left_out=5, seeds=2, points=[1, 2, 3], engine=engine
        )
        for engine in ("stacked", "loop", "auto")
    }
    for gold in found.values():
        assert_close(gold.measures, found["loop"].measures, **FLOAT64)
        assert_close(gold.full, found["loop"].full, **FLOAT64)
        assert_close(gold.distances, found["loop"].distances, **FLOAT64)
    assert found["auto"].execution.engine in ("stacked", "loop")
    assert (fingerprint(problem.task.model), Examples(problem.train.all()).fingerprint) == before
    problem.task.require_eval()


def test_a_seed_gives_the_same_runs_whatever_stands_beside_it():
    problem = mlp_regression()
    common = {"left_out": 4, "engine": "stacked"}
    many = further_train(problem.task, problem.train, problem.queries, RECIPE, seeds=4, **common)
    few = further_train(problem.task, problem.train, problem.queries, RECIPE, seeds=[3, 1], **common)
    assert (many.seeds, few.seeds) == ((0, 1, 2, 3), (3, 1))
    assert_close(few.measures, many.measures[[3, 1]], rtol=0, atol=0)
    assert not torch.allclose(few.measures[0], few.measures[1])


def test_repeated_sets_give_repeated_columns():
    """Random sets of a few examples may repeat; nothing is trained twice for that."""
    problem = mlp_regression()
    sets = LeftOutSets.groups([[3], [1, 2], [3], [1, 2], [5]])
    gold = further_train(problem.task, problem.train, problem.queries, RECIPE, left_out=sets, seeds=1, engine="loop")
    assert gold.left_out == ((3,), (1, 2), (3,), (1, 2), (5,))
    assert bool(torch.isfinite(gold.measures).all())
    assert_close(gold.measures[:, :, [2, 3]], gold.measures[:, :, [0, 1]], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_a_gold_standard_says_about_itself(dtype):
    base = classifier(measure="margin", dtype=dtype)
    train = Examples(base.train.all(), ids=[f"t{k}" for k in range(14)])
    queries = Examples(base.queries.all(), ids=[f"q{k}" for k in range(4)])
    gold = further_train(base.task, train, queries, RECIPE, left_out=[5, 2], seeds=2, points=[2, 1], engine="stacked")
    assert gold.measures.shape == (2, 2, 2, 4)
    assert gold.full.shape == (2, 2, 4)
    assert gold.distances.shape == (2, 2, 2)
    assert gold.measures.dtype == gold.full.dtype == gold.distances.dtype == torch.float64
    assert (gold.points, gold.point_unit, gold.measure, gold.orientation) == ((1, 2), "epochs", "margin", -1)
    assert gold.query_ids == ("q0", "q1", "q2", "q3")
    assert gold.left_out == (("t5",), ("t2",))
    assert gold.eps == torch.finfo(dtype).eps
    assert gold.execution.engine == "stacked"


def test_measures_of_a_sure_classifier_are_no_multiples_of_float32_rounding():
    """A float32 model with losses around 1e-9: recorded in float32 they would be 0 or multiples of 1.2e-7."""
    base = classifier(n_query=20, sure=30.0, dtype=torch.float32)
    recipe = Recipe(lr=1e-4, batch_size=4, epochs=2)
    gold = further_train(base.task, base.train, base.queries, recipe, left_out=14, seeds=1, engine="stacked")
    sure = gold.measures[0, 0].amax(0) < 1e-7
    assert int(sure.sum()) >= 3
    effects = gold.outcomes().effects[0, 0][sure]
    eps = torch.finfo(torch.float32).eps
    assert bool((gold.measures[0, 0][:, sure] > 0).all())
    assert bool((effects != 0).all())
    assert 0 < float(effects.abs().max()) < eps / 10
    assert bool((effects.abs() >= 16 * gold.eps * gold.outcomes().level[0, sure, None]).any())  # more than rounding


@pytest.mark.parametrize("build", [classifier, mlp_regression])
def test_measures_are_computed_in_float64_from_float32_outputs(build):
    """Nothing moves at this rate, so that every run must give the final model's measures, to the last bit."""
    small = build(dtype=torch.float32)
    recipe = Recipe(lr=1e-30, batch_size=4, epochs=1)
    gold = further_train(small.task, small.train, small.queries, recipe, left_out=2, seeds=1, engine="loop")
    batch = small.queries.all()
    outputs = small.task.outputs(small.task.model, batch).detach()
    exact = small.task.measure(outputs.double(), small.queries.to(dtype=torch.float64).all())
    assert torch.equal(gold.full[0, 0], exact)
    assert not torch.equal(small.task.measure(outputs, batch).double(), exact)


# Refusals, all of them before any training


@pytest.fixture
def _no_training(monkeypatch):
    def forbidden(job):
        raise AssertionError("training began")

    for name in INLINE:
        monkeypatch.setitem(INLINE, name, forbidden)


def refused(error, message, problem=None, recipe=RECIPE, **options):
    problem = problem or mlp_regression()
    arguments = {"left_out": 3, "seeds": 1, **options}
    with pytest.raises(error, match=message):
        further_train(problem.task, problem.train, problem.queries, recipe, **arguments)


@pytest.mark.usefixtures("_no_training")
@pytest.mark.parametrize(
    "left_out, error, message",
    [
        (15, InputError, "15 different single examples of 14"),
        (0, InputError, "`count` must be an integer of at least 1"),
        ([3, 14], InputError, r"names example 14; positions lie in 0\.\.13"),
        ([-1], InputError, r"names example -1"),
        ([3, 5, 3], InputError, "names position 3 more than once"),
        ([], WhenceError, "one set at least"),
        (LeftOutSets.groups([[1, 1]]), DataError, "lists example 1 more than once"),
        (LeftOutSets.groups([[1], []]), DataError, "set 1 is empty"),
        (LeftOutSets.groups([range(14)]), InputError, "leaves out all 14 examples"),
        (LeftOutSets.singles([20]), InputError, "names example 20"),
    ],
)
def test_left_out_sets_that_cannot_be(left_out, error, message):
    refused(error, message, left_out=left_out)


@pytest.mark.usefixtures("_no_training")
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"seeds": 0}, InputError, "`seeds` must be a positive count"),
        ({"seeds": -1}, InputError, "`seeds` must be a positive count"),
        ({"seeds": [1, 1]}, InputError, "distinct non-negative"),
        ({"seeds": [-1]}, InputError, "distinct non-negative"),
        ({"points": [4]}, InputError, "from 1 to the recipe's 3 epochs"),
        ({"engine": "lop"}, InputError, "Did you mean 'loop'"),
    ],
)
def test_other_settings_that_cannot_be(options, error, message):
    refused(error, message, **options)


@pytest.mark.usefixtures("_no_training")
def test_tasks_and_data_that_cannot_be_attributed():
    train_mode = mlp_regression()
    train_mode.task.model.train()
    refused(ModeError, "train mode", train_mode)
    broken = mlp_regression()
    broken.task.model[0].bias.data[0] = torch.nan
    refused(NonFiniteError, r"'0\.bias'", broken)
    good = mlp_regression()
    wide = Examples((torch.ones(3, 9, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)))
    refused(ShapeError, "query batch", type(good)(good.task, good.train, wide))
    refused(ShapeError, "train example batch", type(good)(good.task, wide, good.queries))
    scalar = Task(mlp(3, 2), outputs=lambda m, b: m(b[0]), loss=lambda o, b: (o - b[1]).square().mean())
    refused(ShapeError, 'reduction="none"', type(good)(scalar, good.train, good.queries))


@pytest.mark.parametrize("engine", ENGINES)
def test_divergence_is_named(engine):
    refused(NonFiniteError, r"without \[0\] \(seed 0\)|on all data \(seed 0\)", linear_regression(), engine=engine,
            recipe=Recipe(lr=1e9, batch_size=4, epochs=30))  # fmt: skip
