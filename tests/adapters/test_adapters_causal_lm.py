"""Language models: losses of sequences, questions about single words, and no outputs of more than a block."""

import os
import pickle
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian
from torch.nn import functional as F
from torch.testing import assert_close

from whence.adapters import causal_language_model, span_queries, token_queries
from whence.curvature import fit_gauss_newton, fit_kronecker
from whence.curvature.drawn_labels import drawn_labels
from whence.data import Examples
from whence.errors import DataError, InputError, ShapeError, UnknownNameError, UnsupportedError
from whence.gold import further_train
from whence.gradients import (
    PATHS,
    can_vmap,
    check_gradients,
    hook_coverage,
    loss_gradients,
    measure_gradients,
    outputs_of,
)
from whence.methods import attribute
from whence.rng import torch_generator
from whence.training import Recipe
from whence.weights import contributions

os.environ["HF_HUB_OFFLINE"] = "1"  # random models only: nothing is fetched
transformers = pytest.importorskip("transformers")

N_WORDS, PADDING, LENGTH = 11, 0, 6
ROUNDING = 1e-10  # of the largest entry: float64 sums of a few thousand products, in another order
FLOAT32 = 1e-5  # transformers computes its own loss, and the norms of Llama, in float32 whatever the model's precision
ENDS = {"bos_token_id": 1, "eos_token_id": 1}
LOSS_METHODS = ["grad_dot", "grad_cos", "datainf", "logra", "trackstar", "tracin"]


def gpt2(**options):
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    noise = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return transformers.GPT2Config(vocab_size=N_WORDS, **{"pad_token_id": PADDING, **ENDS, **sizes, **noise, **options})


def llama(**options):
    """Two heads of keys for four of queries, turned by their positions."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "max_position_embeddings": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaConfig(
        vocab_size=N_WORDS, **{"pad_token_id": PADDING, **ENDS, **sizes, **heads, **options}
    )


MODELS = {
    "gpt2": (gpt2, {}),
    "gpt2 without padding": (gpt2, {"pad_token_id": None}),
    "llama": (llama, {}),
    "llama with a tied head": (llama, {"tie_word_embeddings": True}),
}
every_model = pytest.mark.parametrize("name", MODELS)
both = pytest.mark.parametrize("name", ["gpt2", "llama"])


def model_of(name, attention="sdpa"):
    build, options = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(build(**options), attn_implementation=attention)
        for p in model.parameters():  # away from their start, where all words are nearly as likely
            nn.init.normal_(p, std=0.3)
    return model.double().eval()


def sequences(n, name="train", length=LENGTH, **parts):
    """Sequences of 2 to 6 words, padded to `length`."""
    generator = torch_generator(0, name)
    ids = torch.randint(2, N_WORDS, (n, LENGTH), generator=generator)
    sizes = torch.randint(2, LENGTH + 1, (n, 1), generator=generator)
    sizes[0] = LENGTH
    mask = (torch.arange(LENGTH) < sizes).long()
    more = (0, length - LENGTH)
    return {"input_ids": F.pad(ids * mask, more, value=PADDING), "attention_mask": F.pad(mask, more), **parts}


def assert_same(found, expected, rounding=ROUNDING):
    assert float(expected.abs().max()) > 0
    assert_close(found, expected, rtol=0, atol=rounding * float(expected.abs().max()))


def by_hand(model, batch, labels=None):
    """Cross-entropy (n, t - 1) of every next token by torch, 0 where there is none, with the model's own mask."""
    labels = batch["input_ids"].where(batch["attention_mask"] == 1, -100) if labels is None else labels
    with torch.no_grad():
        z = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return F.cross_entropy(z.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)


def rows_of(task, examples, path="auto"):
    return torch.cat([rows for _, rows in loss_gradients(task, examples, path=path)])


class Bigrams(nn.Module):
    """The smallest causal model: one linear layer on the mean of the words so far."""

    def __init__(self, n_words=4, dim=3, config=None):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(n_words, dim).requires_grad_(False)
        self.head = nn.Linear(dim, n_words, bias=False)

    def seen(self, input_ids):
        return self.words(input_ids).cumsum(1) / (1 + torch.arange(input_ids.shape[1]))[:, None]

    def forward(self, input_ids):
        return self.head(self.seen(input_ids))


def bigrams(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Bigrams(**options).double().eval()


def short(n, length=4, n_words=4, name="short"):
    ids = torch.randint(n_words, (n, length), generator=torch_generator(0, name))
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < 2 + torch.arange(n)[:, None] % 3).long()}


