"""Parameter groups: the parts of a model that attribution can weigh one against another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.checks import look_up
from whence.errors import InputError
from whence.task.parameters import ParameterLayout

GroupOf = Callable[[str], str]  # parameter name -> group name


def by_tensor(name: str) -> str:
    """Every parameter tensor is a group of its own."""
    return name


def by_module(name: str) -> str:
    """Weight and bias of one module together: `conv1.weight` -> `conv1`."""
    return name.rpartition(".")[0] or name


def by_block(name: str) -> str:
    """Up to and including the first number: `layers.3.attn.q.weight` -> `layers.3`; else the first word."""
    words = name.split(".")
    for k, word in enumerate(words):
        if word.isdigit():
            return ".".join(words[: k + 1])
    return words[0]


GROUPINGS: dict[str, GroupOf] = {"tensor": by_tensor, "module": by_module, "block": by_block}


@dataclass(frozen=True)
class ParameterGroups:
    """A partition of the tracked parameters into named groups, in the model's own order.

    Attributes:
        names: Group names, in order of first appearance.
        of_tensor: For each tensor of the layout, the position of its group.
        sizes: Number of parameters in each group.
        tensors: Names of the tensors.
    """

    names: tuple[str, ...]
    of_tensor: tuple[int, ...]
    sizes: tuple[int, ...]
    tensors: tuple[str, ...]

    @classmethod
    def of(cls, layout: ParameterLayout, grouping: str | GroupOf = "tensor") -> ParameterGroups:
        """Group the tensors of `layout` by a name in `GROUPINGS` or by a callable parameter name -> group name."""
        group_of = look_up(GROUPINGS, grouping, "grouping") if isinstance(grouping, str) else grouping
        labels = [str(group_of(name)) for name in layout.names]
        names = tuple(dict.fromkeys(labels))
        place = {name: k for k, name in enumerate(names)}
        of_tensor = tuple(place[label] for label in labels)
        sizes = [0] * len(names)
        for group, size in zip(of_tensor, layout.sizes, strict=True):
            sizes[group] += size
        return cls(names, of_tensor, tuple(sizes), layout.names)

    def __len__(self) -> int:
        return len(self.names)

    def of_parameter(self, layout: ParameterLayout) -> Tensor:
        """For each entry of the flat parameter vector, the position of its group; (n_params,) int64.

        Raises:
            InputError: The groups were made for other parameters.
        """
        if layout.names != self.tensors:
            odd = sorted(set(layout.names) ^ set(self.tensors)) or ["their order"]
            raise InputError(
                f"These {len(self)} groups are of a model with {len(self.tensors)} parameter tensors, this one has "
                f"{len(layout.names)}; they differ in {', '.join(odd[:3])}. Group the parameters of this model."
            )
        return torch.repeat_interleave(torch.tensor(self.of_tensor), torch.tensor(layout.sizes))
