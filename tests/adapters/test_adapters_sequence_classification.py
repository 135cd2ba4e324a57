"""Sequence classifiers: any module that is called like one, and what is refused before long work."""

import pickle
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from whence.adapters import sequence_classification
from whence.data import Examples
from whence.errors import DataError, InputError, ShapeError, UnsupportedError
from whence.gold import further_train
from whence.gradients import check_gradients
from whence.rng import torch_generator
from whence.task import CrossEntropy, SquaredError
from whence.training import Recipe
from whence.training.adjoint import forward_products, reverse_products
from whence.training.processes import Problem, can_pack
from whence.training.trajectory import Trajectory

N_WORDS, DIM, PADDING = 20, 8, 0
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # float64 sums of a few hundred products, in another order


@dataclass
class Answer:
    logits: Tensor


FORMS = {
    "field": lambda x: Answer(x),
    "key": lambda x: {"loss": None, "logits": x},
    "tuple": lambda x: (x, None),
    "tensor": lambda x: x,
}


class Attends(nn.Module):
    """One layer of fused attention over masked tokens; answers in one of the forms of other libraries."""

    def __init__(self, form="field", n_outputs=3, config=None):
        super().__init__()
        self.form, self.config = form, config
        self.tokens, self.kinds = nn.Embedding(N_WORDS, DIM), nn.Embedding(2, DIM)
        self.qkv, self.head = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, n_outputs)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        x = self.tokens(input_ids)
        if token_type_ids is not None:
            x = x + self.kinds(token_type_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        q, k, v = (y[:, None] for y in self.qkv(x).chunk(3, -1))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())[:, 0]
        shares = mask / mask.sum(1, keepdim=True)
        return FORMS[self.form](self.head((seen * shares[..., None]).sum(1)))


