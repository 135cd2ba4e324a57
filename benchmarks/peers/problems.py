"""The models and data on which all tools are measured: built and trained once, then read from a folder by every run."""

from __future__ import annotations

import collections
import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[Tensor, Tensor]  # inputs and labels
SEED = 0
STATISTICS_ROWS = 200  # train examples from which the size of gradients is measured


@dataclass(frozen=True)
class Problem:
    """A trained model, in eval mode, with its train set and queries.

    Attributes:
        name: Name in `PROBLEMS`.
        model: `model(x)` gives logits (b, classes), or (b, tokens, vocabulary) for a language model.
        train: Inputs and labels of the train set; for a language model each label is the next token.
        queries: Inputs and labels of what is explained.
        modules: Names of the linear layers and convolutions that tools with rules for these alone can cover.
        covers_all: These hold all parameters of the model.
        mean_square_gradient: Mean squared entry of the per-example loss gradients; dampings are multiples of it.
        state_path: The saved parameters, for tools that load checkpoints themselves.
    """

    name: str
    model: nn.Module
    train: Pair
    queries: Pair
    modules: tuple[str, ...]
    covers_all: bool
    mean_square_gradient: float
    state_path: Path

    @property
    def is_classification(self) -> bool:
        """One label for each example, and not one for each token."""
        return self.train[1].ndim == 1

    @property
    def parameters_of_modules(self) -> list[str]:
        """Names of the parameters of `modules`, in the model's own order."""
        owned = {f"{name}.{leaf}" for name in self.modules for leaf in ("weight", "bias")}
        return [name for name, _ in self.model.named_parameters() if name in owned]

    def first(self, n_train: int, n_query: int) -> Problem:
        """The same with the first rows only."""
        train = self.train[0][:n_train], self.train[1][:n_train]
        queries = self.queries[0][:n_query], self.queries[1][:n_query]
        return replace(self, train=train, queries=queries)


@dataclass(frozen=True)
class Settings:
    """What every tool is asked for; a damping is an absolute number added to a curvature that is a mean over examples.

    Attributes:
        damping: Of EK-FAC and DataInf.
        hessian_damping: Of CG, LiSSA and Arnoldi: large enough to make the true Hessian, which most tools use,
            positive definite, or their iterations would mean nothing.
        scale: One over the step size of LiSSA: above the largest eigenvalue of a batch's Hessian.
        dim: Of TRAK's projection.
        cg_iterations: Where a tool runs a fixed number of them.
        tolerance: Relative residual, where a tool stops by itself.
        depth: Steps of LiSSA.
        rank: Eigenpairs that Arnoldi keeps.
        krylov: Dimension of its Krylov space.
        batch_size: Examples in a batch, where a tool has no choice of its own.
    """

    damping: float
    hessian_damping: float
    scale: float
    dim: int = 512
    cg_iterations: int = 40
    tolerance: float = 1e-5
    depth: int = 500
    rank: int = 50
    krylov: int = 100
    batch_size: int = 100

    @classmethod
    def of(cls, problem: Problem) -> Settings:
        """The settings of one problem."""
        plan = PROBLEMS[problem.name]
        return cls(0.1 * problem.mean_square_gradient, plan.hessian_damping, plan.scale)

    def for_warm_up(self) -> Settings:
        """As little work as passes through the same code."""
        return replace(self, dim=4, cg_iterations=2, depth=2, rank=2, krylov=4)


@dataclass(frozen=True)
class Steps:
    """What is timed of one method.

    Attributes:
        fit: What needs no query; its result goes to `score`. A tool without such a step does nothing here.
        score: Scores (n_query, n_train), positive where the example supports the query, up to a positive factor.
    """

    fit: Callable[[], Any]
    score: Callable[[Any], Tensor]


Method = Callable[[Problem, Settings, Path], Steps]  # the folder is the tool's to write in


def example_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example (b,); for a language model the sum over its tokens."""
    if labels.ndim == 1:
        return F.cross_entropy(outputs, labels, reduction="none")
    return F.cross_entropy(outputs.transpose(1, 2), labels, reduction="none").sum(1)


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean over the examples."""
    return example_losses(outputs, labels).mean()


