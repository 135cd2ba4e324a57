"""Settings of final-model-only attribution: published ones on tables of rows, and ours on pictures and texts.

Wei et al. (2025), arXiv:2412.03906.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.pictures import resnet9_task
from benchmarks.text import encoder_task, tuned_minilm_task
from whence import Damping, Examples, Inputs, Recipe, ScoreMatrix, Task, attribute_with, load, train
from whence.data import Split
from whence.errors import NotPositiveDefiniteError, NumericalError
from whence.training.trajectory import Trajectory

HIDDEN = 128
BATCH = 128
LEFT_OUT = 100
N_CHECKPOINTS = 5  # of the original training, for TracIn; evenly spaced, the last is the final model
LISSA_SCALES = (10, 20, 50, 100, 150, 200, 250, 300, 400, 500)  # the smallest that does not diverge is taken
UNROLLED_SEEDS = tuple(range(1000, 1010))  # of the runs that `unrolled` follows; none of the gold standard's
PUBLISHED = ("grad_dot", "grad_cos", "datainf", "influence_cg", "influence_gn", "lissa", "lissa_hessian", "trak")

Optimizer = Literal["sgd", "adam"]
Scores = ScoreMatrix | dict[int, ScoreMatrix]
Compute = Callable[[Inputs], Scores]


@dataclass(frozen=True)
class Setting:
    """One task's original and further training.

    Attributes:
        dataset: Its name.
        build: An initialisation seed to the untrained task and its data.
        original: Original training; its order has seed 0.
        sgd: Further training, up to the last amount.
        adam: The same by the other optimizer.
        damping: Of influence functions.
        n_queries: The first so many of the test split; None for all.
        unrolled_runs: Trajectories of `unrolled`; `unrolled_ten` has all of `UNROLLED_SEEDS`.
        left_out: How many train examples the gold standard leaves out, each alone.
    """

    dataset: str
    build: Callable[[int], tuple[Task, Split]]
    original: Recipe
    sgd: Recipe
    adam: Recipe
    damping: Damping
    n_queries: int | None = None
    unrolled_runs: int = 2
    left_out: int = LEFT_OUT

    def further(self, optimizer: Optimizer = "sgd") -> Recipe:
        """Further training by an optimizer."""
        return self.sgd if optimizer == "sgd" else self.adam


def perceptron_task(dataset: str, seed: int) -> tuple[Task, Split]:
    """The published multi-layer perceptron, built right after `torch.manual_seed(seed)`, and a table of rows."""
    split = load(dataset)
    x, y = split.train.all()
    n_outputs = 1 if y.is_floating_point() else 2
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(x.shape[1], HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, n_outputs),
    ).eval()
    return (Task.regression if y.is_floating_point() else Task.classification)(model), split


def published(
    dataset: str, lr: float, epochs: int, further_lr: float, adam_lr: float, further_epochs: int, **others: Any
) -> Setting:
    """A setting of the reference: one network, batches of 128.

    `adult` and `credit_default` stand in for Folktables and FICO, whose data are not to be had; they take over their
    learning rates, amounts and dampings.
    """
    return Setting(
        dataset,
        partial(perceptron_task, dataset),
        original=Recipe(lr=lr, batch_size=BATCH, epochs=epochs),
        sgd=Recipe(lr=further_lr, batch_size=BATCH, epochs=further_epochs),
        adam=Recipe(lr=adam_lr, batch_size=BATCH, epochs=further_epochs, optimizer="adam"),
        **others,
    )


HUNDREDFOLD = Damping.mean_square_gradient(100)
SETTINGS = {
    setting.dataset: setting
    for setting in (
        # 1000 times the printed mean squared gradient entry, 1.6842e-06.
        published("energy", 0.3, 1000, 0.03, 1e-4, 500, damping=Damping.absolute(1.684e-3)),
        published("concrete", 0.3, 1000, 0.03, 1e-4, 500, damping=HUNDREDFOLD, unrolled_runs=1),
        published("adult", 1e-2, 100, 1e-4, 1e-6, 25, damping=HUNDREDFOLD, n_queries=100, unrolled_runs=1),
        published("credit_default", 1e-3, 1000, 1e-4, 1e-6, 200, damping=HUNDREDFOLD, n_queries=100, unrolled_runs=1),
        Setting(
            "fashion_mnist",
            partial(resnet9_task, 2000, n_test=200, width=8),
            original=Recipe(lr=0.05, batch_size=64, epochs=12, momentum=0.9, schedule="cosine"),
            sgd=Recipe(lr=0.005, batch_size=64, epochs=3),
            adam=Recipe(lr=1e-5, batch_size=64, epochs=3, optimizer="adam"),
            damping=HUNDREDFOLD,
            n_queries=20,
            unrolled_runs=1,
            left_out=24,
        ),
        Setting(
            "sst2",
            partial(encoder_task, 1000),
            original=Recipe(lr=1e-3, batch_size=64, epochs=3, optimizer="adamw"),
            sgd=Recipe(lr=0.01, batch_size=64, epochs=2),
            adam=Recipe(lr=1e-5, batch_size=64, epochs=2, optimizer="adamw"),
            damping=HUNDREDFOLD,
            n_queries=20,
            unrolled_runs=1,
            left_out=24,
        ),
        Setting(
            "sst2_minilm",
            partial(tuned_minilm_task, 500, 100),
            original=Recipe(lr=1e-3, batch_size=32, epochs=4, optimizer="adamw"),
            sgd=Recipe(lr=0.003, batch_size=32, epochs=2),
            adam=Recipe(lr=3e-6, batch_size=32, epochs=2, optimizer="adamw"),
            damping=HUNDREDFOLD,
            n_queries=20,
            unrolled_runs=1,
            left_out=16,
        ),
    )
}


@dataclass(frozen=True)
class PublishedFigures:
    """What the reference prints: SGD, eq. 13, mean over test instances, 100 seeds.

    Attributes:
        dataset: Theirs.
        points: Epochs of further training.
        cosines: Method -> figure at each point.
        bands: (method, point) -> what a repetition with another final model is expected to find.
    """

    dataset: str
    points: tuple[int, ...]
    cosines: dict[str, tuple[float, ...]]
    bands: dict[tuple[str, int], tuple[float, float]]


FOLKTABLES = PublishedFigures(
    "Folktables",
    (1, 25),
    {
        "grad_dot": (0.949, 0.540),
        "grad_cos": (0.592, 0.355),
        "datainf": (0.961, 0.660),
        "influence_cg": (0.380, 0.720),
        "influence_gn": (0.380, 0.720),
        "lissa": (0.161, 0.300),
        "lissa_hessian": (0.065, 0.113),
        "trak": (0.036, 0.102),
    },
    {
        ("grad_dot", 1): (0.93, 0.97),
        ("datainf", 1): (0.94, 0.98),
        ("influence_cg", 1): (0.3, 0.45),
        ("influence_cg", 25): (0.65, 0.8),
        ("influence_gn", 1): (0.3, 0.45),
        ("influence_gn", 25): (0.65, 0.8),
    },
)
PUBLISHED_FIGURES = {
    "energy-five-seeds": PublishedFigures(
        "Energy",
        (1, 500),
        {
            "grad_dot": (0.705, 0.163),
            "grad_cos": (0.503, 0.106),
            "datainf": (0.702, 0.204),
            "influence_cg": (0.141, 0.356),
            "lissa": (0.155, 0.378),
            "lissa_hessian": (0.001, 0.034),
            "trak": (0.000, 0.007),
        },
        {
            ("grad_dot", 1): (0.6, 0.8),
            ("grad_dot", 500): (0.1, 0.3),
            ("influence_cg", 1): (0.1, 0.2),
            ("influence_cg", 500): (0.3, 0.5),
        },
    ),
    "adult": FOLKTABLES,
    "adult-some-queries": FOLKTABLES,
}


def methods_of(setting: Setting, recipe: Recipe, points: tuple[int, ...], init_seed: int = 0) -> dict[str, Compute]:
    """Name in the results -> scores. The published dampings are no choice of ours; `trak`'s settings are unpublished.

    Methods that follow further training are told its recipe and amounts, all others know the final model only.
    """
    damping = setting.damping
    trained = {"recipe": recipe, "at": points}
    return {
        "grad_dot": _call("grad_dot"),
        "grad_cos": _call("grad_cos"),
        "datainf": _call("datainf", damping=Damping.mean_square_gradient(0.1)),
        "influence_gn": _call("influence_gn", damping=damping),
        "influence_cg": _call("influence_cg", damping=damping),
        "influence_hessian": _call("influence_hessian", damping=damping),
        "influence_fisher": _call("influence_fisher", damping=damping),
        "kfac": _call("kfac", damping=damping),
        "ekfac": _call("ekfac", damping=damping),
        "arnoldi": _call("arnoldi"),
        "lissa": partial(_at_smallest_scale, method="lissa", damping=damping),
        "lissa_hessian": partial(_at_smallest_scale, method="lissa_hessian", damping=damping),
        "trak": _call("trak"),
        "tracin": partial(_along_original_training, setting=setting, init_seed=init_seed),
        "representer": _call("representer"),
        "horizon": _call("horizon", **trained),
        "horizon_ahead": _call("horizon_ahead", **trained),
        "horizon_ahead_both_shifts": _call("horizon_ahead", look_ahead="both_shifts", **trained),
        "unrolled": _call("unrolled", seeds=UNROLLED_SEEDS[: setting.unrolled_runs], **trained),
        "unrolled_ten": _call("unrolled", seeds=UNROLLED_SEEDS, **trained),
        "embedding_cosine": _call("embedding_cosine"),
        "random": _call("random"),
    }


def _call(method: str, **options: Any) -> Compute:
    return lambda inputs: attribute_with(inputs, method, **options)


def _at_smallest_scale(inputs: Inputs, method: str, damping: Damping) -> Scores:
    """LiSSA at the smallest published scale at which it does not diverge.

    Raises:
        NumericalError: It diverges at all of them.
    """
    for scale in LISSA_SCALES[:-1]:
        try:
            return attribute_with(inputs, method, damping=damping, scale=float(scale))
        except NotPositiveDefiniteError:
            raise
        except NumericalError as error:
            print(f"{method}, scale {scale}: {error}", flush=True)
    return attribute_with(inputs, method, damping=damping, scale=float(LISSA_SCALES[-1]))


def _along_original_training(inputs: Inputs, setting: Setting, init_seed: int) -> Scores:
    """TracIn at checkpoints of the original training."""
    states = checkpoints(inputs, setting, init_seed)
    return attribute_with(inputs, "tracin", checkpoints=states, learning_rates=setting.original.lr)


def checkpoints(inputs: Inputs, setting: Setting, init_seed: int) -> list[dict[str, Tensor]]:
    """State dicts at evenly spaced epochs of the original training, the final model last."""
    recipe = setting.original
    each = recipe.amount // N_CHECKPOINTS
    ends = [recipe.steps_at(each * k, inputs.n_train) for k in range(1, N_CHECKPOINTS)]
    run = Trajectory(untrained(setting, init_seed), inputs.train, recipe, 0, ends[-1])
    return [*(run.task_at(end).model.state_dict() for end in ends), inputs.task.model.state_dict()]


def data_of(setting: Setting) -> tuple[Examples, Examples, Examples]:
    """Train examples, the queries that are compared, and the whole test split."""
    split = setting.build(0)[1]
    n = len(split.test) if setting.n_queries is None else setting.n_queries
    return split.train, split.test.subset(range(n)), split.test


def untrained(setting: Setting, seed: int) -> Task:
    """The task at its initialisation."""
    return setting.build(seed)[0]


def final_model(setting: Setting, examples: Examples, seed: int) -> Task:
    """The original training from initialisation `seed`."""
    return train(untrained(setting, seed), examples, setting.original, seed=0)


def mean_loss(task: Task, examples: Examples) -> float:
    """Mean loss of the model."""
    with torch.no_grad():
        batch = examples.all()
        return float(task.loss(task.outputs(task.model, batch), batch).double().mean())
