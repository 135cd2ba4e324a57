"""What a layer rule is: from the input and the output gradient of one call to per-example parameter gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Captured = Any  # what a rule keeps of a call's input: a tensor, for most rules the input itself


class LayerRule(ABC):
    """How one kind of layer makes per-example gradients from what one call of it saw.

    In every method the first dimension of `x` and `g` is the `n` examples, or `n * k` rows of which the first k belong
    to the first example.
    """

    def applies(self, module: nn.Module) -> bool:
        """Whether the rule knows the settings of this module."""
        return True

    def capture(self, module: nn.Module, x: Tensor) -> Captured:
        """What `gradients` needs of the input, taken during the call, while the call's parameters are in place."""
        return x.detach()

    def of_examples(self, x: Captured, first: int, stop: int, n: int) -> Captured:
        """What `capture` kept, of the examples from `first` to `stop` of `n` only."""
        each = x.shape[0] // n
        return x[first * each : stop * each]

    @abstractmethod
    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Write per-example gradients of some of the module's own parameters.

        Args:
            module: The layer; only its settings are read.
            x: What `capture` kept of the input.
            g: Gradient at the output of the call, of the output's shape.
            n: Number of examples.
            out: Own parameter, such as "weight" -> (n, *shape of the parameter), to be overwritten; perhaps a view
                with a step.
        """

    def gradients(
        self, module: nn.Module, x: Captured, g: Tensor, n: int, shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, Tensor]:
        """What `fill` writes, in new tensors: own parameter -> (n, *shape), for the parameters and shapes asked for."""
        out = {name: g.new_empty(n, *shape) for name, shape in shapes.items()}
        self.fill(module, x, g, n, out)
        return out


class KroneckerRule(LayerRule):
    """A layer whose weight gradient is a sum of outer products of an input and an output gradient.

    Attributes:
        channels_first: Whether the o outputs of a position lie in the second dimension, not in the last.
    """

    channels_first = False

    def is_kronecker(self, module: nn.Module) -> bool:
        """Whether this module, with its settings, has factors."""
        return True

    @abstractmethod
    def factors(self, module: nn.Module, x: Captured, g: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Inputs a (n, s, i) and output gradients g (n, s, o) at the s positions of each example.

        The gradient of the weight, as a matrix (o, i), is `sum_s g_s a_s^T`, that of the bias `sum_s g_s`; a has no
        column of ones for the bias.
        """

    def as_matrix(self, weight: Tensor) -> Tensor:
        """Weights (m, *shape of the parameter) as the matrices (m, o, i) that the factors make."""
        return weight.flatten(2)

    def from_matrix(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of `as_matrix`: (m, o, i) to (m, *shape)."""
        return matrix.reshape(len(matrix), *shape)


def per_example(x: Tensor, n: int) -> Tensor:
    """(n * k, ...) as (n, k, ...)."""
    return x.reshape(n, x.shape[0] // n, *x.shape[1:])


def positions(x: Tensor, n: int) -> Tensor:
    """(n * k, ..., i) as (n, s, i)."""
    return x.reshape(n, -1, x.shape[-1])


def sum_of_outer(left: Tensor, right: Tensor, out: Tensor) -> None:
    """`sum_s left_s right_s^T`: (n, s, o) and (n, s, i) to (n, o, i)."""
    if left.shape[1] == 1:
        torch.mul(left.transpose(1, 2), right, out=out)
    else:
        torch.bmm(left.transpose(1, 2), right, out=out)
