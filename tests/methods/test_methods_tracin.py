"""TracIn against gradient products written out at each checkpoint."""

import copy
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import save_file

from whence import attribute
from whence.data import Examples
from whence.errors import DataError, InputError, NonFiniteError
from whence.methods.checkpoints import Models
from whence.methods.inputs import Inputs
from whence.methods.scoring import block_source
from whence.methods.tracin import TRACIN, tracin
from whence.scores import ScoreMatrix
from whence.task import GroupWeights, ParameterGroups, Task, fingerprint
from whence.task.checkpoint import read_checkpoint
from whence.testing.problems import TiedNet

F64 = torch.float64
EXACT = 1e-12  # sums of a few dozen products in another order


def scores(problem, weights=None, **options):
    inputs = Inputs(*problem)
    inputs = inputs if weights is None else inputs.weighted(weights)
    return ScoreMatrix.from_blocks(block_source(TRACIN, inputs, tracin(inputs, **options)))


def states_of(task, n, scale=0.3):
    """State dicts around the final model, as a run would leave them."""
    found = []
    for k in range(n):
        generator = torch.Generator().manual_seed(k)
        noise = {
            name: scale * torch.randn(x.shape, generator=generator, dtype=F64)
            for name, x in task.model.state_dict().items()
        }
        found.append({name: x + noise[name] for name, x in task.model.state_dict().items()})
    return found


def products(problem, state, dense, weights=None):
    """a_q . Diag(w) b_i at other parameters, by plain autograd."""
    model = copy.deepcopy(problem.task.model)
    model.load_state_dict(state)
    parts = dense(type(problem)(problem.task.with_model(model), problem.train, problem.queries))
    a = parts.measures if weights is None else parts.measures * weights
    return problem.task.measure.orientation * a @ parts.losses.T


@pytest.mark.parametrize("measure", ["loss", "margin"])
def test_scores_are_products_summed_with_learning_rates(measure, classification, dense, assert_same):
    problem = classification(hidden=4, measure=measure)
    states, rates = states_of(problem.task, 3), [0.5, 0.1, 0.02]
    each = [products(problem, state, dense) for state in states]
    wanted = sum(rate * values for rate, values in zip(rates, each, strict=True))
    found = scores(problem, checkpoints=states, learning_rates=rates)
    assert_same(found.values, wanted, EXACT)
    assert found.unit is None
    assert_same(scores(problem, checkpoints=states).values, sum(each), EXACT)
    assert_same(scores(problem, checkpoints=tuple(states), learning_rates=0.3).values, 0.3 * sum(each), EXACT)


def test_the_final_model_alone_is_grad_dot(regression, assert_same):
    problem = regression(hidden=4, n_outputs=2)
    final = problem.task.model.state_dict()
    found = scores(problem, checkpoints=[final], learning_rates=0.1).values
    assert_same(found, 0.1 * attribute(*problem, "grad_dot").values, EXACT)


