"""Unrolled scores, against autograd through a run written out by hand, and against the runs of the trainer."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from whence import Recipe, Task, attribute
from whence.data import Examples
from whence.errors import InputError, NonFiniteError, StoreWriteError, UnsupportedError
from whence.training import Job, epoch_orders, run_loop, training_twin
from whence.training.trajectory import Trajectory

F64 = torch.float64
A_FEW = 5  # a short and stable run does not stretch differences much; measured 0.003 to 0.4
EXACT = 1e-10  # hundreds of steps in another order of operations
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "momentum": {"optimizer": "sgd", "lr": 0.03, "momentum": 0.8},
    "nesterov": {"optimizer": "sgd", "lr": 0.03, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
    "clipped": {"optimizer": "sgd", "lr": 0.05, "clip_norm": 0.4},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.05},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.05, "clip_norm": 2.0},
}


def recipe_of(name: str, **options) -> Recipe:
    return Recipe(
        **{"batch_size": 5, "epochs": 4, "schedule": "cosine", "warmup_steps": 2, **OPTIMIZERS[name]} | options
    )


def torch_optimizer(recipe: Recipe, leaves):
    """`torch.optim`'s own, in the form that can be differentiated through."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            leaves, recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(leaves, recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay)


def measures_after(problem, recipe: Recipe, n_epochs: int, weights, seed: int = 0):
    """Measures (m,) after a run by `torch.optim` in which example i counts `weights[i]` times, as in the trainer."""
    task, (x, y) = problem.task, problem.train.all()
    leaves = {name: p.detach().clone().requires_grad_() for name, p in task.model.named_parameters()}
    optimizer = torch_optimizer(recipe, list(leaves.values()))
    n, step = len(x), 0
    for _, order in zip(range(n_epochs), epoch_orders(n, seed), strict=False):
        for rows in order.split(recipe.batch_size):
            optimizer.zero_grad()
            losses = task.loss(functional_call(task.model, leaves, (x[rows],)), (x[rows], y[rows]))
            ((weights[rows] * losses).sum() / len(rows)).backward()
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(list(leaves.values()), recipe.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step, n)
            optimizer.step()
            step += 1
    batch = problem.queries.all()
    with torch.no_grad():
        return task.measure(functional_call(task.model, leaves, (batch[0],)), batch)


def central_differences(problem, recipe: Recipe, n_epochs: int, seed: int = 0, eps: float = 1e-6):
    """-o_q d measure / d weight_i from two runs per example, fourth-order in eps: (m, n)."""
    n = len(problem.train)
    columns = []
    for i in range(n):
        unit = torch.zeros(n, dtype=F64)
        unit[i] = eps
        at = [measures_after(problem, recipe, n_epochs, 1 + k * unit, seed) for k in (-2, -1, 1, 2)]
        columns.append((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * eps))
    return -problem.task.measure.orientation * torch.stack(columns, 1)


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scores_are_the_derivative_of_torchs_own_optimizers(name, kind, request, assert_same):
    problem = request.getfixturevalue(kind)(hidden=4, n_train=11, n_query=3)
    recipe = recipe_of(name)
    found = attribute(*problem, "unrolled", recipe=recipe, at=[2, 4])
    for epochs, matrix in found.items():
        wanted = central_differences(problem, recipe, epochs)
        assert_same(matrix.values, wanted, 1e-6)  # of the differences: rounding, 1e-16 over an eps of 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_double_reverse_mode_gives_the_same(name, classification, assert_same):
    problem = classification(hidden=4, measure="margin")
    options = {"recipe": recipe_of(name), "at": [1, 3], "seeds": [4]}
    fast = attribute(*problem, "unrolled", **options)
    slow = attribute(*problem, "unrolled", products="reverse", **options)
    for amount, matrix in fast.items():
        assert_same(matrix.values, slow[amount].values, EXACT)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("sampler", ["same_order", "down_weight"])
def test_the_trajectory_is_the_run_of_the_trainer(name, sampler, classification, assert_same):
    problem = classification(hidden=4, n_train=13)
    recipe = recipe_of(name, sampler=sampler)
    n_steps = recipe.steps_at(3, 13)
    twin = training_twin(problem.task, True)
    job = Job(twin, problem.train, problem.queries, recipe, 7, ((),), (n_steps,), keep_parameters=True)
    trained = run_loop(job).parameters
    found = Trajectory(problem.task, problem.train, recipe, 7, n_steps)
    assert_same(found.end[0], problem.task.layout.flatten({k: v[0] for k, v in trained.items()}), 1e-12)


