"""The adapters on real models of transformers, tiny and random: their own losses, every gradient path, padding."""

import os
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from whence.adapters import image_classification, sequence_classification
from whence.data import Examples
from whence.errors import InputError
from whence.gold import further_train
from whence.gradients import PATHS, check_gradients, hook_coverage, loss_gradients
from whence.gradients.loop import pull_back_loop
from whence.methods import attribute, attribute_with
from whence.methods.inputs import Inputs
from whence.rng import torch_generator
from whence.task import model_state
from whence.training import Recipe

os.environ["HF_HUB_OFFLINE"] = "1"  # random models only: nothing is fetched
transformers = pytest.importorskip("transformers")

N_WORDS, PADDING, N_CLASSES = 30, 0, 3
ROUNDING = 1e-10  # of the largest entry: float64 sums of a few thousand products, in another order
NO_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}


def bert(**options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertConfig(
        vocab_size=N_WORDS, max_position_embeddings=24, pad_token_id=PADDING, **NO_DROPOUT, **sizes, **options
    )


def roberta(**options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.RobertaConfig(
        vocab_size=N_WORDS, max_position_embeddings=24, pad_token_id=PADDING, **NO_DROPOUT, **sizes, **options
    )


def distilbert(**options):
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    noise = {"attention_dropout": 0.0, "dropout": 0.0, "seq_classif_dropout": 0.0}
    return transformers.DistilBertConfig(
        vocab_size=N_WORDS, max_position_embeddings=24, pad_token_id=PADDING, **sizes, **noise, **options
    )


def gpt2(**options):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
    noise = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    ends = {"pad_token_id": PADDING, "bos_token_id": 1, "eos_token_id": 1}
    return transformers.GPT2Config(vocab_size=N_WORDS, **sizes, **noise, **{**ends, **options})


CONFIGS = {"bert": bert, "roberta": roberta, "distilbert": distilbert, "gpt2": gpt2}
every_model = pytest.mark.parametrize("name", CONFIGS)


def model_of(name, attention="sdpa", **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIGS[name](**{"num_labels": N_CLASSES, **options})
        model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
        for p in model.parameters():  # away from their start, where biases are zero and logits nearly so
            nn.init.normal_(p, std=0.3)
    return model.double().eval()


def texts(n, name="texts", length=7, longest=7):
    """Texts of 2 to `longest` words, padded to `length`."""
    generator = torch_generator(0, name)
    ids = torch.randint(2, N_WORDS, (n, longest), generator=generator)
    mask = (torch.arange(longest) < torch.randint(2, longest + 1, (n, 1), generator=generator)).long()
    more = (0, length - longest)
    return {
        "input_ids": F.pad(ids.where(mask == 1, PADDING), more, value=PADDING),
        "attention_mask": F.pad(mask, more),
        "labels": torch.randint(N_CLASSES, (n,), generator=generator),
    }


def assert_same(found, expected):
    assert float(expected.abs().max()) > 0
    assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))


# The library's own loss


@every_model
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_mean_loss_is_the_models_own(name, attention):
    model, batch = model_of(name, attention), texts(5)
    task = sequence_classification(model)
    task.check(batch, range(5))
    with torch.no_grad():
        own = model(**batch)
        outputs = task.outputs(model, batch)
    assert_same(outputs, own.logits)
    assert_same(task.loss(outputs, batch).mean(), own.loss)


@every_model
def test_the_mean_squared_error_is_the_models_own(name):
    model = model_of(name, num_labels=1)
    batch = {**texts(5), "labels": torch.linspace(-1, 1, 5, dtype=torch.float64)}
    task = sequence_classification(model)
    task.check(batch, range(5))
    with torch.no_grad():
        own = model(**batch)
        assert_same(task.loss(task.outputs(model, batch), batch).mean(), own.loss)


# Gradients


@every_model
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradient_paths_agree(name, attention):
    task, train = sequence_classification(model_of(name, attention)), Examples(texts(5))
    found = check_gradients(task, train)
    assert found.agrees, str(found)
    trainable, fixed = model_state(task.model, torch.float64)
    batch = train.all()
    v = torch.randn(5, 2, N_CLASSES, generator=torch_generator(0, "v"), dtype=torch.float64)
    expected = pull_back_loop(task, trainable, fixed, batch, v)
    assert_same(PATHS["hooks"](task, trainable, fixed, batch, v), expected)
    assert hook_coverage(task, train).fallback == {}


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_texts_of_one_length_need_no_mask(name):
    batch = texts(4)
    batch = {"input_ids": batch["input_ids"].clamp_min(2), "labels": batch["labels"]}
    masked = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    task = sequence_classification(model_of(name))
    rows = [
        torch.cat([block for _, block in loss_gradients(task, Examples(one), path=path)])
        for one, path in ((batch, "vmap"), (masked, "loop"))
    ]
    assert_same(*rows)


# Padding


SLOWER = {"influence_gn": {}, "unrolled": {"recipe": Recipe(lr=0.05, batch_size=3, epochs=1), "at": 1}}


@pytest.mark.parametrize(
    "name, method, options",
    [
        *((name, "grad_dot", {}) for name in CONFIGS),
        *((name, method, options) for name in ("bert", "gpt2") for method, options in SLOWER.items()),
    ],
)
def test_longer_padding_changes_no_score(name, method, options):
    task = sequence_classification(model_of(name))
    scores = []
    for length in (7, 12):
        train, queries = Examples(texts(6, length=length)), Examples(texts(3, "queries", length))
        scores.append(attribute(task, train, queries, method=method, **options).values)
    assert_same(scores[1], scores[0])


def test_a_mask_is_honoured():
    """What stands under the mask does not count."""
    batch, task = texts(5), sequence_classification(model_of("bert"))
    other = {**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"] == 1, 7)}
    assert not torch.equal(other["input_ids"], batch["input_ids"])
    with torch.no_grad():
        assert_same(task.outputs(task.model, other), task.outputs(task.model, batch))


# The rest of the library


@pytest.mark.parametrize("name", ["distilbert", "gpt2"])
def test_further_training_is_a_plain_loop(name, train_plainly):
    task = sequence_classification(pickle.loads(pickle.dumps(model_of(name))))
    train, queries = Examples(texts(6)), Examples(texts(2, "queries"))
    recipe = Recipe(lr=0.05, batch_size=3, epochs=2)
    gold = further_train(task, train, queries, recipe, left_out=[1], seeds=1)
    *_, (_, model) = train_plainly(task, train, recipe, 0, (1,))
    batch = queries.all()
    expected = task.measure(task.outputs(model, batch), batch).detach()
    assert_close(gold.measures[0, -1, 0], expected, rtol=1e-8, atol=1e-10)  # rounding, grown over 4 steps


@every_model
def test_the_embedding_is_what_the_head_sees(name):
    task, batch = sequence_classification(model_of(name)), texts(5)
    head = [module for module in task.model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        assert_same(head(task.embedding(task.model, batch)), task.outputs(task.model, batch))


def test_a_decoder_without_a_padding_id_is_refused():
    with pytest.raises(InputError, match="pad_token_id"):
        sequence_classification(model_of("gpt2", pad_token_id=None))


# Images


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_image_classifiers(attention):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=N_CLASSES, **NO_DROPOUT, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForImageClassification.from_config(config, attn_implementation=attention)
    model = model.double().eval()
    generator = torch_generator(0, "pixels")
    batch = {
        "pixel_values": torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64),
        "labels": torch.randint(N_CLASSES, (5,), generator=generator),
    }
    task, train = image_classification(model), Examples(batch)
    with torch.no_grad():
        assert_same(task.loss(task.outputs(model, batch), batch).mean(), model(**batch).loss)
    found = check_gradients(task, train)
    assert found.agrees, str(found)
    hooked = torch.cat([rows for _, rows in loss_gradients(task, train, path="hooks")])
    plain = torch.cat([rows for _, rows in loss_gradients(task, train, path="loop")])
    assert_same(hooked, plain)
    scores = attribute_with(Inputs(task, train, train.subset([0, 1])), "influence_gn")
    assert bool(torch.isfinite(scores.values).all())