# The loss


@every_model
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_loss_is_the_sum_of_the_next_tokens_cross_entropies(name, attention):
    model, batch = model_of(name, attention), sequences(5)
    task = causal_language_model(model)
    task.check(batch, range(5))
    found = task.loss(task.outputs(model, batch), batch).detach()
    expected = by_hand(model, batch)
    assert_same(found, expected.sum(1))
    assert int((expected == 0).sum()) > 3  # some sequences are shorter
    labels = batch["input_ids"].where(batch["attention_mask"] == 1, -100)
    own = model(**batch, labels=labels).loss.detach()  # the mean over all tokens of the batch
    assert_same(found.sum() / (labels[:, 1:] != -100).sum(), own.double(), FLOAT32)


@pytest.mark.parametrize("name", ["gpt2"])
def test_the_mean_weights_each_sequence_alike(name):
    model, batch = model_of(name), sequences(5)
    task = causal_language_model(model, reduction="mean", measure="log_probability")
    outputs, losses = task.outputs(model, batch), by_hand(model, batch)
    expected = losses.sum(1) / (batch["attention_mask"].sum(1) - 1)
    assert_same(task.loss(outputs, batch).detach(), expected)
    assert_same(task.measure(outputs, batch).detach(), -expected)


def test_labels_of_minus_100_do_not_count():
    """As where a prompt is given, and only the answer is learned."""
    model, batch = model_of("llama"), sequences(5)
    labels = batch["input_ids"].clone()
    labels[:, 1] = -100
    labels[0, :4] = -100
    labels[1:3, 2:] = 3  # not the words themselves
    expected = by_hand(model, batch, labels.where(batch["attention_mask"] == 1, -100)).sum(1)
    for parts, options in (({"labels": labels}, {}), ({"answers": labels}, {"target": "answers"})):
        task = causal_language_model(model, **options)
        found = task.loss(task.outputs(model, {**batch, **parts}), {**batch, **parts}).detach()
        assert_same(found, expected)


def test_the_margin_is_that_of_the_mean_log_probability():
    model, batch = model_of("gpt2"), sequences(5)
    task = causal_language_model(model, measure="margin")
    p = torch.exp(-by_hand(model, batch).sum(1) / (batch["attention_mask"].sum(1) - 1))
    assert_same(task.measure(task.outputs(model, batch), batch).detach(), torch.log(p / (1 - p)))
    assert task.measure.orientation == -1


def test_a_word_that_the_model_is_sure_of_keeps_its_loss():
    task, batch = causal_language_model(bigrams()), short(1, 2)
    outputs = torch.zeros(1, 1, 4, dtype=torch.float64)
    outputs[0, 0, batch["input_ids"][0, 1]] = 50.0
    assert float(task.loss(outputs, batch)) == pytest.approx(3 * float(torch.tensor(-50.0).double().exp()), rel=1e-12)


# Gradients


@every_model
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradient_paths_agree(name, attention):
    task, train = causal_language_model(model_of(name, attention)), Examples(sequences(5))
    assert check_gradients(task, train).agrees
    assert hook_coverage(task, train).fallback == {}
    expected = rows_of(task, train, "loop")
    # Some models look for padding in their input, which `vmap` over examples cannot answer.
    assert can_vmap(task, train) == (name != "gpt2")
    for path in {*PATHS, "auto"} - {"loop", "vmap" if name == "gpt2" else "loop"}:
        assert_same(rows_of(task, train, path), expected)


def test_a_tied_head_counts_once():
    tied, free = (model_of(name) for name in ("llama with a tied head", "llama"))
    own = causal_language_model(tied).layout
    assert causal_language_model(free).layout.n_params - own.n_params == N_WORDS * 8
    assert "lm_head.weight" not in own.names
    batch = sequences(4)
    z = tied(**batch).logits[:, :-1]
    words = batch["input_ids"].where(batch["attention_mask"] == 1, -100)[:, 1:]
    loss = F.cross_entropy(z.transpose(1, 2), words, reduction="sum", ignore_index=-100)
    (plain,) = torch.autograd.grad(loss, [tied.model.embed_tokens.weight])
    task = causal_language_model(tied)
    rows = task.layout.unflatten(rows_of(task, Examples(batch)))
    assert_same(rows["model.embed_tokens.weight"].sum(0), plain, FLOAT32)


