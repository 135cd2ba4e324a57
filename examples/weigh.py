"""Which parts of a model to believe: weights of parameter groups, learned without labels on queries kept apart.

`whence weigh weigh.toml` learns them and prints a table; then `whence score weigh.toml`, `whence evaluate weigh.toml`
(does it help? by training anew on halves of the data) and `whence report weigh.toml` (the page, view "Groups").
"""

import torch

import whence
from whence.data import load


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 10),
    ).eval()


def build():
    digits = load("digits", test_fraction=0.4)
    train, others = digits.train.subset(range(300)), digits.test
    task = whence.train(whence.Task.classification(network()), train, whence.Recipe(lr=0.1, batch_size=30, epochs=20))
    return whence.Setup(
        task,
        train,
        others.subset(range(20)),  # what is asked, and what the result is judged by
        learning_queries=others.subset(range(20, 100)),  # what weights are learned from: neither trained on nor asked
        initialize=lambda seed: network(seed).state_dict(),
    )