def example_margins(outputs: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 - p)) of the true class, TRAK's model output (b,)."""
    others = outputs.scatter(1, labels[:, None], -torch.inf)
    return outputs.gather(1, labels[:, None])[:, 0] - torch.logsumexp(others, 1)


def batches(pair: Pair, batch_size: int) -> Iterator[Pair]:
    """Consecutive batches."""
    yield from zip(pair[0].split(batch_size), pair[1].split(batch_size), strict=True)


class Classifier(nn.Module):
    """A small BERT as a function of padded token ids (b, tokens) alone."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import BertForSequenceClassification

        self.net = BertForSequenceClassification(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (b, classes)."""
        # The mask is given ready to be added, since masks made from ids branch on their values, which vmap refuses.
        mask = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device).masked_fill(ids == PAD, HIDDEN)
        logits: Tensor = self.net(input_ids=ids, attention_mask=mask[:, None, None, :]).logits
        return logits


class LanguageModel(nn.Module):
    """A small GPT-2 as a function of token ids (b, tokens) alone."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import GPT2LMHeadModel

        self.net = GPT2LMHeadModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (b, tokens, vocabulary)."""
        n = ids.shape[1]
        causal = torch.full((n, n), HIDDEN, device=ids.device).triu(1)
        logits: Tensor = self.net(input_ids=ids, attention_mask=causal[None, None], use_cache=False).logits
        return logits


PAD, UNKNOWN = 0, 1
HIDDEN = -1e4  # added to what attention may not see


def mlp() -> nn.Module:
    """26,122 parameters."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    """589,040 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 370),
        nn.ReLU(),
        nn.Linear(370, 10),
    )


BERT_VOCABULARY, BERT_TOKENS = 4000, 32
GPT2_VOCABULARY, GPT2_TOKENS = 1850, 64


def bert() -> nn.Module:
    """About 0.62 million parameters; plain attention, which vmap can pass through."""
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=BERT_VOCABULARY,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=BERT_TOKENS,
        num_labels=2,
        attn_implementation="eager",
    )
    return Classifier(config)


def gpt2() -> nn.Module:
    """0.84 million parameters; plain attention, which vmap can pass through."""
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=GPT2_VOCABULARY,
        n_positions=GPT2_TOKENS,
        n_embd=128,
        n_layer=3,
        n_head=4,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    return LanguageModel(config)