@both
def test_longer_padding_and_other_sequences_change_nothing(name):
    task, rounding = causal_language_model(model_of(name)), FLOAT32 if name == "llama" else ROUNDING
    expected = rows_of(task, Examples(sequences(6)))
    longer = sequences(6, length=10)
    longer["input_ids"] = longer["input_ids"].where(longer["attention_mask"] == 1, -100)  # no word at all
    assert_same(rows_of(task, Examples(longer)), expected, rounding)
    assert_same(rows_of(task, Examples(sequences(6)).subset([4, 1])), expected[[4, 1]], rounding)
    curvatures = [fit_kronecker(task, Examples(batch), fisher="sampled").to_dense() for batch in (sequences(6), longer)]
    assert_same(curvatures[1], curvatures[0], rounding)


# Words of a query


@both
@pytest.mark.parametrize("measure", ["loss", "log_probability"])
def test_tokens_add_up_to_spans_and_to_the_whole(name, measure):
    model = model_of(name)
    train, queries = Examples(sequences(5)), Examples(sequences(2, "queries"))
    task = causal_language_model(model, measure=measure, span="span")
    spans = span_queries(queries, [(0, 1, 3), (0, 3, 6)])
    tokens = token_queries(queries, 0)
    assert spans.ids == ("0:1-2", "0:3-5")
    assert tokens.ids == ("0:1-1", "0:2-2", "0:3-3", "0:4-4", "0:5-5")
    plain = causal_language_model(model, measure=measure)
    whole = attribute(plain, train, queries, "grad_dot").values[0]
    by_span, by_token = (attribute(task, train, some, "grad_dot").values for some in (spans, tokens))
    assert_same(by_token[:2].sum(0), by_span[0], FLOAT32 if name == "llama" else ROUNDING)
    assert_same(by_span.sum(0), whole, FLOAT32 if name == "llama" else ROUNDING)
    assert float((by_token[0] / by_token[1] - 1).abs().min()) > 1e-3
    values = task.measure(task.outputs(model, tokens.all()), tokens.all()).detach()
    sign = 1 if measure == "loss" else -1
    assert_same(values, sign * by_hand(model, queries.all())[0])


def test_tokens_of_a_padded_sequence_are_its_own():
    batch = short(3)
    examples = Examples(batch, ids=["a", "b", "c"], texts=["one", "two", "three"])
    assert token_queries(examples, 0).ids == ("a:1-1",)
    found = token_queries(examples, 1)
    assert found.ids == ("b:1-1", "b:2-2")
    assert found.texts == ("two", "two")
    assert torch.equal(found.all()["span"], torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0]]))
    causal_language_model(bigrams(), span="span").check(found.all(), found.ids, "query")


@pytest.mark.parametrize("span", [(2, 1, 2), (0, 0, 2), (0, 2, 2), (0, 3, 5), (-1, 1, 2)])
def test_spans_outside_of_their_sequence_are_refused(span):
    with pytest.raises(InputError, match="1 <= first < stop <= 4"):
        span_queries(Examples(short(2)), [span])


def test_queries_without_spans_are_refused():
    with pytest.raises(InputError, match="No span"):
        span_queries(Examples(short(2)), [])
    with pytest.raises(ShapeError, match="dicts with token ids under 'input_ids'"):
        span_queries(Examples(torch.ones(2, 3)), [(0, 1, 2)])
    task = causal_language_model(bigrams(), span="span")
    task.check(short(2), range(2))
    with pytest.raises(ShapeError, match=r"no `span` under 'span'"):
        task.check(short(2), range(2), "query")
    marks = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]])  # a first token, and padding
    with pytest.raises(DataError, match="Example 'b' has a span 'span' without a token to be predicted"):
        task.check({**short(2), "span": marks}, ["a", "b"], "query")
    with pytest.raises(ShapeError, match=r"must be \(b, t\) = \(2, 4\)"):
        task.check({**short(2), "span": marks[:, :3]}, ["a", "b"], "query")


# A block at a time