def test_dropout_masks_are_those_of_the_trainer(assert_same):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.4), nn.Tanh(), nn.Linear(6, 1)).double().eval()
    x, y = torch.randn(12, 3, dtype=F64), torch.randn(12, 1, dtype=F64)
    task, train = Task.regression(model), Examples((x, y))
    recipe = recipe_of("momentum")
    end = recipe.steps_at(4, 12)
    trained = run_loop(Job(training_twin(task, True), train, train, recipe, 1, ((),), (end,), keep_parameters=True))
    run = Trajectory(task, train, recipe, 1, end)
    flat = task.layout.flatten({k: v[0] for k, v in trained.parameters.items()})
    assert_same(run.end[0], flat, 1e-12)
    still = Trajectory(task, train, replace(recipe, dropout=False), 1, end)
    assert float((still.end[0] - flat).abs().max()) > 1e-3
    kinds = [
        attribute(task, train, train, "unrolled", recipe=recipe, products=p).values for p in ("forward", "reverse")
    ]
    assert_same(*kinds, EXACT)


def test_full_batches_of_a_linear_model_are_horizon_ahead(regression, assert_same):
    """Squared error of a linear model: its linearised further training is its further training."""
    problem = regression(n_train=12, n_features=3)
    recipe = Recipe(lr=0.05, batch_size=12, epochs=30, momentum=0.5)
    exact = attribute(*problem, "horizon_ahead", recipe=recipe, at=[1, 10, 30])
    for amount, matrix in attribute(*problem, "unrolled", recipe=recipe, at=[1, 10, 30]).items():
        assert_same(matrix.values, exact[amount].values, EXACT)
        assert (matrix.unit, exact[amount].unit) == ("loss", "loss")


def test_scores_are_the_mean_over_seeds_and_points_share_a_run(regression, assert_same):
    problem = regression(hidden=3)
    recipe = recipe_of("adam")
    single = [attribute(*problem, "unrolled", recipe=recipe, at=3, seeds=[seed]).values for seed in (0, 1)]
    assert float((single[0] - single[1]).abs().max()) > 1e-6
    both = attribute(*problem, "unrolled", recipe=recipe, at=[1, 3, 4], seeds=2)
    assert_same(both[3].values, (single[0] + single[1]) / 2, 1e-12)
    assert both[3].provenance["settings"]["seeds"] == [0, 1]


@settings(max_examples=10, deadline=None)
@given(n_states=st.integers(1, 30))
def test_states_that_are_computed_again_change_nothing(n_states, regression):
    problem = regression(hidden=3)
    recipe = recipe_of("momentum", epochs=5)
    size = 2 * problem.task.layout.n_params * 8
    few = attribute(*problem, "unrolled", recipe=recipe, memory=n_states * size).values
    assert torch.equal(few, attribute(*problem, "unrolled", recipe=recipe).values)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_on_disk_change_nothing_and_leave_nothing(name, regression, tmp_path):
    problem = regression(hidden=3)
    options = {"recipe": recipe_of(name), "at": [1, 4], "seeds": 2}
    spilled = attribute(*problem, "unrolled", memory=0, spill=tmp_path, **options)
    for amount, matrix in attribute(*problem, "unrolled", **options).items():
        assert torch.equal(spilled[amount].values, matrix.values)
        assert spilled[amount].provenance["settings"]["keep"] == "full"
        assert "rounding" not in spilled[amount].provenance["settings"]
    assert not any(tmp_path.iterdir())


def test_a_derivative_that_fails_leaves_no_file(regression, tmp_path, monkeypatch):
    problem = regression(hidden=3)
    steps = []

    def fails(run, state, step, adjoint, **_):
        steps.append(step.step)
        assert len(list(tmp_path.rglob("*.safetensors"))) == run.n_steps
        raise ZeroDivisionError

    monkeypatch.setattr("whence.methods.unrolled.pull_back_step", fails)
    with pytest.raises(ZeroDivisionError):
        attribute(*problem, "unrolled", recipe=recipe_of("adam"), memory=0, spill=tmp_path)
    assert len(steps) == 1
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_used_is_refused(regression, tmp_path):
    (tmp_path / "taken").write_bytes(b"mine")
    with pytest.raises(StoreWriteError, match="taken"):
        attribute(*regression(), "unrolled", recipe=recipe_of("sgd"), spill=tmp_path / "taken")