def test_one_step_of_training_is_predicted(regression):
    """To first order lr a_q . b_i is what a step on example i takes from the query's loss."""
    problem = regression(hidden=4)
    task, (x, y), (xq, yq) = problem.task, problem.train.all(), problem.queries.all()
    lr = 1e-6
    found = scores(problem, checkpoints=[task.model.state_dict()], learning_rates=lr).values
    for i in range(len(x)):
        model = copy.deepcopy(task.model)
        before = (model(xq) - yq).square().mean(1).detach()
        (model(x[i : i + 1]) - y[i : i + 1]).square().mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= lr * p.grad
            torch.testing.assert_close(before - (model(xq) - yq).square().mean(1), found[:, i], rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("build", ["regression", "classification"])
def test_a_copy_of_the_query_supports_it(build, request):
    task, train, queries = request.getfixturevalue(build)(hidden=4)
    joined = Examples(tuple(torch.cat([a, b]) for a, b in zip(train.all(), queries.all(), strict=True)))
    values = scores((task, joined, queries), checkpoints=states_of(task, 2)).values
    assert bool((values[:, 12:].diagonal() > 0).all())


def test_files_are_read_like_state_dicts(classification, tmp_path, assert_same):
    problem = classification(hidden=4)
    states = states_of(problem.task, 2)
    torch.save(states[0], tmp_path / "a.pt")
    save_file(states[1], tmp_path / "b.safetensors")
    paths = [tmp_path / "a.pt", str(tmp_path / "b.safetensors")]
    found = scores(problem, checkpoints=paths)
    assert_same(found.values, scores(problem, checkpoints=states).values, EXACT)
    marks = found.provenance["settings"]["checkpoints"]
    assert [mark["checkpoint"] for mark in marks] == [str(path) for path in paths]
    assert marks[0]["fingerprint"] != marks[1]["fingerprint"]


@pytest.mark.parametrize(("n", "readings"), [(1, [0]), (3, [1, 2, 0, 1, 2])])
def test_the_first_checkpoint_is_read_once_and_the_others_twice(n, readings, classification, tmp_path, monkeypatch):
    problem = classification(hidden=4)
    states = states_of(problem.task, n)
    paths = [tmp_path / f"{k}.pt" for k in range(n)]
    for state, path in zip(states, paths, strict=True):
        torch.save(state, path)
    read = []

    def reading(path):
        read.append(paths.index(path))
        return read_checkpoint(path)

    monkeypatch.setattr("whence.methods.checkpoints.read_checkpoint", reading)
    found = scores(problem, checkpoints=paths, learning_rates=[0.5**k for k in range(n)])
    assert read == readings
    wanted = scores(problem, checkpoints=states, learning_rates=[0.5**k for k in range(n)])
    assert torch.equal(found.values, wanted.values)
    marks = [one.provenance["settings"]["checkpoints"] for one in (found, wanted)]
    assert [mark["fingerprint"] for mark in marks[0]] == [mark["fingerprint"] for mark in marks[1]]
    assert [mark["checkpoint"] for mark in marks[0]] == [str(path) for path in paths]


def test_checkpoints_can_be_walked_through_again(classification):
    problem = classification(hidden=4)
    states = states_of(problem.task, 2)
    models = Models.of(Inputs(*problem), states)
    for _ in range(2):
        for state, task in zip(states, models, strict=True):
            assert all(torch.equal(x, state[name]) for name, x in task.model.state_dict().items())


def test_the_model_stays_as_it_is(classification):
    problem = classification(hidden=4)
    before, pointers = fingerprint(problem.task.model), [p.data_ptr() for p in problem.task.model.parameters()]
    states = states_of(problem.task, 2)
    copies = copy.deepcopy(states)
    scores(problem, checkpoints=states)
    assert fingerprint(problem.task.model) == before
    assert [p.data_ptr() for p in problem.task.model.parameters()] == pointers
    assert not any(p.grad is not None for p in problem.task.model.parameters())
    for state, same in zip(states, copies, strict=True):
        assert all(torch.equal(state[name], same[name]) for name in same)


def test_frozen_parameters_stay_frozen_and_buffers_are_those_of_the_checkpoint(regression, dense, assert_same):
    problem = regression(n_features=3)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), problem.task.model).double().eval()
    model[0].requires_grad_(False)
    task = Task.regression(model)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    state["0.running_mean"] += 1.0
    found = scores((task, problem.train, problem.queries), checkpoints=[state]).values
    # Batch norm in eval mode with another mean: a linear model that sees shifted inputs.
    with torch.no_grad():
        x, xq = model[0](problem.train.all()[0] - 1.0), model[0](problem.queries.all()[0] - 1.0)
    moved = type(problem)(problem.task, Examples((x, problem.train.all()[1])), Examples((xq, problem.queries.all()[1])))
    parts = dense(moved)
    assert_same(found, parts.measures @ parts.losses.T, EXACT)


def test_group_weights_apply_at_every_checkpoint(classification, dense, assert_same):
    problem = classification(hidden=4)
    layout = problem.task.layout
    groups = ParameterGroups.of(layout, "tensor")
    weights = GroupWeights(torch.tensor([0.0, 2.0, 1.0, 1.0], dtype=F64), groups)
    states = states_of(problem.task, 2)
    flat = weights.of_parameter(layout).to(F64)
    wanted = sum(products(problem, state, dense, flat) for state in states)
    assert_same(scores(problem, weights, checkpoints=states).values, wanted, EXACT)
    (block,) = tracin(Inputs(*problem).by_group(groups), checkpoints=states).blocks()
    assert_same(block.values.reshape(4, 4, 12).sum(1), scores(problem, checkpoints=states).values, EXACT)


def test_blocks_of_the_train_set_do_not_matter(classification, monkeypatch, assert_same):
    problem = classification(hidden=4)
    states = states_of(problem.task, 2)
    wanted = scores(problem, checkpoints=states).values
    monkeypatch.setattr("whence.gradients.rows.chunk_size", lambda *_: 5)
    assert_same(scores(problem, checkpoints=states).values, wanted, EXACT)


# --- refusals, all before the first gradient --------------------------------------------------------------------------


@pytest.fixture
def no_gradients(monkeypatch):
    monkeypatch.setattr("whence.methods.tracin.loss_products", lambda *_, **__: pytest.fail("gradients were computed"))


