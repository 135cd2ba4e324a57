"""`attribute`: names, options, amounts, headers, order of rows and columns, streaming, and what it refuses."""

import json

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from whence import METHODS, Damping, Inputs, Recipe, TopK, attribute, attribute_with
from whence.data import Examples
from whence.errors import DataError, InputError, ModeError, NonFiniteError, ShapeError, UnknownNameError
from whence.methods import block_source
from whence.task import GroupWeights, ParameterGroups, Task, fingerprint

F64 = torch.float64
# Sums in another order, through an eigen-decomposition or 1e-10 of conjugate gradients.
REORDERED = 1e-8
UNITS = {"influence_gn", "influence_hessian", "influence_cg", "horizon", "horizon_ahead", "unrolled"}
UNITS |= {"lissa", "lissa_hessian", "arnoldi", "kfac", "ekfac"}
RANKS_ONLY = {"grad_dot", "grad_cos", "embedding_cosine", "random", "trak", "tracin", "representer", "datainf"}
RANKS_ONLY |= {"influence_fisher", "logra", "trackstar"}
RECIPE = Recipe(lr=0.05, batch_size=5, epochs=4)
CHECKPOINT = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double().state_dict()
OPTIONS = {
    "influence_hessian": {"damping": Damping.absolute(2.0)},
    "influence_cg": {"tolerance": 1e-10},
    "lissa": {"depth": 200},
    "lissa_hessian": {"damping": Damping.absolute(4.0), "depth": 20},
    "horizon": {"recipe": RECIPE},
    "horizon_ahead": {"recipe": RECIPE},
    "unrolled": {"recipe": Recipe(lr=0.05, batch_size=100, epochs=4)},  # one batch: no order of the data
    "trak": {"dim": 4, "n_projections": 2},
    "trackstar": {"mixture": 0.0},  # otherwise scores depend on the queries beside them
    "arnoldi": {"rank": 10, "n_iterations": 30},
    "tracin": {"checkpoints": [CHECKPOINT], "learning_rates": 0.1},
}


STREAMED = {"grad_dot", "grad_cos", "influence_cg", "influence_hessian", "lissa", "lissa_hessian", "datainf", "trak"}
STREAMED |= {"arnoldi", "kfac", "ekfac"}


def never(*_, **__):
    raise AssertionError("work was started")


def refuse_work(patch):
    """Fail where gradients or a curvature are computed."""
    gradients = ("inputs", "grad_dot", "grad_cos", "trak", "tracin", "datainf", "lissa", "ekfac")
    for name in (*gradients, "horizon", "horizon_ahead", "influence_cg", "influence_hessian", "arnoldi"):
        for work in (
            "fit_gauss_newton",
            "fit_hessian",
            "fit_kronecker",
            "loss_gradients",
            "loss_products",
            "pull_back",
        ):
            patch.setattr(f"whence.methods.{name}.{work}", never, raising=False)
        patch.setattr(f"whence.methods.{name}.measure_gradients", never, raising=False)


# --- names and options ------------------------------------------------------------------------------------------------


def test_an_unknown_method_is_answered_with_the_nearest(regression, monkeypatch):
    monkeypatch.setattr(Task, "check", never)
    with pytest.raises(UnknownNameError, match=r"method 'graddot'. Did you mean 'grad_dot'\? Known: arnoldi, datainf,"):
        attribute(*regression(), "graddot")


def test_the_table_is_known_by_its_own_names():
    assert set(METHODS) == UNITS | RANKS_ONLY
    for name, preset in METHODS.items():
        assert preset.name == name
        assert preset.has_unit == (name in UNITS)


@pytest.mark.parametrize(
    ("method", "option", "message"),
    [
        ("influence_gn", "dampng", r"option of 'influence_gn' 'dampng'. Did you mean 'damping'"),
        ("influence_cg", "form", r"option of 'influence_cg' 'form'.*Known: allow_unconverged, damping,"),
        ("grad_dot", "recipe", r"option of 'grad_dot' 'recipe'. Known: none"),
        ("horizon", "inputs", r"option of 'horizon' 'inputs'. Known: flow, form, recipe"),
    ],
)
def test_an_unknown_option_is_refused_before_the_data_are_looked_at(method, option, message, regression, monkeypatch):
    monkeypatch.setattr(Task, "check", never)
    with pytest.raises(UnknownNameError, match=message):
        attribute(*regression(), method, **{option: 1})


