"""The benches: a model, its data, its recipe and the methods whose parameter groups are weighed. A new one is an entry.

Sizes are such that one training on half of the data takes some tenths of a second of one core (digits, adult), two
(pictures) to four (gpt2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import ResNet9, VisionTransformer
from benchmarks.weights.fixed import Size
from whence import Damping, Examples, Inputs, Recipe, Task, load, plant_label_noise, train
from whence.adapters import causal_language_model
from whence.data import Split
from whence.studies.demo import DIGITS, NOISE, TEST_FRACTION, digits_net
from whence.studies.spacing import evenly
from whence.training.trajectory import Trajectory

VOCABULARY, TOKENS = 2048, 64
CHECKPOINTS = 3  # of the original training, for TracIn; evenly spaced, the last is the final model

Data = tuple[Examples, Examples]  # train set; what queries are taken from


@dataclass(frozen=True)
class Bench:
    """One bench.

    Attributes:
        name: Its name.
        remark: Model and data, for the tables.
        data: Train set, and the part that queries are taken from.
        network: Seed -> untrained network, in eval mode.
        task: Network -> task.
        recipe: Of the final model, and of every training on a kept set.
        methods: Base method -> options, for a trained model.
        elsewhere: Name and data of another problem for the same network: are weights that are learned there good here?
    """

    name: str
    remark: str
    data: Callable[[], Data]
    network: Callable[[int], nn.Module]
    task: Callable[[nn.Module], Task]
    recipe: Recipe
    methods: Mapping[str, Callable[[Trained], dict[str, Any]]]
    elsewhere: tuple[str, Callable[[], Data]] | None = None

    def sized(self, size: Size) -> Bench:
        """The same with the amount of training of `size`."""
        return self if size.epochs is None else replace(self, recipe=replace(self.recipe, epochs=size.epochs))

    def on_other_data(self) -> Bench | None:
        """The same network and recipe on the other problem, where there is one."""
        return None if self.elsewhere is None else replace(self, data=self.elsewhere[1], elsewhere=None)

    def untrained(self, seed: int = 0) -> Task:
        """The task at an initialisation."""
        return self.task(self.network(seed))

    def initialize(self, seed: int) -> dict[str, Tensor]:
        """State dict of a fresh network."""
        return self.network(seed).state_dict()


@dataclass(frozen=True, eq=False)
class Trained:
    """A bench's final model with its train set and two kinds of queries.

    Attributes:
        bench: What it is.
        inputs: The final model, the train set, and the queries that judge.
        learning: Queries that weights are learned from; none of them judges.
    """

    bench: Bench
    inputs: Inputs
    learning: Examples

    @classmethod
    def of(cls, bench: Bench, size: Size) -> Trained:
        """Train it."""
        examples, judging, learning = examples_of(bench, size)
        return cls(bench, Inputs(train(bench.untrained(), examples, bench.recipe), examples, judging), learning)


def examples_of(bench: Bench, size: Size) -> tuple[Examples, Examples, Examples]:
    """Train set, queries that judge, and queries to learn from: no query is both, or in the train set.

    Queries are evenly spaced through the part that is not trained on, chosen without looking.
    """
    examples, rest = bench.data()
    if size.n_train is not None:
        examples = examples.subset(range(min(size.n_train, len(examples))))
    judging = evenly(len(rest), size.evaluation_queries)
    others = [k for k in range(len(rest)) if k not in set(judging)]
    learning = [others[k] for k in evenly(len(others), size.learning_queries)]
    return examples, rest.subset(judging), rest.subset(learning)


# --- options of base methods ------------------------------------------------------------------------------------------


def plain(**options: Any) -> Callable[[Trained], dict[str, Any]]:
    """The same options whatever the model is."""
    return lambda trained: options


def along_training(trained: Trained) -> dict[str, Any]:
    """TracIn at evenly spaced epochs of the original training."""
    bench, inputs = trained.bench, trained.inputs
    recipe, n = bench.recipe, min(CHECKPOINTS, bench.recipe.amount)
    ends = [recipe.steps_at(recipe.amount * k // n, inputs.n_train) for k in range(1, n)]
    states = [inputs.task.model.state_dict()]
    if ends:
        run = Trajectory(bench.untrained(), inputs.train, recipe, 0, ends[-1])
        states = [*(run.task_at(end).model.state_dict() for end in ends), *states]
    return {"checkpoints": states, "learning_rates": recipe.lr}


def along_recipe(form: str = "auto") -> Callable[[Trained], dict[str, Any]]:
    """The filter of as much gradient flow as the original training, with the curvature in some form."""

    def options(trained: Trained) -> dict[str, Any]:
        recipe = trained.bench.recipe
        return {"recipe": recipe, "at": recipe.amount, "flow": True, "form": form}

    return options


DEFAULTS = plain()
# `dim` is not far below the number of train examples here: a ridge keeps the inverse from being noise.
TRAK = plain(dim=512, ridge=Damping.relative(0.1))
PICTURES = {"grad_dot": DEFAULTS, "tracin": along_training, "trak": TRAK, "logra": DEFAULTS, "ekfac": DEFAULTS}
RESNET9 = Recipe(lr=0.02, batch_size=25, epochs=6, momentum=0.9, schedule="cosine")


# --- data and networks ------------------------------------------------------------------------------------------------


def halves(split: Split, n_train: int | None = None) -> Data:
    """The first rows of the train part, and the test part."""
    return split.train if n_train is None else split.train.subset(range(n_train)), split.test


def digits() -> Data:
    """As in the demo, with its planted labels."""
    split = load("digits", test_fraction=TEST_FRACTION)
    return plant_label_noise(split.train, fraction=NOISE, n_classes=10, seed=0).examples, split.test


def seeded(network: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Seed -> a fresh network in eval mode."""

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return network().eval()

    return build


