"""What a task refuses before any work, and what its messages name."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from whence.data import Examples
from whence.errors import DataError, InputError, ModeError, NonFiniteError, ShapeError
from whence.task import Pick, Task
from whence.testing.problems import PROBLEMS, DropoutNet, Record, mlp, mlp_regression

X, Y = torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
IDS = ["a", "b", "c", "d"]


def task_of(outputs=None, loss=None, **options):
    return Task(
        mlp(3, 2),
        outputs=outputs or (lambda model, batch: model(batch[0])),
        loss=loss or (lambda outputs, batch: (outputs - batch[1]).square().mean(1)),
        **options,
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_good_problems_pass(name):
    problem = PROBLEMS[name]()
    problem.task.check(problem.train.all(), problem.train.ids)
    problem.task.check(problem.queries.all(), problem.queries.ids, role="query")


def test_a_reduced_loss_is_named_with_what_to_do():
    def loss(outputs, batch):
        return nn.functional.mse_loss(outputs, batch[1])

    with pytest.raises(ShapeError, match=r'one number per example, \(4,\).*reduction="none"'):
        task_of(loss=loss).check((X, Y), IDS)


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda o, b: (o - b[1]).square(), r"The loss must be \(4,\).*got \(4, 2\)"),
        (lambda o, b: (o - b[1]).square().mean(1)[:3], r"The loss must have the 4 examples as first.*\(3,\)"),
        (lambda o, b: 0.0, "The loss must return one tensor.*a float"),
    ],
)
def test_a_loss_of_another_shape_is_refused(loss, message):
    with pytest.raises(ShapeError, match=message):
        task_of(loss=loss).check((X, Y), IDS)


@pytest.mark.parametrize(
    "outputs, message",
    [
        (lambda m, b: (m(b[0]), 1), r"`outputs` must return one tensor \(b, \.\.\.\); got a tuple.*logits"),
        (lambda m, b: m(b[0]).T, r"the 4 examples as first dimension.*got \(2, 4\)"),
        (lambda m, b: m(b[0]).sum(), r"got \(\)"),
    ],
)
def test_outputs_must_be_one_tensor_with_a_row_per_example(outputs, message):
    with pytest.raises(ShapeError, match=message):
        task_of(outputs=outputs).check((X, Y), IDS)


def test_a_model_in_train_mode_is_refused_and_the_modules_are_named():
    model = DropoutNet(3, 2).eval()
    model.late.train()
    task = Task.regression(model)
    with pytest.raises(ModeError, match=r"train mode \(late\).*`model.eval\(\)`"):
        task.check((X, Y), IDS)
    with pytest.raises(ModeError, match=r"\(DropoutNet, first, second, \.\.\.\)"):
        Task.regression(DropoutNet(3, 2).train()).require_eval()


def test_nan_in_a_parameter_names_the_layer():
    model = mlp(3, 5, 2)
    model[2].weight.data[1, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=r"Parameter '2\.weight'"):
        Task.regression(model).check((X, Y), IDS)


@pytest.mark.parametrize("role", ["train example", "query"])
def test_a_nan_loss_names_the_example(role):
    y = Y.clone()
    y[2] = -1
    task = task_of(loss=lambda outputs, batch: batch[1].sum(1).sqrt() + 0 * outputs.sum(1))
    with pytest.raises(NonFiniteError, match=f"The loss has NaN or infinite values for {role} c"):
        task.check((X, y), IDS, role=role)


def test_a_nan_output_and_a_nan_measure_name_the_example():
    x = X.clone()
    x[3] = -1
    bad = task_of(outputs=lambda m, b: m(b[0]) * b[0].sum(1, keepdim=True).sqrt())
    with pytest.raises(NonFiniteError, match="`outputs` has NaN or infinite values for train example d"):
        bad.check((x, Y), IDS)
    measured = task_of(measure=lambda o, b: b[0].sum(1).log() + o.sum(1) * 0, lower_is_better=True)
    measured.check((x, Y), IDS)  # the measure is of queries only
    with pytest.raises(NonFiniteError, match="The measure has NaN or infinite values for query d"):
        measured.check((x, Y), IDS, role="query")


def test_a_measure_of_another_shape_is_refused():
    measured = task_of(measure=lambda o, b: o.sum(), lower_is_better=True)
    with pytest.raises(ShapeError, match="The measure must give one number per example"):
        measured.check((X, Y), IDS, role="query")


def test_a_query_of_another_shape_names_what_came():
    task = mlp_regression().task
    with pytest.raises(ShapeError, match=r"cannot run on a query batch of tensors \(4, 7\) torch.float64"):
        task.check((torch.ones(4, 7, dtype=torch.float64), Y), IDS, role="query")


class Seen(nn.Module):
    """A linear model that counts the examples of every pass."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3).double()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.linear(x)


