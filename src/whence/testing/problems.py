"""Small problems with known answers, in float64, built from importable classes so that they pickle.

`PROBLEMS` names one of each kind of network that gradients and training must get right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.batches import Batch
from whence.data import Examples
from whence.rng import torch_generator
from whence.task import Task

DTYPE = torch.float64


@dataclass(frozen=True, eq=False)
class SmallProblem:
    """A final model with its contract, a train set and queries."""

    task: Task
    train: Examples
    queries: Examples


# --- linear regression: everything in closed form ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LinearRegression(SmallProblem):
    """`f(x) = w^T x` with squared error: the mean loss over the kept rows is a parabola in w.

    Attributes:
        x: (n_train, d).
        y: (n_train,).
        start: (d,), the parameters of the final model.
    """

    x: Tensor
    y: Tensor
    start: Tensor

    def gauss_newton(self, left_out: Sequence[int] = ()) -> Tensor:
        """Hessian `(2 / n) X^T X` (d, d) of the mean loss, n counting the rows kept."""
        x, _ = self._kept(left_out)
        hessian: Tensor = 2 / len(x) * x.T @ x
        return hessian

    def minimum(self, left_out: Sequence[int] = (), decay: float = 0.0) -> Tensor:
        """The w (d,) that minimises the mean loss plus `decay / 2 |w|^2` (ridge regression)."""
        x, y = self._kept(left_out)
        curvature = self.gauss_newton(left_out) + decay * torch.eye(x.shape[1], dtype=x.dtype)
        best: Tensor = torch.linalg.solve(curvature, 2 / len(x) * x.T @ y)
        return best

    def descended(self, lr: float, n_steps: int, left_out: Sequence[int] = (), decay: float = 0.0) -> Tensor:
        """w (d,) after full-batch gradient descent: `w* + (I - lr (H + decay))^T (start - w*)`."""
        eye = torch.eye(len(self.start), dtype=self.x.dtype)
        shrink = torch.linalg.matrix_power(eye - lr * (self.gauss_newton(left_out) + decay * eye), n_steps)
        best = self.minimum(left_out, decay)
        end: Tensor = best + shrink @ (self.start - best)
        return end

    def losses(self, w: Tensor, examples: Examples) -> Tensor:
        """Squared error of each example under w."""
        x, y = examples.all()
        return (x @ w - y[:, 0]).square()  # type: ignore[no-any-return]

    def _kept(self, left_out: Sequence[int]) -> tuple[Tensor, Tensor]:
        kept = [i for i in range(len(self.x)) if i not in set(left_out)]
        return self.x[kept], self.y[kept]


def linear_regression(
    n_train: int = 12, n_features: int = 3, n_query: int = 4, *, noise: float = 0.3, seed: int = 0
) -> LinearRegression:
    """Gaussian inputs, a linear target with noise, and a start away from the minimum."""
    model = nn.Linear(n_features, 1, bias=False, dtype=DTYPE)
    _fill(model, seed)
    truth = _normal(seed, "truth", n_features)
    x, x_query = _normal(seed, "x", n_train, n_features), _normal(seed, "query", n_query, n_features)
    y = x @ truth + noise * _normal(seed, "noise", n_train)
    y_query = x_query @ truth + noise * _normal(seed, "query noise", n_query)
    train, queries = Examples((x, y[:, None])), Examples((x_query, y_query[:, None]))
    return LinearRegression(Task.regression(model.eval()), train, queries, x, y, model.weight.detach()[0].clone())


# --- networks ---------------------------------------------------------------------------------------------------------


class DropoutNet(nn.Module):
    """Two dropout modules, one of them used twice."""

    def __init__(self, n_inputs: int, n_outputs: int, p: float = 0.4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_inputs, 6, dtype=DTYPE), nn.Linear(6, n_outputs, dtype=DTYPE)
        self.early, self.late = nn.Dropout(p), nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_inputs) -> (b, n_outputs)."""
        hidden = self.late(torch.tanh(self.first(self.early(x))))
        out: Tensor = self.second(self.late(hidden))
        return out


class BatchNormNet(nn.Module):
    """Batch norm between two layers, with running statistics that are not 0 and 1."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_inputs, 5, dtype=DTYPE), nn.Linear(5, n_outputs, dtype=DTYPE)
        self.norm = nn.BatchNorm1d(5, dtype=DTYPE)
        self.norm.running_mean = torch.linspace(-0.5, 0.5, 5, dtype=DTYPE)
        self.norm.running_var = torch.linspace(0.5, 2.0, 5, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_inputs) -> (b, n_outputs)."""
        out: Tensor = self.second(torch.tanh(self.norm(self.first(x))))
        return out


