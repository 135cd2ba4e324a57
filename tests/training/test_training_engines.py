"""Every engine against a plain `torch.optim` loop, step by step."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import whence.training.stacked
from whence.data import Examples
from whence.errors import NonFiniteError, UnsupportedError
from whence.task import Task, fingerprint
from whence.testing.problems import PROBLEMS, classifier, mlp, mlp_regression
from whence.training import Job, Recipe, run_loop, run_stacked, train, training_twin
from whence.training.stacked_layers import STACKED_LAYERS, chain_of

FLOAT64 = {"rtol": 1e-10, "atol": 1e-11}  # rounding in another order, grown over a dozen steps
FLOAT32 = {"rtol": 2e-4, "atol": 2e-5}  # the same in float32; Adam's division grows it most

RECIPES = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"momentum": 0.5, "weight_decay": 0.1},
    "adam": {"optimizer": "adam", "betas": (0.8, 0.95)},
    "adam with decay": {"optimizer": "adam", "weight_decay": 0.1, "eps": 1e-3},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.3},
    "clipping": {"clip_norm": 0.3},
    "clipping, momentum": {"clip_norm": 0.3, "momentum": 0.9},
    "constant, warm-up": {"warmup_steps": 3},
    "linear": {"schedule": "linear"},
    "linear, warm-up": {"schedule": "linear", "warmup_steps": 3, "momentum": 0.9},
    "cosine": {"schedule": "cosine"},
    "cosine, warm-up": {"schedule": "cosine", "warmup_steps": 3, "optimizer": "adam"},
    "down-weight": {"sampler": "down_weight", "momentum": 0.9},
}
RAGGED = ((), (0,), (5, 13), (14, 2))  # of 15 in batches of 4: 4 batches in every epoch


def recipe_of(name="sgd", **options):
    return Recipe(**{"lr": 0.1, "batch_size": 4, "epochs": 3, "dropout": False, **RECIPES[name], **options})


def job_of(problem, recipe, sets, *, seed=3, n_steps=None):
    n_steps = recipe.steps_at(recipe.amount, len(problem.train)) if n_steps is None else n_steps
    task = training_twin(problem.task, recipe.dropout)
    steps = tuple(range(1, n_steps + 1))
    return Job(task, problem.train, problem.queries, recipe, seed, sets, steps, keep_parameters=True)


@pytest.fixture(params=["loop", "chain", "vmap"])
def engine(request, monkeypatch):
    """The loop, and both ways of the stacked engine."""
    if request.param == "vmap":
        monkeypatch.setattr(whence.training.stacked, "chain_of", lambda task, leaves: None)
    run = run_loop if request.param == "loop" else run_stacked
    run_of = {"loop": run_loop, "chain": run_stacked, "vmap": run_stacked}
    assert run is run_of[request.param]
    return run


def assert_is_plain_training(result, job, train_plainly, tolerance):
    """Measures and distances at every step, and the parameters at the end, of every run."""
    start = dict(job.task.model.named_parameters())
    batch = job.queries.to(dtype=torch.float64).all()
    for run, lacks in enumerate(job.left_out):
        for step, model in train_plainly(job.task, job.train, job.recipe, job.seed, lacks, job.record_steps[-1]):
            with torch.no_grad():
                outputs = job.task.outputs(model, job.queries.all()).double()
                moved = sum((p - start[name]).double().square().sum() for name, p in model.named_parameters())
            assert_close(result.measures[step - 1, run], job.task.measure(outputs, batch), **tolerance)
            assert_close(result.distances[step - 1, run], moved.sqrt(), **tolerance)
        for name, p in model.named_parameters():
            if p.requires_grad:
                assert_close(result.parameters[name][run], p.detach(), **tolerance)


@pytest.mark.parametrize("name", RECIPES)
def test_float64_runs_are_plain_training(engine, train_plainly, name):
    job = job_of(mlp_regression(15), recipe_of(name), RAGGED)
    assert_is_plain_training(engine(job), job, train_plainly, FLOAT64)


@pytest.mark.parametrize("name", RECIPES)
def test_float32_runs_are_plain_training(engine, train_plainly, name):
    job = job_of(mlp_regression(15, dtype=torch.float32), recipe_of(name), RAGGED, n_steps=8)
    result = engine(job)
    assert result.measures.dtype == result.distances.dtype == torch.float64
    assert result.parameters["0.weight"].dtype == torch.float32
    assert_is_plain_training(result, job, train_plainly, FLOAT32)


def test_recipes_differ_where_they_should():
    """Otherwise the tests above would not see an ignored setting."""
    ends = [run_loop(job_of(mlp_regression(15), recipe_of(name), ((),))).measures[-1] for name in RECIPES]
    same = [(a, b) for a in range(len(ends)) for b in range(a) if torch.allclose(ends[a], ends[b], rtol=1e-6)]
    names = list(RECIPES)
    assert [(names[a], names[b]) for a, b in same] == [("down-weight", "momentum")]  # equal where nothing is left out


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9, "weight_decay": 0.1}, {"optimizer": "adamw", "weight_decay": 0.1}, {"clip_norm": 0.3}],
    ids=["sgd", "adamw", "clipping"],
)
def test_every_network_trains_plainly(train_plainly, name, options):
    problem = PROBLEMS[name]()
    recipe = recipe_of(lr=0.01, **options)
    job = job_of(problem, recipe, ((), (2,), (7,)), n_steps=6)
    assert_is_plain_training(run_loop(job), job, train_plainly, FLOAT64)
    if name != "branching":
        assert_is_plain_training(run_stacked(job), job, train_plainly, FLOAT64)


def test_a_network_that_vmap_cannot_run_is_refused_by_the_stacked_engine():
    job = job_of(PROBLEMS["branching"](), recipe_of(), ((), (2,)))
    with pytest.raises(UnsupportedError, match=r'stacked engine cannot run this model.*engine="loop"'):
        run_stacked(job)


def test_an_epoch_that_loses_a_batch_trains_plainly(engine, train_plainly):
    """13 examples in batches of 4: without one of them, every fourth step has no batch and changes nothing."""
    job = job_of(mlp_regression(13), recipe_of("momentum"), ((5,), (0,)))
    result = engine(job)
    assert_is_plain_training(result, job, train_plainly, FLOAT64)
    assert_close(result.measures[3], result.measures[2], rtol=0, atol=0)
    assert not torch.equal(result.measures[4], result.measures[3])


def test_a_batch_larger_than_the_train_set_is_the_whole_set(engine, train_plainly):
    job = job_of(mlp_regression(6), recipe_of(batch_size=100, epochs=4), ((), (1,), (0, 1, 2, 3, 4)))
    assert_is_plain_training(engine(job), job, train_plainly, FLOAT64)


def test_recording_less_often_gives_the_same_numbers(engine):
    job = job_of(mlp_regression(15), recipe_of("adam"), RAGGED)
    every = engine(job)
    few = engine(Job(job.task, job.train, job.queries, job.recipe, job.seed, job.left_out, (2, 7, 12)))
    assert_close(few.measures, every.measures[[1, 6, 11]], rtol=0, atol=0)
    assert_close(few.distances, every.distances[[1, 6, 11]], rtol=0, atol=0)
    assert few.parameters == {}


def test_runs_do_not_depend_on_their_neighbours(engine):
    problem = mlp_regression(15)
    together = engine(job_of(problem, recipe_of("clipping, momentum"), RAGGED))
    for k, lacks in enumerate(RAGGED):
        alone = engine(job_of(problem, recipe_of("clipping, momentum"), (lacks,)))
        assert_close(together.measures[:, k], alone.measures[:, 0], **FLOAT64)


def test_the_seed_decides_the_order(engine):
    problem = mlp_regression(15)
    one, again, other = (engine(job_of(problem, recipe_of(), ((),), seed=s)).measures for s in (1, 1, 2))
    assert_close(one, again, rtol=0, atol=0)
    assert not torch.allclose(one, other)


def test_engines_leave_task_and_data_as_they_were(engine):
    problem = PROBLEMS["batch_norm"]()
    job = job_of(problem, recipe_of(), ((), (3,)))
    before = fingerprint(job.task.model), problem.train.fingerprint, fingerprint(problem.task.model)
    engine(job)
    fresh = Examples(problem.train.all())
    assert (fingerprint(job.task.model), fresh.fingerprint, fingerprint(problem.task.model)) == before
    assert all(p.grad is None for p in job.task.model.parameters())


@pytest.mark.parametrize(
    "sets, who",
    [((("c",), ("d",)), r"without \['c'\]"), (((), ("d",)), "on all data"), ((("b", "e"),), r"\['b', 'e'\]")],
)
def test_divergence_names_seed_and_left_out_example(engine, sets, who):
    problem = PROBLEMS["linear"]()
    train = Examples(problem.train.all(), ids=list("abcdefghijkl"))
    positions = tuple(tuple(train.index_of(i) for i in ids) for ids in sets)
    recipe = Recipe(lr=1e6, batch_size=4, epochs=40)
    job = Job(training_twin(problem.task, True), train, problem.queries, recipe, 11, positions, (60, 120))
    with pytest.raises(NonFiniteError, match=rf"Training .*{who}.* \(seed 11\).*query 0 by step 60.*1000000\.0"):
        engine(job)


# The fast path of the stacked engine


def leaves_of(model, n_runs=3):
    generator = torch.Generator().manual_seed(0)
    named = dict(model.named_parameters())
    return {
        name: p.detach() + 0.1 * torch.randn(n_runs, *p.shape, generator=generator, dtype=p.dtype)
        for name, p in named.items()
    }


@pytest.mark.parametrize("layer", STACKED_LAYERS)
def test_every_layer_of_the_table_is_the_layer_itself(layer):
    inner = layer() if layer is not nn.Linear else layer(4, 4, bias=False, dtype=torch.float64)
    tail = [] if layer is not nn.Flatten else [nn.Linear(4, 4, dtype=torch.float64)]
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), inner, *tail).eval()
    task, leaves = Task.regression(model), leaves_of(model)
    layers = chain_of(task, leaves)
    assert layers is not None
    x = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = whence.training.stacked.run_chain(layers, leaves, x)
    for r in range(3):
        own = copy.deepcopy(model)
        own.load_state_dict({name: p[r] for name, p in leaves.items()})
        assert_close(found[r], own(x[r]).detach(), rtol=1e-12, atol=1e-14)


def test_pictures_are_flattened_as_by_the_layer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, dtype=torch.float64))
    leaves = leaves_of(model)
    x = torch.randn(3, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = whence.training.stacked.run_chain(chain_of(Task.regression(model), leaves), leaves, x)
    own = torch.einsum("rbi,roi->rbo", x.flatten(2), leaves["1.weight"]) + leaves["1.bias"][:, None]
    assert_close(found, own, rtol=1e-12, atol=1e-14)


class Halved(nn.Sequential):
    """A subclass that does more than its layers."""

    def forward(self, x):
        return super().forward(x) / 2


def shared_activation():
    act = nn.Tanh()
    layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in ((3, 4), (4, 4), (4, 2))]
    return nn.Sequential(layers[0], act, layers[1], act, layers[2])


def shared_linear():
    layer = nn.Linear(3, 3, dtype=torch.float64)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 2, dtype=torch.float64))


def hooked(whole):
    model = mlp(3, 4, 2)
    (model if whole else model[1]).register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def frozen_bias():
    model = mlp(3, 4, 2)
    model[0].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "make, chained",
    [
        (lambda: mlp(3, 4, 2), True),
        (shared_activation, True),
        (shared_linear, False),
        (lambda: Halved(*mlp(3, 4, 2)), False),
        (lambda: hooked(True), False),
        (lambda: hooked(False), False),
        (frozen_bias, False),
        (lambda: nn.Sequential(*mlp(3, 4), nn.LayerNorm(4, dtype=torch.float64), *mlp(4, 2)), False),
        (lambda: nn.Sequential(mlp(3, 4), nn.Tanh(), mlp(4, 2)), False),
    ],
)
def test_only_plain_chains_take_the_fast_path_and_all_train_plainly(train_plainly, make, chained):
    base = mlp_regression()
    task = Task.regression(make().eval())
    stacked = leaves_of(task.model)
    tracked = {name: stacked[name] for name in task.layout.names}
    assert (chain_of(task, tracked) is not None) == chained
    job = job_of(type(base)(task, base.train, base.queries), recipe_of(), ((), (4,)), n_steps=5)
    assert_is_plain_training(run_stacked(job), job, train_plainly, FLOAT64)


def test_a_task_that_does_more_than_call_its_model_is_vmapped(train_plainly):
    base = classifier()
    task = Task(base.task.model, outputs=lambda model, batch: 2 * model(batch[0]), loss=base.task.loss)
    assert chain_of(task, leaves_of(task.model)) is None
    job = job_of(type(base)(task, base.train, base.queries), recipe_of(), ((), (4,)), n_steps=5)
    assert_is_plain_training(run_stacked(job), job, train_plainly, FLOAT64)


# train()


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "tied", "shared", "scaled", "frozen", "conv"])
def test_train_is_plain_training_in_place(train_plainly, name):
    problem, twin = PROBLEMS[name](), PROBLEMS[name]()
    recipe = recipe_of("momentum", lr=0.02)
    assert train(problem.task, problem.train, recipe, seed=5) is problem.task
    *_, (_, expected) = train_plainly(twin.task, twin.train, recipe, 5)
    assert_close(problem.task.model.state_dict(), expected.state_dict(), **FLOAT64)
    problem.task.require_eval()
    assert fingerprint(problem.task.model) != fingerprint(twin.task.model)


def test_train_keeps_batch_norm_statistics():
    problem, twin = PROBLEMS["batch_norm"](), PROBLEMS["batch_norm"]()
    train(problem.task, problem.train, recipe_of())
    for name, buffer in problem.task.model.named_buffers():
        assert_close(buffer, twin.task.model.get_buffer(name), rtol=0, atol=0)