def test_examples_are_looked_at_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("whence.task.task.CHECKED_AT_ONCE", 3)
    task = Task.classification(Seen().eval())
    x, labels = torch.ones(8, 3, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    task.check((x, labels), range(8))
    assert task.model.sizes == [3, 3, 2]
    labels[7] = 3
    with pytest.raises(DataError, match="example 'h' has 3"):
        task.check((x, labels), "abcdefgh")


@pytest.mark.parametrize("what", ["`outputs`", "The loss", "The measure"])
def test_a_bad_row_of_a_later_part_is_named_by_its_own_id(what, monkeypatch):
    monkeypatch.setattr("whence.task.task.CHECKED_AT_ONCE", 3)
    x, y = torch.ones(8, 3, dtype=torch.float64), torch.ones(8, 2, dtype=torch.float64)
    y[5] = -1

    def spoil(values, batch, name):
        return values * batch[1][:, 0].sqrt().reshape(-1, *[1] * (values.ndim - 1)) if name == what else values

    task = task_of(
        outputs=lambda model, batch: spoil(model(batch[0]), batch, "`outputs`"),
        loss=lambda outputs, batch: spoil(outputs.sum(1), batch, "The loss"),
        measure=lambda outputs, batch: spoil(outputs.sum(1), batch, "The measure"),
        lower_is_better=True,
    )
    with pytest.raises(NonFiniteError, match=f"{what} has NaN or infinite values for query f"):
        task.check((x, y), "abcdefgh", role="query")


def test_a_loss_reduced_over_a_part_is_refused_too(monkeypatch):
    monkeypatch.setattr("whence.task.task.CHECKED_AT_ONCE", 3)
    with pytest.raises(ShapeError, match="The loss must give one number per example"):
        task_of(loss=lambda outputs, batch: outputs.mean()).check((X, Y), IDS)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(InputError, match="no parameter with requires_grad=True"):
        Task.regression(mlp(3, 2).requires_grad_(False))


@pytest.mark.parametrize(
    "batch, key", [((X, Y), 5), ({"x": X}, "y"), (Record(X, Y), "z"), ((X, Y), "x"), ({"x": X}, 0)]
)
def test_a_missing_part_of_a_batch_is_named(batch, key):
    with pytest.raises(ShapeError, match=f"no part {key!r}"):
        Pick(key)(batch)


@dataclasses.dataclass
class Nested:
    image: torch.Tensor
    label: torch.Tensor


@pytest.mark.parametrize("wrap", [lambda x, y: {"image": x, "label": y}, Nested])
def test_parts_of_a_batch_by_name(wrap):
    task = Task.classification(mlp(3, 3), inputs="image", target="label")
    labels = torch.tensor([0, 1, 2, 0])
    examples = Examples(wrap(X, labels))
    task.check(examples.all(), examples.ids)
    assert_close(task.outputs(task.model, examples.all()), task.model(X))
    assert_close(task.measure.loss.target(examples.all()), labels)


def test_with_model_keeps_the_contract_and_leaves_the_first_task_alone():
    task = mlp_regression().task
    other = mlp(3, 5, 2, seed=1)
    other[0].requires_grad_(False)
    twin = task.with_model(other)
    assert twin.model is other
    assert twin.loss is task.loss
    assert twin.layout.names == ("2.weight", "2.bias")
    assert task.model is not other
    assert len(task.layout.names) == 4


def test_call_runs_the_model_at_other_parameters_and_leaves_its_own():
    problem = mlp_regression()
    other = mlp(3, 5, 2, seed=1)
    before = {name: x.clone() for name, x in problem.task.model.state_dict().items()}
    found = problem.task.call(dict(other.named_parameters()), problem.train.all())
    assert_close(found, other(problem.train.all()[0]), rtol=0, atol=0)
    assert_close(problem.task.model.state_dict(), before, rtol=0, atol=0)