def perceptron() -> nn.Module:
    """10,178 parameters, for the 91 columns of Adult."""
    return nn.Sequential(nn.Linear(91, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def gpt2() -> nn.Module:
    """235,264 parameters, 131,072 of them token embeddings that the head shares; no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "n_positions": TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 2}
    dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    others: dict[str, Any] = {"attn_implementation": "eager", "bos_token_id": None, "eos_token_id": None}
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**shape, **dropout, **others))
    return model


BENCHES = {
    bench.name: bench
    for bench in (
        Bench(
            "digits",
            "the demo's CNN on 1,078 digits, 5 % of the labels planted wrong",
            digits,
            digits_net,
            Task.classification,
            DIGITS.original,
            {
                "grad_dot": DEFAULTS,
                "tracin": along_training,
                "trak": TRAK,
                "logra": DEFAULTS,
                "ekfac": DEFAULTS,
                # 6,586 parameters: one decomposition, where so long a flow on Krylov spaces takes many minutes.
                "horizon": along_recipe("primal"),
            },
        ),
        Bench(
            "adult",
            "a perceptron of two hidden layers of 64 on the first 2,000 rows of UCI Adult",
            lambda: halves(load("adult"), 2000),
            seeded(perceptron),
            Task.classification,
            Recipe(lr=0.05, batch_size=64, epochs=10, momentum=0.9),
            {
                "grad_dot": DEFAULTS,
                "tracin": along_training,
                "trak": TRAK,
                "logra": DEFAULTS,
                "datainf": DEFAULTS,
                "horizon": along_recipe(),
            },
        ),
        Bench(
            "fashion_mnist",
            "a ResNet-9 of width 8 on the first 1,000 pictures of Fashion-MNIST",
            lambda: halves(load("fashion_mnist", n_train=1000, n_test=1000)),
            seeded(lambda: ResNet9(1, 10, 8)),
            Task.classification,
            RESNET9,
            PICTURES,
            elsewhere=("MNIST", lambda: halves(load("mnist", n_train=1000, n_test=1000))),
        ),
        Bench(
            "cifar10",
            "a vision transformer (patches of 8, 2 layers of 48) on the first 2,000 pictures of CIFAR-10, true pixels",
            lambda: halves(load("cifar10", version="lossless", n_train=2000)),
            seeded(lambda: VisionTransformer(3, 10, 32)),
            Task.classification,
            Recipe(lr=2e-3, batch_size=64, epochs=8, optimizer="adamw", schedule="cosine"),
            PICTURES,
        ),
        Bench(
            "cifar10_jpeg",
            "a ResNet-9 of width 8 on the first 1,000 pictures of a subset of CIFAR-10 that went through JPEG",
            lambda: halves(load("cifar10", version="jpeg", n_train=1000, n_test=1000)),
            seeded(lambda: ResNet9(3, 10, 8)),
            Task.classification,
            # Chosen by accuracy alone (.39): with that of Fashion-MNIST it is .15, hardly above chance.
            replace(RESNET9, lr=0.005, epochs=10),
            PICTURES,
        ),
        Bench(
            "gpt2",
            "a GPT-2 of 2 layers of 64 on 512 sequences of 64 words of WikiText-2",
            lambda: halves(load("wikitext2", n_train=512, n_test=1000, length=TOKENS, vocabulary=VOCABULARY)),
            seeded(gpt2),
            causal_language_model,
            Recipe(lr=3e-3, batch_size=16, epochs=4, optimizer="adamw"),
            # trak is refused for sequences; an exact Gauss-Newton matrix of a vocabulary too.
            {
                "grad_dot": DEFAULTS,
                "tracin": along_training,
                "logra": DEFAULTS,
                "datainf": DEFAULTS,
                "ekfac": plain(fisher="sampled"),
            },
        ),
    )
}