class TiedNet(nn.Module):
    """An encoder and a decoder that share one square weight."""

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.encoder, self.decoder = (nn.Linear(n_inputs, n_inputs, dtype=DTYPE) for _ in range(2))
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_inputs) -> (b, n_inputs)."""
        out: Tensor = self.decoder(torch.tanh(self.encoder(x)))
        return out


class SharedNet(nn.Module):
    """One layer, module and all, that is used twice and has two names."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(n_inputs, n_inputs, dtype=DTYPE)
        self.again = self.first
        self.head = nn.Linear(n_inputs, n_outputs, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_inputs) -> (b, n_outputs)."""
        out: Tensor = self.head(torch.tanh(self.again(torch.tanh(self.first(x)))))
        return out


class ScaledNet(nn.Module):
    """A weight that is the sum of two parameters, and a scale without dimensions."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.base, self.delta = (nn.Parameter(torch.empty(n_outputs, n_inputs, dtype=DTYPE)) for _ in range(2))
        self.scale = nn.Parameter(torch.empty((), dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_inputs) -> (b, n_outputs)."""
        out: Tensor = self.scale * nn.functional.linear(x, self.base + self.delta)
        return out


class ConvNet(nn.Module):
    """One convolution, pooling and a linear layer on 6 x 6 pictures."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, dtype=DTYPE)
        self.head = nn.Linear(3 * 2 * 2, n_outputs, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, 6, 6) -> (b, n_outputs)."""
        out: Tensor = self.head(nn.functional.max_pool2d(torch.tanh(self.conv(x)), 2).flatten(1))
        return out


class EmbeddingNet(nn.Module):
    """The mean of word vectors and a linear layer."""

    def __init__(self, n_words: int, n_outputs: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_words, 4, dtype=DTYPE)
        self.head = nn.Linear(4, n_outputs, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        """(b, length) int64 -> (b, n_outputs)."""
        out: Tensor = self.head(self.words(x).mean(1))
        return out


class BranchingNet(nn.Module):
    """Takes one of two layers by the sum of the inputs, example by example: `vmap` cannot follow."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.plus, self.minus = (nn.Linear(n_inputs, n_outputs, dtype=DTYPE) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_inputs) -> (b, n_outputs)."""
        return torch.stack([self.plus(row) if bool(row.sum() > 0) else self.minus(row) for row in x])


@dataclass
class Record:
    """A batch as a dataclass."""

    x: Tensor
    y: Tensor


def mlp(*widths: int, seed: int = 0, dtype: torch.dtype = DTYPE) -> nn.Sequential:
    """Linear layers of these widths with tanh between them, in eval mode."""
    layers: list[nn.Module] = []
    for n_inputs, n_outputs in itertools.pairwise(widths):
        layers += [nn.Linear(n_inputs, n_outputs, dtype=dtype), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    _fill(model, seed)
    return model.eval()


# --- problems ---------------------------------------------------------------------------------------------------------


def mlp_regression(
    n_train: int = 14, n_query: int = 4, *, dtype: torch.dtype = DTYPE, batch: str = "tuple", seed: int = 0
) -> SmallProblem:
    """A network 3-5-2 with squared error; batches are a "tuple", "dict" or "dataclass"."""
    x, y = _normal(seed, "x", n_train + n_query, 3).to(dtype), _normal(seed, "y", n_train + n_query, 2).to(dtype)
    make: dict[str, Callable[[Tensor, Tensor], Batch]] = {
        "tuple": lambda x, y: (x, y),
        "dict": lambda x, y: {"x": x, "y": y},
        "dataclass": Record,
    }
    model = mlp(3, 5, 2, seed=seed, dtype=dtype)
    task = Task.regression(model) if batch == "tuple" else Task.regression(model, inputs="x", target="y")
    whole = make[batch](x, y)
    return _split(task, whole, n_train, n_query)


def classifier(
    n_train: int = 14,
    n_query: int = 4,
    *,
    measure: str = "loss",
    sure: float = 1.0,
    dtype: torch.dtype = DTYPE,
    seed: int = 0,
) -> SmallProblem:
    """A network 3-5-3 with cross-entropy. Labels are its own most likely classes, except for every fifth example.

    Args:
        n_train: Train examples.
        n_query: Queries.
        measure: What is explained.
        sure: Factor on the last layer: 1 gives ordinary probabilities, 30 losses down to e^-50.
        dtype: Of parameters and data.
        seed: Of parameters and data.
    """
    model = mlp(3, 5, 3, seed=seed, dtype=dtype)
    x = _normal(seed, "x", n_train + n_query, 3).to(dtype)
    with torch.no_grad():
        labels = model(x).argmax(1)
        last = model[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(sure)
        last.bias.mul_(sure)
    labels[::5] = (labels[::5] + 1) % 3
    return _split(Task.classification(model, measure=measure), (x, labels), n_train, n_query)


def sure_classifier() -> SmallProblem:
    """A classifier with saturated logits."""
    return classifier(sure=30.0)


def dropout_regression() -> SmallProblem:
    """Regression with `nn.Dropout`."""
    return _regression(DropoutNet(3, 2))


def batch_norm_regression() -> SmallProblem:
    """Regression with batch norm in eval mode."""
    return _regression(BatchNormNet(3, 2))


def tied_regression() -> SmallProblem:
    """Regression with a tied weight."""
    return _regression(TiedNet(3), n_outputs=3)


def shared_regression() -> SmallProblem:
    """Regression with a layer that is used twice."""
    return _regression(SharedNet(3, 2))


def scaled_regression() -> SmallProblem:
    """Regression with a scalar parameter, and two that are added up."""
    return _regression(ScaledNet(3, 2))


def frozen_regression() -> SmallProblem:
    """Regression with a frozen first layer."""
    problem = mlp_regression()
    problem.task.model[0].requires_grad_(False)  # type: ignore[index]
    return SmallProblem(problem.task.with_model(problem.task.model), problem.train, problem.queries)


def branching_regression() -> SmallProblem:
    """Regression with a data-dependent branch."""
    return _regression(BranchingNet(3, 2))


def conv_classifier() -> SmallProblem:
    """Classes of small pictures."""
    return _classes(ConvNet(3), _normal(0, "x", 18, 1, 6, 6))


def embedding_classifier() -> SmallProblem:
    """Classes of short sequences of words; some words occur nowhere."""
    return _classes(EmbeddingNet(7, 3), torch.randint(5, (18, 4), generator=torch_generator(0, "words")))


def lambda_task() -> Task:
    """A task that cannot be pickled and names its factory, as users write them: the network of `mlp_regression`."""
    task = mlp_regression().task
    return Task(
        task.model,
        outputs=lambda model, batch: model(batch[0]),
        loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1),
        factory="whence.testing.problems:lambda_task",
    )


PROBLEMS: dict[str, Callable[[], SmallProblem]] = {
    "linear": linear_regression,
    "mlp": mlp_regression,
    "dict": lambda: mlp_regression(batch="dict"),
    "dataclass": lambda: mlp_regression(batch="dataclass"),
    "classifier": classifier,
    "sure_classifier": sure_classifier,
    "dropout": dropout_regression,
    "batch_norm": batch_norm_regression,
    "tied": tied_regression,
    "shared": shared_regression,
    "scaled": scaled_regression,
    "frozen": frozen_regression,
    "branching": branching_regression,
    "conv": conv_classifier,
    "embedding": embedding_classifier,
}


def _regression(model: nn.Module, n_outputs: int = 2) -> SmallProblem:
    _fill(model, 0)
    return _split(Task.regression(model.eval()), (_normal(0, "x", 18, 3), _normal(0, "y", 18, n_outputs)), 14, 4)


def _classes(model: nn.Module, x: Tensor) -> SmallProblem:
    _fill(model, 0)
    labels = torch.randint(3, (len(x),), generator=torch_generator(0, "labels"))
    return _split(Task.classification(model.eval()), (x, labels), len(x) - 4, 4)


def _split(task: Task, batch: Batch, n_train: int, n_query: int) -> SmallProblem:
    whole = Examples(batch)
    train = whole.subset(range(n_train))
    queries = whole.subset(range(n_train, n_train + n_query))
    return SmallProblem(task, train, queries)


def _normal(seed: int, name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, name), dtype=DTYPE)


def _fill(model: nn.Module, seed: int) -> None:
    """Parameters of a size that makes gradients neither vanish nor explode, from a seed of their own."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.6 * _normal(seed, name, *p.shape))