@pytest.mark.parametrize("method", ["influence_gn", "horizon", "horizon_ahead"])
def test_an_unknown_form_is_refused(method, regression, monkeypatch):
    monkeypatch.setattr("whence.curvature.linearized.outputs_of", never)
    with pytest.raises(UnknownNameError, match=r"'dula'. Did you mean 'dual'\? Known: auto, dual, krylov, primal"):
        attribute(*regression(), method, form="dula", **OPTIONS.get(method, {}))


def test_an_unknown_look_ahead_is_refused(regression, monkeypatch):
    refuse_work(monkeypatch)
    with pytest.raises(UnknownNameError, match=r"look_ahead 'both'. Did you mean 'both_shifts'"):
        attribute(*regression(), "horizon_ahead", recipe=RECIPE, look_ahead="both")


# --- amounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["horizon", "horizon_ahead"])
def test_an_int_gives_a_matrix_and_a_list_a_dict(method, regression):
    problem = regression()
    three = attribute(*problem, method, recipe=RECIPE, at=3)
    assert three.provenance["amount"] == 3
    for several in ([3], (3,), range(3, 4)):
        found = attribute(*problem, method, recipe=RECIPE, at=several)
        assert list(found) == [3]
        assert torch.equal(found[3].values, three.values)
    found = attribute(*problem, method, recipe=RECIPE, at=[4, 1, 3])
    assert list(found) == [1, 3, 4]
    assert torch.equal(found[3].values, three.values)
    assert not torch.allclose(found[1].values, three.values)


@pytest.mark.parametrize("method", ["horizon", "horizon_ahead"])
def test_without_at_the_recipe_runs_to_its_end(method, regression):
    problem = regression()
    whole = attribute(*problem, method, recipe=RECIPE)
    assert whole.provenance["amount"] == 4
    assert whole.provenance["settings"]["n_steps"] == 12
    assert torch.equal(whole.values, attribute(*problem, method, recipe=RECIPE, at=4).values)


def test_horizon_ahead_is_the_default_method(regression):
    problem = regression()
    assert attribute(*problem, recipe=RECIPE).method == "horizon_ahead"


@pytest.mark.parametrize("at", [0, 5, -1, [1, 5], [2, 2], [], True, [1.5]])
@pytest.mark.parametrize("method", ["horizon", "horizon_ahead"])
def test_amounts_outside_the_recipe_are_refused(method, at, regression, monkeypatch):
    monkeypatch.setattr(Task, "check", never)
    with pytest.raises(InputError, match="distinct integers from 1 to the recipe's 4 epochs"):
        attribute(*regression(), method, recipe=RECIPE, at=at)


@pytest.mark.parametrize("method", ["horizon", "horizon_ahead"])
def test_a_missing_recipe_is_asked_for(method, regression, monkeypatch):
    monkeypatch.setattr(Task, "check", never)
    with pytest.raises(InputError, match=rf"'{method}' follows further training: pass `recipe=whence.Recipe"):
        attribute(*regression(), method)
    with pytest.raises(InputError, match="got dict"):
        attribute(*regression(), method, recipe={"lr": 0.1})


@pytest.mark.parametrize("method", sorted(RANKS_ONLY | {"influence_gn", "influence_cg", "influence_hessian"}))
def test_at_is_refused_by_methods_that_follow_no_training(method, regression, monkeypatch):
    monkeypatch.setattr(Task, "check", never)
    with pytest.raises(InputError, match=rf"'{method}' does not depend on the amount of training; leave out `at`"):
        attribute(*regression(), method, at=3, **OPTIONS.get(method, {}))


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["loss", "margin"])
@pytest.mark.parametrize("method", METHODS)
def test_ids_unit_orientation_and_provenance(method, measure, classification):
    problem = classification(hidden=4, measure=measure)
    scores = attribute(*problem, method, **OPTIONS.get(method, {}))
    assert scores.query_ids == problem.queries.ids == ("q0", "q1", "q2", "q3")
    assert scores.train_ids == problem.train.ids
    assert scores.unit == (measure if method in UNITS else None)
    assert scores.orientation.tolist() == [1.0 if measure == "loss" else -1.0] * 4
    assert scores.method == method
    facts = json.loads(json.dumps(scores.provenance))
    assert facts["model"] == fingerprint(problem.task.model)
    assert facts["train"] == problem.train.fingerprint
    assert facts["queries"] == problem.queries.fingerprint
    assert facts["measure"] == measure
    assert facts["coverage_percent"] == 100.0
    assert isinstance(facts["settings"], dict)
    assert scores.values.dtype == F64