@both
@pytest.mark.parametrize(
    "method, options",
    [
        *((method, {}) for method in LOSS_METHODS),
        *((method, {"fisher": fisher}) for method in ("ekfac", "kfac") for fisher in ("sampled", "empirical")),
    ],
)
def test_no_method_holds_outputs_of_more_than_a_block(monkeypatch, name, method, options):
    model = model_of(name)
    options = {"checkpoints": [model.state_dict()], "learning_rates": [0.1]} if method == "tracin" else options
    train, queries = Examples(sequences(7)), Examples(sequences(3, "queries"))
    whole = attribute(causal_language_model(model), train, queries, method, **options).values
    seen = []
    task = causal_language_model(model)
    outputs = task.outputs
    task.outputs = lambda model, batch: seen.append(len(batch["input_ids"])) or outputs(model, batch)
    each = 2 * (LENGTH - 1) * N_WORDS
    monkeypatch.setattr("whence.gradients.passes.OUTPUT_MEMORY", each * 8)
    monkeypatch.setattr("whence.task.task.CHECKED_OUTPUTS", each)
    monkeypatch.setattr("whence.task.task.CHECKED_FIRST", 2)
    monkeypatch.setattr("whence.gradients.rows.ALL_OUTPUTS", 0)
    found = attribute(task, train, queries, method, **options).values
    assert_same(found, whole, FLOAT32 if name == "llama" else 1e-8)  # of eigenvectors, where there are any
    assert max(seen) <= 3  # three for the probes of the layers, two for all else
    assert seen.count(3) <= 12


def test_further_training_and_its_derivative(train_plainly):
    task = causal_language_model(model_of("gpt2"))
    train, queries = Examples(sequences(6)), Examples(sequences(2, "queries"))
    recipe = Recipe(lr=0.01, batch_size=3, epochs=1)
    gold = further_train(task, train, queries, recipe, left_out=[1], seeds=1)
    *_, (_, model) = train_plainly(task, train, recipe, 0, (1,))
    batch = queries.all()
    expected = task.measure(task.outputs(model, batch), batch).detach()
    assert_close(gold.measures[0, -1, 0], expected, rtol=1e-8, atol=1e-10)  # rounding, grown over 2 steps
    small = Recipe(lr=1e-4, batch_size=3, epochs=1, sampler="down_weight")
    gold = further_train(task, train, queries, small, left_out=[1], seeds=1)
    scores = attribute(task, train, queries, "unrolled", recipe=small, at=1).values[:, 1]
    # Leaving out is finite, the score its derivative: the gap is of the order of the rate.
    assert_close(scores, gold.measures[0, -1, 0] - gold.full[0, -1], rtol=0.02, atol=0)


def test_contributions_of_layers_add_up():
    task = causal_language_model(model_of("llama"))
    train, queries = Examples(sequences(5)), Examples(sequences(2, "queries"))
    found = contributions(task, train, queries, "grad_dot", groups="module")
    assert found.values.shape[-1] > 5
    assert_same(found.values.sum(-1), attribute(task, train, queries, "grad_dot").values)


def test_the_embedding_is_the_mean_of_what_the_head_sees():
    model, batch = bigrams(), short(20)
    found = causal_language_model(model).embedding(model, batch)
    counts = batch["attention_mask"][:, 1:, None]
    seen = model.seen(batch["input_ids"][:, :-1]) * counts
    assert_same(found, seen.sum(1) / counts.sum(1))


# Curvature


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_hessian_is_that_of_autograd(reduction):
    batch = short(3)
    loss = causal_language_model(bigrams(), reduction=reduction).loss
    z = torch.randn(3, 12, generator=torch_generator(0, "z"), dtype=torch.float64)
    for k in range(3):
        one = {key: x[k : k + 1] for key, x in batch.items()}
        dense = hessian(lambda x, one=one: loss(x.reshape(1, 3, 4), one)[0])(z[k])
        assert_same(loss.hessian(z[k : k + 1], one)[0], dense)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_drawn_slopes_have_the_hessian_as_their_second_moment(reduction):
    """By all sixteen pairs of words at two tokens, weighted by their probability."""
    batch = {key: x[:, :3] for key, x in short(1).items()}
    batch["attention_mask"][:] = 1
    loss = causal_language_model(bigrams(), reduction=reduction).loss
    z = torch.randn(1, 2, 4, generator=torch_generator(0, "z"), dtype=torch.float64)
    p, total = z.softmax(2)[0], torch.zeros(8, 8, dtype=torch.float64)
    for first, second in product(range(4), repeat=2):
        slope = loss.slopes_at(z, batch, torch.tensor([[first, second]])).flatten()
        total += p[0, first] * p[1, second] * slope[:, None] * slope[None]
    assert_same(total, loss.hessian(z.flatten(1), batch)[0])


def test_slopes_at_the_words_themselves_are_those_of_the_loss():
    batch, task = short(6), causal_language_model(bigrams())
    z = task.outputs(task.model, batch).detach().requires_grad_()
    (expected,) = torch.autograd.grad(task.loss(z, batch).sum(), z)
    assert_same(task.loss.slopes_at(z.detach(), batch, task.loss.targets(batch)), expected)