def model_of(form="field", **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attends(form, **options).double().eval()


def texts(n, length=6, name="texts", n_classes=3):
    """A batch of padded texts of 2 to `length` words."""
    generator = torch_generator(0, name)
    ids = torch.randint(1, N_WORDS, (n, length), generator=generator)
    sizes = torch.randint(2, length + 1, (n, 1), generator=generator)
    mask = (torch.arange(length) < sizes).long()
    labels = torch.randint(n_classes, (n,), generator=generator)
    return {"input_ids": ids * mask + PADDING * (1 - mask), "attention_mask": mask, "labels": labels}


def config(**changes):
    return SimpleNamespace(**{"num_labels": 3, "problem_type": None, "pad_token_id": PADDING, **changes})


# Calling


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_answer_gives_the_logits(form):
    batch = texts(4)
    found = sequence_classification(model_of(form)).outputs(model_of(form), batch)
    expected = model_of("tensor")(batch["input_ids"], batch["attention_mask"])
    assert_close(found, expected, **ROUNDING)
    assert float(expected.detach().std()) > 1e-3


def test_token_types_are_passed_where_batches_have_them():
    batch = {**texts(4), "token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 1]] * 4)}
    model = model_of("tensor")
    found = sequence_classification(model).outputs(model, batch)
    expected = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    assert_close(found, expected, **ROUNDING)
    assert float((expected - model(batch["input_ids"], batch["attention_mask"])).detach().abs().max()) > 1e-3


def test_parts_may_have_other_names_and_places():
    batch, model = texts(4), model_of()
    expected = sequence_classification(model).outputs(model, batch)
    renamed = {"words": batch["input_ids"], "seen": batch["attention_mask"], "y": batch["labels"]}
    task = sequence_classification(model, input_ids="words", attention_mask="seen", target="y")
    assert_close(task.outputs(model, renamed), expected, rtol=0, atol=0)
    assert_close(task.loss(expected, renamed), F.cross_entropy(expected, batch["labels"], reduction="none"), **ROUNDING)
    task = sequence_classification(model, input_ids=0, attention_mask=1, target=2, token_type_ids=3)
    assert_close(task.outputs(model, tuple(renamed.values())), expected, rtol=0, atol=0)


def test_an_answer_without_logits_is_refused():
    class Silent(Attends):
        def forward(self, input_ids, attention_mask=None):
            return {"hidden": self.tokens(input_ids)}

    task = sequence_classification(Silent().eval())
    with pytest.raises(ShapeError, match=r"must be a tensor, have `logits`"):
        task.check(texts(3), range(3))


# Derivatives


def test_gradient_paths_agree_on_masked_texts():
    task = sequence_classification(model_of())
    train = Examples(texts(5))
    found = check_gradients(task, train)
    assert found.agrees
    assert found.coverage == 100


def test_fused_attention_has_second_derivatives_and_forward_mode():
    task = sequence_classification(model_of())
    run = Trajectory(task, Examples(texts(5)), Recipe(lr=0.1, batch_size=5, epochs=1), 0, 1)
    at = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    along = torch.randn(2, len(at), generator=torch_generator(0, "along"), dtype=torch.float64)
    forward = forward_products(run, at, run.batches[0], along)
    reverse = reverse_products(run, at, run.batches[0], along)
    assert float(reverse[0].abs().max()) > 1e-3
    assert_close(forward, reverse, **ROUNDING)


# Losses


def test_the_kind_of_loss_follows_the_configuration():
    assert isinstance(sequence_classification(model_of()).loss, CrossEntropy)
    assert isinstance(sequence_classification(model_of(config=config())).loss, CrossEntropy)
    one = sequence_classification(model_of(n_outputs=1, config=config(num_labels=1)))
    assert isinstance(one.loss, SquaredError)
    said = config(problem_type="regression")
    assert isinstance(sequence_classification(model_of(config=said)).loss, SquaredError)


def test_regression_takes_flat_targets_and_columns():
    model = model_of(n_outputs=1, config=config(num_labels=1))
    task = sequence_classification(model)
    batch = {**texts(4), "labels": torch.linspace(-1, 1, 4, dtype=torch.float64)}
    outputs = task.outputs(model, batch)
    expected = (outputs[:, 0] - batch["labels"]).square()
    assert_close(task.loss(outputs, batch), expected, **ROUNDING)
    assert_close(task.loss(outputs, {**batch, "labels": batch["labels"][:, None]}), expected, **ROUNDING)


# Refusals


def test_missing_parts_are_named_before_any_work():
    task, batch = sequence_classification(model_of()), texts(3)
    for name, argument in (("input_ids", "input_ids"), ("labels", "target")):
        lacking = {key: x for key, x in batch.items() if key != name}
        with pytest.raises(ShapeError, match=rf"no `{argument}` under '{name}'; it has .*\['attention_mask'\]"):
            task.check(lacking, range(3))


def test_padding_without_a_mask_is_refused_by_name():
    task = sequence_classification(model_of(config=config()))
    batch = {"input_ids": torch.tensor([[3, 4], [5, PADDING]]), "labels": torch.tensor([0, 1])}
    with pytest.raises(DataError, match=r"Example 'b' holds the padding id 0.*add `input_ids != 0`"):
        task.check(batch, ["a", "b"])
    task.check({**batch, "input_ids": torch.tensor([[3, 4], [5, 6]])}, ["a", "b"])


@pytest.mark.parametrize("head", ["classes", "regression"])
def test_a_text_without_a_token_is_refused_by_name(head):
    settings = config(num_labels=1) if head == "regression" else config()
    task = sequence_classification(model_of(n_outputs=settings.num_labels, config=settings))
    batch = texts(3)
    if head == "regression":
        batch["labels"] = batch["labels"].double()
    batch["attention_mask"][1] = 0
    batch["attention_mask"][1, 0] = 1
    task.check(batch, ["a", "b", "c"])

    class Tolerant(nn.Module):
        """Gives finite logits for empty texts, as models with additive masks do."""

        def __init__(self):
            super().__init__()
            self.inner, self.config = model_of(n_outputs=settings.num_labels), settings

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids)

    batch["attention_mask"][1] = 0
    with pytest.raises(DataError, match="of example 'b' is 0 everywhere"):
        sequence_classification(Tolerant().eval()).check(batch, ["a", "b", "c"])


def test_labels_that_are_no_classes_are_refused():
    task, batch = sequence_classification(model_of()), texts(3)
    with pytest.raises(DataError, match="example 'c' has 3"):
        task.check({**batch, "labels": torch.tensor([0, 1, 3])}, ["a", "b", "c"])


@pytest.mark.parametrize(
    "changes, error, shown",
    [
        ({"problem_type": "multi_label_classification"}, UnsupportedError, "one label an example"),
        ({"_attn_implementation": "flash_attention_2"}, UnsupportedError, 'attn_implementation="sdpa"'),
        ({"pad_token_id": None}, InputError, "pad_token_id = tokenizer.pad_token_id"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, InputError, "num_labels=2"),
    ],
)
def test_models_that_do_not_fit_are_refused_at_once(changes, error, shown):
    with pytest.raises(error, match=shown):
        sequence_classification(model_of(config=config(**changes)))


# Training


def test_the_task_travels_and_trains(train_plainly):
    task = sequence_classification(model_of())
    train, queries = Examples(texts(8)), Examples(texts(3, name="queries"))
    recipe = Recipe(lr=0.1, batch_size=4, epochs=2)
    gold = further_train(task, train, queries, recipe, left_out=[2], seeds=1, engine="loop")
    batch = queries.all()
    for lacks, found in (((), gold.full[0, -1]), ((2,), gold.measures[0, -1, 0])):
        *_, (_, model) = train_plainly(task, train, recipe, 0, lacks)
        own = task.measure(task.outputs(model, batch), batch).detach()
        assert_close(found, own, rtol=1e-9, atol=1e-11)  # rounding, grown over 4 steps
    assert float((gold.full[0, -1] - gold.measures[0, -1, 0]).abs().max()) > 1e-6


def test_the_task_is_sent_to_worker_processes():
    task = sequence_classification(model_of(), measure="margin")
    batch = texts(3)
    twin = pickle.loads(pickle.dumps(task))
    assert_close(twin.outputs(twin.model, batch), task.outputs(task.model, batch), rtol=0, atol=0)
    assert twin.measure.name == "margin"
    examples = Examples(batch)
    assert can_pack(Problem(task, examples, examples, Recipe(lr=0.1, batch_size=2, epochs=1))) is None