def test_the_name_of_a_callable_measure_is_the_unit(regression):
    def absolute_error(outputs, batch):
        return (outputs - batch[1]).abs().sum(1)

    scores = attribute(*regression(measure=absolute_error, lower_is_better=True), "influence_gn")
    assert scores.unit == "absolute_error"


# --- order ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(method=st.sampled_from(sorted(set(METHODS) - {"random"})), seed=st.integers(0, 1000), size=st.integers(1, 13))
def test_permuted_examples_give_permuted_scores(method, seed, size, classification, assert_same):
    task, train, queries = classification(hidden=4)
    options = OPTIONS.get(method, {})
    wanted = attribute(task, train, queries, method, **options)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(len(queries), generator=generator), torch.randperm(len(train), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whence.gradients.rows.chunk_size", lambda *_: size)
        found = attribute(task, train.subset(columns), queries.subset(rows), method, **options)
    assert_same(found.values, wanted.values[rows][:, columns], REORDERED)
    assert found.query_ids == tuple(queries.ids[k] for k in rows)
    assert found.train_ids == tuple(train.ids[k] for k in columns)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"random"}))
def test_one_query_alone_scores_as_among_others(method, classification, assert_same):
    task, train, queries = classification(hidden=4)
    options = OPTIONS.get(method, {})
    among = attribute(task, train, queries, method, **options).values
    for k in range(len(queries)):
        alone = attribute(task, train, queries.subset([k]), method, **options)
        assert_same(alone.values, among[k : k + 1], REORDERED)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"random"}))
def test_a_repeated_example_scores_like_its_twin(method, classification):
    """Real data has duplicate rows: two ids, two columns, one content."""
    task, train, queries = classification(hidden=4)
    order = torch.tensor([*range(len(train)), 5])
    twins = Examples(train.batch(order), ids=[*train.ids, "twin"])
    values = attribute(task, twins, queries, method, **OPTIONS.get(method, {})).values
    torch.testing.assert_close(values[:, -1], values[:, 5], rtol=REORDERED, atol=1e-14)


# --- streaming and sharing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name, preset in METHODS.items() if not preset.by_amount])
def test_top_k_of_the_block_stream_is_that_of_the_matrix(method, classification, monkeypatch):
    problem = classification(hidden=4, n_train=20)
    monkeypatch.setattr("whence.gradients.rows.chunk_size", lambda *_: 3)
    for room in ("products", "pairs"):
        monkeypatch.setattr(f"whence.gradients.{room}.PASS_EXAMPLES", 3)
    inputs, preset = Inputs(*problem), METHODS[method]
    source = block_source(preset, inputs, preset.compute(inputs, **OPTIONS.get(method, {})))
    matrix = attribute(*problem, method, **OPTIONS.get(method, {}))
    kept = TopK.from_blocks(source, 4)
    n_blocks = len(list(source))  # a source can be read again
    assert n_blocks == (7 if method in STREAMED else 1)
    for sign in ("supports", "opposes", "magnitude"):
        pd.testing.assert_frame_equal(kept.top(4, sign=sign), matrix.top(4, sign=sign), rtol=1e-12)
    assert (kept.unit, kept.method, kept.provenance) == (matrix.unit, matrix.method, matrix.provenance)


def test_shared_inputs_give_the_same_scores_from_one_curvature(classification, monkeypatch):
    problem = classification(hidden=4)
    wanted = {method: attribute(*problem, method, **OPTIONS.get(method, {})) for method in METHODS}
    from whence.methods import inputs as room

    fitted, fit = [], room.fit_gauss_newton
    monkeypatch.setattr(
        room, "fit_gauss_newton", lambda *args, **options: fitted.append(options) or fit(*args, **options)
    )
    inputs = Inputs(*problem)
    for method, alone in wanted.items():
        shared = attribute_with(inputs, method, **OPTIONS.get(method, {}))
        assert torch.equal(shared.values, alone.values)
        assert shared.provenance == alone.provenance
    assert [options["form"] for options in fitted] == ["auto", "krylov"]
    by_amount = attribute_with(inputs, "horizon", recipe=RECIPE, at=[1, 4])
    assert torch.equal(by_amount[4].values, wanted["horizon"].values)