def test_labels_are_drawn_by_the_probabilities_of_each_token():
    n = 20_000
    task = causal_language_model(bigrams())
    one = {"input_ids": torch.tensor([[0, 2, 1]]), "attention_mask": torch.tensor([[1, 1, 1]])}
    many = {key: x.expand(n, -1) for key, x in one.items()}
    labels = drawn_labels(task, Examples(many))[0]
    p = task.outputs(task.model, one).softmax(2)[0].detach()
    for k in range(2):
        found = torch.bincount(labels[:, k], minlength=4) / n
        # Five standard deviations of a binomial share; the seed is fixed.
        assert bool(((found - p[k]).abs() <= 5 * (p[k] * (1 - p[k]) / n).sqrt()).all())
    together = torch.bincount(labels[:, 0] * 4 + labels[:, 1], minlength=16) / n
    joint = (p[0][:, None] * p[1]).flatten()
    assert bool(((together - joint).abs() <= 5 * (joint * (1 - joint) / n).sqrt()).all())


@pytest.mark.parametrize("length", [LENGTH, 9])
@pytest.mark.parametrize("memory", [1, 1000, 2**20])
def test_neither_blocks_nor_padding_change_the_labels_drawn(monkeypatch, memory, length):
    task = causal_language_model(model_of("gpt2"))
    expected = drawn_labels(task, Examples(sequences(7)), n_samples=2, seed=3)
    counts = sequences(7)["attention_mask"][:, 1:]
    assert bool(((expected[0] == -100) == (counts == 0)).all())
    monkeypatch.setattr("whence.gradients.passes.OUTPUT_MEMORY", memory)
    found = drawn_labels(task, Examples(sequences(7, length=length)), n_samples=2, seed=3)
    assert torch.equal(found[..., : LENGTH - 1], expected)
    assert bool((found[..., LENGTH - 1 :] == -100).all())


