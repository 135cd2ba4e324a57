"""Nested batches of tensors: a tensor, or tuples, lists, dicts and dataclasses of batches.

Every leaf is a tensor whose first dimension runs over examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from whence.errors import DataError, ShapeError

Batch = Any  # a tensor, or a tuple, list, dict or dataclass of batches
Rebuild = Callable[[Sequence[Tensor]], Batch]


def flatten(batch: Batch) -> tuple[list[Tensor], Rebuild]:
    """The tensors of a batch in a fixed order, and the function that puts others in their places.

    A mapping that is not a dict is rebuilt as a dict. A dataclass is rebuilt without running its `__init__`.

    Raises:
        DataError: A leaf is not a tensor; the message names its place.
    """
    named: list[tuple[str, Tensor]] = []
    plan = _plan(batch, named, "batch")

    def rebuild(tensors: Sequence[Tensor]) -> Batch:
        if len(tensors) != len(named):
            raise ShapeError(f"The batch has {len(named)} tensors; got {len(tensors)} to put in their places.")
        return plan(iter(tensors))

    return [leaf for _, leaf in named], rebuild


def named_leaves(batch: Batch) -> list[tuple[str, Tensor]]:
    """Each tensor with its place, such as `batch['x'][0]`, in the order of `flatten`."""
    named: list[tuple[str, Tensor]] = []
    _plan(batch, named, "batch")
    return named


def _plan(node: Batch, named: list[tuple[str, Tensor]], place: str) -> Callable[[Iterator[Tensor]], Batch]:
    if isinstance(node, Tensor):
        named.append((place, node))
        return next
    if isinstance(node, Mapping):
        entries = {key: _plan(value, named, f"{place}[{key!r}]") for key, value in node.items()}
        return lambda tensors: {key: plan(tensors) for key, plan in entries.items()}
    if isinstance(node, (tuple, list)):
        plans = [_plan(value, named, f"{place}[{k}]") for k, value in enumerate(node)]
        build: Callable[[list[Batch]], Batch] = getattr(type(node), "_make", type(node))
        return lambda tensors: build([plan(tensors) for plan in plans])
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = [field.name for field in dataclasses.fields(node)]
        fields = {name: _plan(getattr(node, name), named, f"{place}.{name}") for name in names}
        cls = type(node)
        return lambda tensors: _record(cls, {name: plan(tensors) for name, plan in fields.items()})
    raise DataError(
        f"{place} is a {type(node).__name__}; a batch may hold only tensors (in tuples, lists, dicts or "
        "dataclasses). Turn it into a tensor, or drop it, in `collate`."
    )


def _record(cls: type, values: dict[str, Batch]) -> Batch:
    # Not `cls(**values)`: a `__post_init__` that scales its tensors would scale them once more.
    record: Batch = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(record, name, value)
    return record


def map_tensors(fn: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """The same batch with `fn` applied to every tensor."""
    leaves, rebuild = flatten(batch)
    return rebuild([fn(leaf) for leaf in leaves])


def take(batch: Batch, indices: Tensor) -> Batch:
    """Rows `indices` of every tensor; `indices` (b,) gives (b, ...), (r, b) gives (r, b, ...)."""
    return map_tensors(lambda x: x[indices.to(x.device)], batch)


def batch_size(batch: Batch) -> int:
    """The number of examples in a batch.

    Raises:
        ShapeError: The tensors disagree, one has no dimension, or there is none.
    """
    leaves, _ = flatten(batch)
    if not leaves:
        raise ShapeError("The batch holds no tensor.")
    sizes = {int(x.shape[0]) if x.ndim else -1 for x in leaves}
    if -1 in sizes or len(sizes) != 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in leaves)
        raise ShapeError(f"Every tensor of a batch needs the examples as its first dimension; got shapes {shapes}.")
    return sizes.pop()


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The same batch on `device`."""
    return map_tensors(lambda x: x.to(device), batch)


def cast_batch(batch: Batch, dtype: torch.dtype, device: torch.device | str) -> Batch:
    """The same batch on `device`, floating tensors as `dtype`."""
    return map_tensors(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype), batch)


def single(batch: Batch) -> Batch:
    """A batch of one from the tensors of one example (adds the leading dimension)."""
    return map_tensors(lambda x: x.unsqueeze(0), batch)