def test_other_queries_are_checked_and_the_train_set_is_not_again(classification, monkeypatch):
    task, train, queries = classification(hidden=4)
    inputs, check, checked = Inputs(task, train, queries), Task.check, []
    monkeypatch.setattr(Task, "check", lambda self, batch, ids, **role: checked.append(ids) or check(self, batch, ids))
    few = queries.subset([2, 0])
    twin = inputs.with_queries(few)
    assert checked == [few.ids]
    assert (twin.queries, twin.train, inputs.queries) == (few, train, queries)
    assert torch.equal(twin.query_gradients, inputs.query_gradients[[2, 0]])
    assert twin.facts["queries"] == few.fingerprint
    assert twin.gauss_newton() is inputs.gauss_newton()


def test_other_queries_take_no_weights_over(classification):
    inputs = Inputs(*classification(hidden=4))
    groups = ParameterGroups.of(inputs.task.layout, "tensor")
    weighted = inputs.weighted(GroupWeights(torch.arange(1.0, 5.0, dtype=torch.float64), groups))
    twin = weighted.with_queries(inputs.queries)
    assert twin.is_plain
    assert twin.weights is None
    assert torch.equal(twin.query_gradients, inputs.query_gradients)


# --- what does not fit ------------------------------------------------------------------------------------------------

EVERY = sorted(set(METHODS))


@pytest.fixture
def refuses(monkeypatch):
    """Check that every method refuses a problem before it starts to work."""

    def check(task, train, queries, error, message):
        refuse_work(monkeypatch)
        for method in EVERY:
            with pytest.raises(error, match=message):
                attribute(task, train, queries, method, **OPTIONS.get(method, {}))

    return check


def test_targets_of_another_shape(regression, refuses):
    task, train, queries = regression()
    x, y = train.all()
    flat = Examples((x, y[:, 0]))
    refuses(task, flat, queries, ShapeError, r"one shape; got \(12, 1\) and \(12,\).*y\[:, None\]")


def test_inputs_the_model_cannot_take(regression, refuses):
    task, train, queries = regression()
    wide = Examples((torch.zeros(12, 5, dtype=F64), train.all()[1]))
    refuses(task, wide, queries, ShapeError, r"cannot run on a train example batch of tensors \(12, 5\)")


def test_a_query_of_another_shape(regression, refuses):
    task, train, queries = regression()
    wide = Examples((torch.zeros(4, 5, dtype=F64), queries.all()[1]))
    refuses(task, train, wide, ShapeError, r"cannot run on a query batch of tensors \(4, 5\)")


def test_data_of_another_precision(regression, refuses):
    task, train, queries = regression()
    refuses(task, train.to(dtype=torch.float32), queries, ShapeError, r"torch.float32.*")


def test_a_batch_without_the_part_asked_for(regression, refuses):
    task, train, queries = regression()
    named = Examples({"x": train.all()[0], "y": train.all()[1]})
    refuses(task, named, queries, ShapeError, r"type dict has no part 0.*inputs=\"image\"")


def test_a_reduced_loss(regression, refuses):
    problem = regression()
    task = Task(
        problem.task.model,
        outputs=lambda model, batch: model(batch[0]),
        loss=lambda outputs, batch: nn.functional.mse_loss(outputs, batch[1]),
    )
    refuses(task, problem.train, problem.queries, ShapeError, 'one number for the whole batch.*reduction="none"')


def test_a_loss_for_every_output(regression, refuses):
    problem = regression(n_outputs=2)
    task = Task(
        problem.task.model,
        outputs=lambda model, batch: model(batch[0]),
        loss=lambda outputs, batch: (outputs - batch[1]).square(),
    )
    refuses(task, problem.train, problem.queries, ShapeError, r"must be \(12,\), one number per example; got \(12, 2\)")