def dense_of(task: object, batch: dict[str, Tensor], slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per-example gradients (n, 4, 3) of the head of `Bigrams`, and the inputs and slopes of tokens that count."""
    seen = task.model.seen(batch["input_ids"][:, :-1])
    gradients = torch.einsum("nso,nsi->noi", slopes, seen)
    counts = batch["attention_mask"][:, 1:] == 1
    return gradients, seen[counts], slopes[counts]


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_ekfac_is_its_definition_on_one_layer(fisher):
    batch, n = short(9), 9
    task = causal_language_model(bigrams())
    labels = batch["input_ids"][:, 1:].where(batch["attention_mask"][:, 1:] == 1, -100)
    labels = labels if fisher == "empirical" else drawn_labels(task, Examples(batch), seed=5)[0]
    slopes = task.outputs(task.model, batch).detach().softmax(2) - F.one_hot(labels.clamp_min(0), 4)
    gradients, a, g = dense_of(task, batch, slopes * (labels != -100)[..., None])
    u_a = torch.linalg.eigh(a.T @ a / len(a)).eigenvectors
    u_g = torch.linalg.eigh(g.T @ g / n).eigenvectors
    rotated = (u_g.T @ gradients @ u_a).square().mean(0)
    basis = torch.kron(u_g, u_a)
    expected = basis @ torch.diag(rotated.flatten()) @ basis.T
    found = fit_kronecker(task, Examples(batch), fisher=fisher, seed=5)
    assert_same(found.to_dense(), expected, 1e-9)  # of eigenvectors: gaps between eigenvalues are wide
    whole = torch.einsum("nx,ny->xy", gradients.flatten(1), gradients.flatten(1)) / n
    assert float(found.to_dense().trace()) == pytest.approx(float(whole.trace()), rel=1e-10)


def test_a_tiny_model_has_an_exact_gauss_newton_matrix():
    batch = short(5)
    task = causal_language_model(bigrams())
    z, total = task.outputs(task.model, batch).detach(), torch.zeros(12, 12, dtype=torch.float64)
    p, seen = z.softmax(2), task.model.seen(batch["input_ids"][:, :-1])
    for k in range(5):
        for s in range(int(batch["attention_mask"][k].sum()) - 1):
            v = torch.diag(p[k, s]) - p[k, s][:, None] * p[k, s]
            total += torch.kron(v, seen[k, s][:, None] * seen[k, s]) / 5
    rows = torch.cat([block for _, block in fit_gauss_newton(task, Examples(batch)).linear.factor_blocks()])
    assert_same(rows.T @ rows, total)
    # One linear layer: the Kronecker form keeps the trace.
    assert float(fit_kronecker(task, Examples(batch)).to_dense().trace()) == pytest.approx(float(total.trace()))


def test_the_exact_matrix_of_a_larger_model_is_refused_with_what_to_use(monkeypatch):
    task, train = causal_language_model(bigrams(n_words=2000)), Examples(short(5))
    for fit in (fit_gauss_newton, fit_kronecker):
        with pytest.raises(UnsupportedError, match=r"each of the 6000 outputs.*fisher='sampled'"):
            fit(task, train)
    monkeypatch.setattr("whence.adapters.tokens.LARGEST_HESSIAN", 1)
    task = causal_language_model(bigrams())
    with pytest.raises(UnsupportedError, match=r"Hessian of the loss in 12 outputs.*'sampled'"):
        fit_gauss_newton(task, train)
    monkeypatch.setattr("whence.gradients.rows.ALL_OUTPUTS", 1)
    with pytest.raises(UnsupportedError, match=r"12 numbers each.*tokens times vocabulary"):
        outputs_of(task, train)


# What is refused


def config(**changes):
    return SimpleNamespace(**{"pad_token_id": 3, "eos_token_id": 2, "bos_token_id": 1, **changes})


@pytest.mark.parametrize(
    "changes, error, shown",
    [
        ({"attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])}, DataError, "'b' has padding before a token"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])}, DataError, "'b' has no token to be predicted"),
        ({"attention_mask": torch.ones(2, 3)}, ShapeError, r"\(2, 4\) torch.int64, \(2, 3\) torch.float32"),
        ({"labels": torch.tensor([[0, 1, 2, 4]] * 2)}, DataError, r"'a' has a label outside 0 \.\. 3"),
        ({"labels": torch.tensor([[0, 1, 2, -1]] * 2)}, DataError, r"'a' has a label outside 0 \.\. 3"),
        ({"labels": torch.full((2, 4), -100)}, DataError, "'a' has no token to be predicted"),
        ({"labels": torch.zeros(2, 4)}, DataError, "must be integers; got torch.float32"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, ShapeError, "labels of that shape"),
    ],
)
def test_sequences_that_do_not_fit_are_refused_by_name(changes, error, shown):
    batch = {**short(2), "attention_mask": torch.ones(2, 4, dtype=torch.int64), **changes}
    with pytest.raises(error, match=shown):
        causal_language_model(bigrams()).check(batch, ["a", "b"])


def test_padding_without_a_mask_is_refused_unless_it_ends_texts():
    batch = {"input_ids": torch.tensor([[0, 1, 2, 1], [0, 1, 3, 3]])}
    with pytest.raises(DataError, match="Example 'b' holds the padding id 3, and the batch has no mask"):
        causal_language_model(bigrams(config=config())).check(batch, ["a", "b"])
    causal_language_model(bigrams(config=config(eos_token_id=3))).check(batch, ["a", "b"])
    labels = {"labels": batch["input_ids"].where(batch["input_ids"] != 3, -100)}
    causal_language_model(bigrams(config=config())).check({**batch, **labels}, ["a", "b"])


def test_models_and_options_that_do_not_fit_are_refused_at_once():
    model = bigrams()
    with pytest.raises(UnsupportedError, match="an encoder and a decoder"):
        causal_language_model(bigrams(config=config(is_encoder_decoder=True)))
    with pytest.raises(UnsupportedError, match='attn_implementation="sdpa"'):
        causal_language_model(bigrams(config=config(_attn_implementation="flash_attention_2")))
    with pytest.raises(InputError, match="'sum' or 'mean'"):
        causal_language_model(model, reduction="none")
    with pytest.raises(UnknownNameError, match=r"measure of sequences 'logit'.*log_probability, loss, margin"):
        causal_language_model(model, measure="logit")
    with pytest.raises(InputError, match="`lower_is_better` is fixed"):
        causal_language_model(model, lower_is_better=True)
    with pytest.raises(ShapeError, match="no `target` under 'answers'"):
        causal_language_model(model, target="answers").check(short(2), range(2))


def test_the_task_travels():
    task = causal_language_model(model_of("gpt2"), span="span", measure="margin")
    batch = token_queries(Examples(sequences(2)), 0).all()
    twin = pickle.loads(pickle.dumps(task))
    found, expected = (measure_gradients(one, Examples(batch)) for one in (twin, task))
    assert_close(found, expected, rtol=0, atol=0)