def spoiled(state, how):
    state = dict(state)
    if how == "missing":
        del state["2.bias"]
    elif how == "unexpected":
        state["3.weight"] = torch.ones(1)
    else:
        state["0.weight"] = state["0.weight"].T
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"missing: 2\.bias"),
        ("unexpected", r"not in the model: 3\.weight"),
        ("shape", r"of another shape: 0\.weight is \(3, 4\) for \(4, 3\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(how, message, classification, tmp_path, no_gradients):
    problem = classification(hidden=4)
    good, bad = states_of(problem.task, 2)
    with pytest.raises(InputError, match=rf"^Checkpoint 1 does not fit the model\. Parameters and buffers {message}"):
        scores(problem, checkpoints=[good, spoiled(bad, how)])
    torch.save({name: x.clone() for name, x in spoiled(bad, how).items()}, tmp_path / "bad.pt")
    with pytest.raises(DataError, match=rf"^Checkpoint 1: .*bad\.pt does not fit the model\. .*{message}"):
        scores(problem, checkpoints=[good, tmp_path / "bad.pt"])


def test_what_was_changed_to_fit_is_in_the_settings(classification, tmp_path, assert_same):
    problem = classification(hidden=4)
    (state,) = states_of(problem.task, 1)
    half = {name: x.half() for name, x in state.items()}
    save_file({f"module.{name}": x for name, x in half.items()}, tmp_path / "half.safetensors")
    found = scores(problem, checkpoints=[tmp_path / "half.safetensors", half])
    wanted = scores(problem, checkpoints=[{name: x.double() for name, x in half.items()}])
    assert_same(found.values, 2 * wanted.values, EXACT)
    marks = found.provenance["settings"]["checkpoints"]
    assert [(mark.get("stripped"), mark["cast"]) for mark in marks] == [
        ("module.", ["float16 to float64"]),
        (None, ["float16 to float64"]),
    ]


def test_a_checkpoint_may_hold_a_tied_tensor_once(tmp_path):
    task, train, queries = tied_problem()
    whole = task.model.state_dict()
    once = {name: x for name, x in whole.items() if name != "decoder.weight"}
    assert len(once) < len(whole)
    found = scores((task, train, queries), checkpoints=[once]).values
    assert torch.equal(found, scores((task, train, queries), checkpoints=[whole]).values)


def tied_problem():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    return Task.regression(TiedNet(3).eval()), Examples((x[:4], x[:4])), Examples((x[4:], x[4:]))


def test_all_that_is_wrong_with_a_state_dict_is_told(classification, no_gradients):
    problem = classification(hidden=4)
    (state,) = states_of(problem.task, 1)
    for how in ("missing", "unexpected", "shape"):
        state = spoiled(state, how)
    with pytest.raises(InputError, match=r"missing: 2\.bias; not in the model: 3\.weight; of another shape: 0\.weight"):
        scores(problem, checkpoints=[state])


def test_nan_in_a_checkpoint_is_refused(classification, no_gradients):
    problem = classification(hidden=4)
    good, bad = states_of(problem.task, 2)
    bad["2.bias"][0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"2\.bias"):
        scores(problem, checkpoints=[good, bad])


def test_a_missing_file_is_refused(classification, tmp_path, no_gradients):
    problem = classification(hidden=4)
    with pytest.raises(DataError, match=r"Checkpoint 1: No checkpoint at .*none\.pt"):
        scores(problem, checkpoints=[*states_of(problem.task, 1), tmp_path / "none.pt"])


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        (lambda states, model: [], r"one at least; got \[\]"),
        (lambda states, model: states[0], "got a single one"),
        (lambda states, model: "run/a.pt", "got a single one"),
        (lambda states, model: iter(states), r"must be a list of state dicts.*list_iterator"),
        (
            lambda states, model: [states[0], model],
            r"Checkpoint 1 must be .* got a Sequential.*`model\.state_dict\(\)`",
        ),
    ],
)
def test_what_is_no_list_of_checkpoints_is_refused(pick, message, classification, no_gradients):
    problem = classification(hidden=4)
    states = states_of(problem.task, 1)
    assert isinstance(states[0], Mapping)
    with pytest.raises(InputError, match=message):
        scores(problem, checkpoints=pick(states, problem.task.model))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([0.1], "one for each of 2 checkpoints; got 1"),
        ([0.1, 0.0], r"`learning_rates\[1\]` must be a positive finite number; got 0\.0"),
        (-0.1, r"`learning_rates\[0\]` must be a positive"),
        (float("nan"), r"`learning_rates\[0\]` must be a positive"),
        (None, r"`learning_rates\[0\]` must be a positive finite number; got None"),
    ],
)
def test_bad_learning_rates_are_refused(rates, message, classification, no_gradients):
    problem = classification(hidden=4)
    with pytest.raises(InputError, match=message):
        scores(problem, checkpoints=states_of(problem.task, 2), learning_rates=rates)