def test_a_reduced_measure(regression, refuses):
    problem = regression(measure=lambda outputs, batch: outputs.sum(), lower_is_better=True)
    refuses(*problem, ShapeError, "measure must give one number per example")


def test_outputs_that_are_no_tensor_or_have_other_rows(regression, refuses):
    problem = regression()
    loss = problem.task.loss
    pair = Task(problem.task.model, outputs=lambda model, batch: (model(batch[0]), 0), loss=loss)
    refuses(pair, problem.train, problem.queries, ShapeError, "must return one tensor .* got a tuple.*logits")
    lost = Task(problem.task.model, outputs=lambda model, batch: model(batch[0])[1:], loss=loss)
    refuses(lost, problem.train, problem.queries, ShapeError, "12 examples as first dimension")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_the_data_never_becomes_examples(bad, regression):
    _, train, _ = regression()
    x, y = train.all()
    x = x.clone()
    x[3, 1] = bad
    with pytest.raises(NonFiniteError, match=r"batch\[0\] has NaN or infinite values for example t3"):
        Examples((x, y), ids=train.ids)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("layer", ["0.weight", "2.bias"])
def test_nan_in_a_parameter_names_it(layer, bad, regression, refuses):
    problem = regression(hidden=4)
    with torch.no_grad():
        dict(problem.task.model.named_parameters())[layer].flatten()[0] = bad
    refuses(*problem, NonFiniteError, f"Parameter '{layer}' has NaN or infinite values")


def test_nan_in_a_loss_names_the_example(regression, refuses):
    problem = regression()

    def logarithmic(outputs, batch):
        return (batch[1][:, 0] - outputs.detach()[:, 0] * 0).log() + 0 * outputs[:, 0]

    y = problem.train.all()[1].abs() + 0.1
    y[[4, 7]] = -1.0
    train = Examples((problem.train.all()[0], y), ids=problem.train.ids)
    task = Task(problem.task.model, outputs=lambda model, batch: model(batch[0]), loss=logarithmic)
    refuses(task, train, problem.queries, NonFiniteError, "loss has NaN or infinite values for train example t4, t7")


def test_nan_in_a_measure_names_the_query(regression, refuses):
    def root(outputs, batch):
        return (batch[1][:, 0] - 1e3).sqrt() + outputs[:, 0]

    problem = regression(measure=root, lower_is_better=True)
    refuses(*problem, NonFiniteError, "measure has NaN or infinite values for query q0, q1, q2, q3")


def test_an_infinite_output_names_the_example(regression, refuses):
    problem = regression()
    x, y = problem.train.all()
    x = x.clone()
    x[2] = 1e308
    with torch.no_grad():
        problem.task.model.weight.fill_(10.0)
    train = Examples((x, y), ids=problem.train.ids)
    refuses(problem.task, train, problem.queries, NonFiniteError, "`outputs` has NaN .* for train example t2")


def test_a_slope_that_is_not_finite_names_the_example(regression):
    """|outputs - y|^(1/2) is finite where they agree, its slope is not: found with the gradients, not before."""
    problem = regression(bias=False)
    x, y = (rows.clone() for rows in problem.train.all())
    x[6], y[6] = 0.0, 0.0
    train = Examples((x, y), ids=problem.train.ids)
    task = Task(
        problem.task.model,
        outputs=lambda model, batch: model(batch[0]),
        loss=lambda outputs, batch: (outputs - batch[1]).abs().pow(0.5)[:, 0],
    )
    with pytest.raises(NonFiniteError, match=r"example 't6'.*'weight'"):
        attribute(task, train, problem.queries, "grad_dot")


def test_a_model_in_train_mode(regression, refuses):
    problem = regression(hidden=4)
    problem.task.model.train()
    refuses(*problem, ModeError, r"train mode.*model.eval\(\)")
    problem.task.model.eval()
    problem.task.model[1].train()  # one module is enough
    refuses(*problem, ModeError, r"train mode \(1\)")


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_names_no_class(label, classification, refuses):
    task, train, queries = classification()
    x, y = train.all()
    y = y.clone()
    y[2] = label
    wrong = Examples((x, y), ids=train.ids)
    refuses(task, wrong, queries, DataError, rf"0 \.\. 2.*example 't2' has {label}")
