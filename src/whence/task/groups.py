"""Parameter groups: the parts of a model that attribution can weigh one against another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from whence.checks import look_up
from whence.errors import InputError
from whence.task.groupings import GROUPINGS, Along, Grouping, NameOf
from whence.task.parameters import ParameterLayout

Place = int | tuple[int, tuple[int, ...]]  # a group, or an axis and the group of every entry along it


@dataclass(frozen=True)
class ParameterGroups:
    """A partition of the tracked parameters into named groups, in the model's own order.

    Attributes:
        names: Group names, in order of first appearance.
        of_tensor: For each tensor of the layout, the position of its group; or (axis, positions), where its entries
            along an axis belong to several.
        sizes: Number of parameters in each group.
        tensors: Names of the tensors.
    """

    names: tuple[str, ...]
    of_tensor: tuple[Place, ...]
    sizes: tuple[int, ...]
    tensors: tuple[str, ...]

    @classmethod
    def of(
        cls, layout: ParameterLayout, grouping: str | NameOf | Grouping | ParameterGroups = "tensor"
    ) -> ParameterGroups:
        """Group the parameters of `layout`.

        Args:
            layout: The tracked parameters.
            grouping: A name in `GROUPINGS`, a callable parameter name -> group name, or a `Grouping`, such as `Heads`;
                groups that are there already are given back.
        Raises:
            InputError: A tensor is split along an axis that it does not have, or not into as many labels.
        """
        if isinstance(grouping, ParameterGroups):
            return grouping
        named = look_up(GROUPINGS, grouping, "grouping") if isinstance(grouping, str) else grouping
        place: dict[str, int] = {}
        sizes: list[int] = []
        of_tensor: list[Place] = []
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            found = named.parts(name, shape) if isinstance(named, Grouping) else named(name)
            labels = (str(found),) if not isinstance(found, Along) else _checked(found, name, shape)
            for label in labels:
                if label not in place:
                    place[label] = len(sizes)
                    sizes.append(0)
                sizes[place[label]] += prod(shape) // len(labels)
            positions = tuple(place[label] for label in labels)
            of_tensor.append((found.axis, positions) if isinstance(found, Along) else positions[0])
        return cls(tuple(place), tuple(of_tensor), tuple(sizes), layout.names)

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
        pieces = [_of_entries(place, shape) for place, shape in zip(self.of_tensor, layout.shapes, strict=True)]
        return torch.cat([piece.flatten() for piece in pieces])

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        places = [place if isinstance(place, int) else [place[0], list(place[1])] for place in self.of_tensor]
        return {
            "names": list(self.names),
            "of_tensor": places,
            "sizes": list(self.sizes),
            "tensors": list(self.tensors),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> ParameterGroups:
        """The inverse of `to_dict`."""
        places = tuple(
            place if isinstance(place, int) else (int(place[0]), tuple(place[1])) for place in found["of_tensor"]
        )
        return cls(tuple(found["names"]), places, tuple(found["sizes"]), tuple(found["tensors"]))


def _checked(found: Along, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """One label for each entry along the axis."""
    if not 0 <= found.axis < len(shape):
        raise InputError(f"{name!r} has {len(shape)} axes, and a grouping splits it along axis {found.axis}.")
    if len(found.labels) != shape[found.axis]:
        raise InputError(
            f"{name!r} has {shape[found.axis]} entries along axis {found.axis}, and a grouping gives "
            f"{len(found.labels)} labels. Give one label for each."
        )
    return found.labels


def _of_entries(place: Place, shape: tuple[int, ...]) -> Tensor:
    """The group of each entry of a tensor."""
    if isinstance(place, int):
        return torch.full(shape, place)
    axis, positions = place
    if len(shape) <= axis or shape[axis] != len(positions):
        raise InputError(
            f"The groups split a tensor into {len(positions)} entries along axis {axis}, and this model's is "
            f"{tuple(shape)}. Group the parameters of this model."
        )
    along = [1] * len(shape)
    along[axis] = len(positions)
    return torch.tensor(positions).reshape(along).expand(shape)
