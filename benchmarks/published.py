"""The published settings of final-model-only attribution on tabular data (Wei et al. 2025, arXiv:2412.03906)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from whence import Damping, Examples, Recipe, Task, load, train

HIDDEN = 128
BATCH = 128
LEFT_OUT = 100


@dataclass(frozen=True)
class Setting:
    """One data set's original and further training.

    `adult` and `credit_default` stand in for Folktables and FICO, whose data are not to be had; they take over their
    learning rates and amounts.
    """

    dataset: str
    lr: float
    epochs: int
    further_lr: float
    further_epochs: int
    damping: Damping
    n_queries: int | None = None  # the first so many of the test split

    @property
    def further(self) -> Recipe:
        """Further training; points up to its end."""
        return Recipe(lr=self.further_lr, batch_size=BATCH, epochs=self.further_epochs)

    @property
    def original(self) -> Recipe:
        """Original training; its order has seed 0."""
        return Recipe(lr=self.lr, batch_size=BATCH, epochs=self.epochs)


SETTINGS = {
    # 1000 times the printed mean squared gradient entry, 1.6842e-06.
    "energy": Setting("energy", 0.3, 1000, 0.03, 500, Damping.absolute(1.684e-3)),
    "concrete": Setting("concrete", 0.3, 1000, 0.03, 500, Damping.mean_square_gradient(100)),
    "adult": Setting("adult", 1e-2, 100, 1e-4, 25, Damping.mean_square_gradient(100), n_queries=100),
    "credit_default": Setting(
        "credit_default", 1e-3, 1000, 1e-4, 200, Damping.mean_square_gradient(100), n_queries=100
    ),
}


def data_of(setting: Setting) -> tuple[Examples, Examples, Examples]:
    """Train examples, the queries that are compared, and the whole test split."""
    split = load(setting.dataset)
    n = len(split.test) if setting.n_queries is None else setting.n_queries
    return split.train, split.test.subset(range(n)), split.test


def network(n_features: int, n_outputs: int, seed: int) -> nn.Sequential:
    """The published multi-layer perceptron, built right after `torch.manual_seed(seed)`."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(n_features, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, n_outputs),
    ).eval()


def untrained(setting: Setting, examples: Examples, seed: int) -> Task:
    """The task at its initialisation."""
    x, y = examples.all()
    if y.is_floating_point():
        return Task.regression(network(x.shape[1], 1, seed))
    return Task.classification(network(x.shape[1], 2, seed))


def final_model(setting: Setting, examples: Examples, seed: int) -> Task:
    """The published original training from initialisation `seed`."""
    return train(untrained(setting, examples, seed), examples, setting.original, seed=0)


def mean_loss(task: Task, examples: Examples) -> float:
    """Mean loss of the model."""
    with torch.no_grad():
        batch = examples.all()
        return float(task.loss(task.outputs(task.model, batch), batch).double().mean())