@pytest.mark.parametrize("n_states", [2, 100])
def test_bfloat16_is_off_by_no_more_than_its_rounding_allows(n_states, regression):
    """Squared error of a linear model, small steps of SGD: the bound is the proof written out.

    The Hessian is constant and the end of the run exact, so only each step's gradient 2 x (x . theta - y) sees rounded
    parameters; they differ by at most rounding * |theta|, for a segment's steps do not stretch a difference, and the
    adjoint is nowhere longer than where it starts. Once an epoch an example gives lr / b of its gradient along it.
    """
    problem = regression(n_train=12, n_features=3, bias=False)
    recipe = Recipe(lr=0.02, batch_size=4, epochs=6)
    task, (x, _), (xq, yq) = problem.task, problem.train.all(), problem.queries.all()
    size = 8 * task.layout.n_params
    run = Trajectory(task, problem.train, recipe, 0, 18)
    curvatures = [2 * x[s.indices[0]].T @ x[s.indices[0]] / 4 for s in run.batches]
    assert all(float(torch.linalg.matrix_norm(c, 2)) * recipe.lr < 2 for c in curvatures)
    longest = max(float(state[0].norm()) for _, state in run.backwards())
    measured = (2 * (xq @ run.end[0] - yq[:, 0])[:, None] * xq).norm(dim=1)  # gradients of the queries' losses

    exact = attribute(*problem, "unrolled", recipe=recipe).values
    found = attribute(*problem, "unrolled", recipe=recipe, keep="bfloat16", memory=n_states * size)
    rounding = found.provenance["settings"]["rounding"]["parameters"]
    per_step = recipe.lr / 4 * 2 * x.square().sum(1) * rounding * longest
    bound = recipe.epochs * measured[:, None] * per_step
    difference = (found.values - exact).abs()
    assert bool((difference <= bound).all())
    assert float(difference.max()) > 0
    assert found.provenance["settings"]["keep"] == "bfloat16"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bfloat16_is_near_with_every_optimizer(name, classification):
    """A network: scores are off by a few times the relative error of the states."""
    problem = classification(hidden=4)
    recipe = recipe_of(name)
    exact = attribute(*problem, "unrolled", recipe=recipe, seeds=2).values
    found = attribute(*problem, "unrolled", recipe=recipe, seeds=2, keep="bfloat16")
    rounding = found.provenance["settings"]["rounding"]
    assert set(rounding) == {"parameters", "buffers"} - ({"buffers"} if name in ("sgd", "clipped") else set())
    difference = float((found.values - exact).abs().max() / exact.abs().max())
    assert 0 < difference <= A_FEW * max(rounding.values())


def test_a_run_from_the_initialisation_is_the_derivative_of_training(classification, assert_same):
    problem = classification(hidden=4)
    recipe = recipe_of("sgd", epochs=6)
    start = {name: 0.5 * x for name, x in problem.task.model.state_dict().items()}
    found = attribute(*problem, "unrolled", recipe=recipe, start=start)
    begun = classification(hidden=4)
    begun.task.model.load_state_dict(start)
    assert torch.equal(found.values, attribute(*begun, "unrolled", recipe=recipe).values)
    assert found.provenance["settings"]["start"] == "given"
    half = {f"module.{name}": x.half() for name, x in start.items()}
    settings_of = attribute(*problem, "unrolled", recipe=recipe, start=half).provenance["settings"]
    assert (settings_of["start_stripped"], settings_of["start_cast"]) == ("module.", ["float16 to float64"])
    with pytest.raises(InputError, match=r"^`start` does not fit the model\. .*missing: 0\.bias.*the model: x\."):
        attribute(*problem, "unrolled", recipe=recipe, start={"x": torch.ones(1)})


def test_an_example_that_is_never_seen_has_score_zero(regression):
    problem = regression(n_train=12)
    recipe = Recipe(lr=0.05, batch_size=4, steps=2)
    seen = set(torch.cat(next(epoch_orders(12, 0)).split(4)[:2]).tolist())
    values = attribute(*problem, "unrolled", recipe=recipe).values
    zero = {i for i in range(12) if bool((values[:, i] == 0).all())}
    assert zero == set(range(12)) - seen


def test_a_dead_weight_under_adam_has_a_derivative(regression):
    """A ReLU that is off on all data: its second moment stays at zero, where the square root has no derivative."""
    problem = regression(n_features=3)
    layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double().eval()
    layers[0].bias.data[1] = -1e3
    scores = attribute(Task.regression(layers), problem.train, problem.queries, "unrolled", recipe=recipe_of("adam"))
    assert bool(torch.isfinite(scores.values).all())
    assert float(scores.values.abs().max()) > 0


def test_what_cannot_be_unrolled_is_refused(regression):
    problem = regression(hidden=3)
    with pytest.raises(NonFiniteError, match="learning rate"):
        attribute(*problem, "unrolled", recipe=Recipe(lr=1e200, batch_size=4, epochs=3))
    with pytest.raises(InputError, match="seeds"):
        attribute(*problem, "unrolled", recipe=recipe_of("sgd"), seeds=[1, 1])

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1, dtype=F64)

        def forward(self, x):
            return self.layer(nn.functional.dropout(x, 0.5, self.training))

    with pytest.raises(UnsupportedError, match="dropout"):
        attribute(Task.regression(Noisy().eval()), problem.train, problem.queries, "unrolled", recipe=recipe_of("sgd"))