def digits_data() -> tuple[Pair, Pair]:
    """1,500 train pictures and 200 queries, shuffled."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=torch.Generator().manual_seed(SEED))
    x, y = torch.tensor(loaded.data / 16.0, dtype=torch.float32)[order], torch.tensor(loaded.target).long()[order]
    return (x[:1500], y[:1500]), (x[1500:1700], y[1500:1700])


def fashion_data() -> tuple[Pair, Pair]:
    """2,000 train pictures and 100 queries of Fashion-MNIST."""
    from whence import load

    split = load("fashion_mnist", n_train=2000, n_test=100)
    return split.train.all(), split.test.all()


def sentence_data() -> tuple[Pair, Pair]:
    """1,000 train sentences and 50 queries of SST-2, as ids of the most frequent words, padded."""
    train, queries = _sentences("train_sentences.tsv.gz", 1000), _sentences("dev.tsv.gz", 50)
    ids = _vocabulary((s for s, _ in train), BERT_VOCABULARY)

    def encoded(rows: list[tuple[list[str], int]]) -> Pair:
        x = torch.full((len(rows), BERT_TOKENS), PAD)
        for k, (words, _) in enumerate(rows):
            found = [ids.get(word, UNKNOWN) for word in words[:BERT_TOKENS]]
            x[k, : len(found)] = torch.tensor(found)
        return x, torch.tensor([label for _, label in rows])

    return encoded(train), encoded(queries)


def text_data() -> tuple[Pair, Pair]:
    """1,000 train stretches of 64 words and 50 queries of WikiText-2; the label of each word is the next one."""
    words = {name: _gz(f"wikitext2/{name}.txt.gz").split() for name in ("valid", "test")}
    ids = _vocabulary([words["valid"]], GPT2_VOCABULARY)

    def encoded(name: str, n: int) -> Pair:
        found = torch.tensor([ids.get(word, UNKNOWN) for word in words[name][: n * (GPT2_TOKENS + 1)]])
        rows = found.view(n, GPT2_TOKENS + 1)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    return encoded("valid", 1000), encoded("test", 50)


def _sentences(name: str, n: int) -> list[tuple[list[str], int]]:
    lines = [line.rsplit("\t", 1) for line in _gz(f"sst2/{name}").splitlines()[1:]]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(SEED))[:n].tolist()
    return [(lines[k][0].split(), int(lines[k][1])) for k in order]


def _vocabulary(texts: Any, size: int) -> dict[str, int]:
    """Ids of the most frequent words, from 2 on."""
    counts = collections.Counter(word for words in texts for word in words)
    return {word: k for k, (word, _) in enumerate(counts.most_common(size - 2), start=2)}


def _gz(name: str) -> str:
    folder = os.environ.get("WHENCE_DATA")
    if not folder:
        raise SystemExit(f"Set WHENCE_DATA to the folder that holds {name}.")
    with gzip.open(Path(folder) / name, "rt", encoding="utf-8") as file:
        return file.read()


@dataclass(frozen=True)
class Plan:
    """How a problem is made: its model, its data, how it is trained with Adam, and settings that follow from the
    spectrum of its Hessian."""

    model: Callable[[], nn.Module]
    data: Callable[[], tuple[Pair, Pair]]
    epochs: int
    hessian_damping: float
    scale: float
    lr: float = 1e-3
    batch_size: int = 50


PROBLEMS = {
    "mlp": Plan(mlp, digits_data, epochs=4, hessian_damping=0.35, scale=50.0),
    "cnn": Plan(cnn, fashion_data, epochs=3, hessian_damping=3.0, scale=150.0),
    "bert": Plan(bert, sentence_data, epochs=3, hessian_damping=30.0, scale=1000.0),
    "gpt2": Plan(gpt2, text_data, epochs=3, hessian_damping=0.35, scale=50.0),
}


def build(name: str, folder: Path) -> None:
    """Train the model of a problem and write it with its data; nothing is done where that lies there already."""
    if (folder / "facts.json").is_file():
        return
    plan = PROBLEMS[name]
    train, queries = plan.data()
    torch.manual_seed(SEED)
    model = plan.model()
    _fit(model, train, plan)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "state.pt")
    torch.save({"train": train, "queries": queries}, folder / "data.pt")
    facts = {"name": name, "mean_square_gradient": mean_square_gradient(model, train)}
    (folder / "facts.json").write_text(json.dumps(facts))


def read(folder: Path) -> Problem:
    """The problem that `build` has written."""
    facts = json.loads((folder / "facts.json").read_text())
    model = PROBLEMS[facts["name"]].model()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    data = torch.load(folder / "data.pt", weights_only=True)
    modules = _coverable(model)
    owned = sum(p.numel() for name in modules for p in model.get_submodule(name).parameters())
    return Problem(
        facts["name"],
        model.eval(),
        tuple(data["train"]),
        tuple(data["queries"]),
        modules,
        owned == sum(p.numel() for p in model.parameters()),
        facts["mean_square_gradient"],
        folder / "state.pt",
    )


def mean_square_gradient(model: nn.Module, train: Pair) -> float:
    """Mean squared entry of the loss gradients of the first examples."""
    parameters = list(model.parameters())
    total = 0.0
    for pair in batches((train[0][:STATISTICS_ROWS], train[1][:STATISTICS_ROWS]), 1):
        gradients = torch.autograd.grad(mean_loss(model(pair[0]), pair[1]), parameters)
        total += sum(float(g.double().square().sum()) for g in gradients)
    return total / STATISTICS_ROWS / sum(p.numel() for p in parameters)


def _coverable(model: nn.Module) -> tuple[str, ...]:
    """Linear layers and convolutions that share their weight with no other layer."""
    times = collections.Counter(
        id(p) for _, module in model.named_modules() for p in module._parameters.values() if p is not None
    )
    return tuple(
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear | nn.Conv2d) or type(module).__name__ == "Conv1D")
        and times[id(module.weight)] == 1
    )


def _fit(model: nn.Module, train: Pair, plan: Plan) -> None:
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.lr)
    model.train()
    for _ in range(plan.epochs):
        for rows in torch.randperm(len(train[0]), generator=generator).split(plan.batch_size):
            optimizer.zero_grad()
            mean_loss(model(train[0][rows]), train[1][rows]).backward()
            optimizer.step()
    model.eval()
