"""Left-out sets: which train examples each run of further training or retraining lacks."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.checks import require_count
from whence.errors import DataError, InputError, ShapeError
from whence.rng import torch_generator


@dataclass(frozen=True, eq=False)
class LeftOutSets:
    """Sets of train positions, ragged: set k is `indices[offsets[k]:offsets[k + 1]]`.

    Args:
        offsets: int64 (n_sets + 1,), from 0 to the number of indices, never falling.
        indices: int64 (n_indices,), positions of train examples (not ids).
    """

    offsets: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        for name in ("offsets", "indices"):
            x = getattr(self, name)
            if x.dtype != torch.int64 or x.ndim != 1:
                raise ShapeError(f"`{name}` must be int64 (k,); got {x.dtype} {tuple(x.shape)}.")
        n = len(self.indices)
        if len(self.offsets) < 2 or int(self.offsets[0]) != 0 or int(self.offsets[-1]) != n:
            raise DataError(f"`offsets` must run from 0 to {n}, one set at least; got {self.offsets.tolist()[:5]}.")
        if bool((self.sizes < 0).any()):
            raise DataError("`offsets` must never fall: a set ends where the next begins.")

    @classmethod
    def singles(cls, indices: Tensor | Sequence[int]) -> LeftOutSets:
        """One set per index, each leaving out that example alone."""
        flat = _positions(indices)
        return cls(torch.arange(len(flat) + 1), flat)

    @classmethod
    def groups(cls, groups: Sequence[Sequence[int]]) -> LeftOutSets:
        """One set per group; groups may overlap and differ in size."""
        sizes = torch.tensor([0, *(len(group) for group in groups)])
        return cls(sizes.cumsum(0), _positions([index for group in groups for index in group]))

    @classmethod
    def evenly_spaced(cls, n_train: int, count: int) -> LeftOutSets:
        """`count` single examples at a fixed step through the train set, chosen as the published experiments did.

        The step is n_train / count rounded; where the last index falls outside, it becomes n_train - 1. Where more
        than the last would fall outside, the k-th index is floor(k * n_train / count) instead.

        Reference:
            Wei et al. (2025), arXiv:2412.03906, code of the authors: UCI Energy (691 examples) 0, 7, ..., 686, 690
            and UCI Concrete (927) 0, 9, ..., 891.
        """
        _require_enough(n_train, count)
        step = max(1, round(n_train / count))
        if (count - 2) * step < n_train - 1:
            return cls.singles([min(k * step, n_train - 1) for k in range(count)])
        return cls.singles([k * n_train // count for k in range(count)])

    @classmethod
    def random(cls, n_train: int, count: int, seed: int, size: int = 1) -> LeftOutSets:
        """`count` random sets of `size` examples each.

        Single examples are all different. Larger sets are drawn one by one: no example twice in a set, though sets
        may overlap or, rarely, repeat. The order of sets is random, so that a prefix is a random choice as well.
        """
        require_count(size, "size")
        generator = torch_generator(seed, "left_out", size)
        if size == 1:
            _require_enough(n_train, count)
            return cls.singles(torch.randperm(n_train, generator=generator)[:count])
        require_count(count, "count")
        if size >= n_train:
            raise InputError(f"Leaving out {size} of {n_train} examples leaves none to train on. Use a smaller `size`.")
        draws = [torch.randperm(n_train, generator=generator)[:size].sort().values for _ in range(count)]
        return cls(torch.arange(count + 1) * size, torch.cat(draws))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        offsets, indices = self.offsets.tolist(), self.indices.tolist()
        return (tuple(indices[start:stop]) for start, stop in itertools.pairwise(offsets))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LeftOutSets) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        low, high = int(self.sizes.min()), int(self.sizes.max())
        return f"LeftOutSets({len(self)} sets of {low if low == high else f'{low} to {high}'})"

    @property
    def sizes(self) -> Tensor:
        """How many examples each set leaves out, (n_sets,)."""
        return self.offsets.diff()

    @property
    def is_single(self) -> bool:
        """Whether every set leaves out exactly one example."""
        return bool((self.sizes == 1).all())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of offsets and indices: the order of sets, and of indices in a set, counts."""
        text = f"{self.offsets.tolist()}{self.indices.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def validate(self, n_train: int) -> LeftOutSets:
        """Return self if these sets can be left out of `n_train` examples.

        Raises:
            DataError: A set is empty, or lists an example twice.
            InputError: An index is not in 0..n_train-1, or a set leaves nothing to train on.
        """
        require_count(n_train, "n_train")
        self._require_filled()
        wrong = (self.indices < 0) | (self.indices >= n_train)
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise InputError(
                f"Left-out set {int(self._owners()[at])} names example {int(self.indices[at])}; positions lie in "
                f"0..{n_train - 1}. They are positions in the train set: for ids use `examples.index_of`."
            )
        self._require_distinct(n_train)
        if bool((self.sizes >= n_train).any()):
            k = int((self.sizes >= n_train).nonzero()[0])
            raise InputError(f"Left-out set {k} leaves out all {n_train} examples: none is left to train on.")
        return self

    def mask(self, n_train: int) -> Tensor:
        """bool (n_sets, n_train), True where an example is left out."""
        mask = torch.zeros(len(self), n_train, dtype=torch.bool)
        mask[self._owners(), self.indices] = True
        return mask

    def subset(self, positions: Tensor | Sequence[int]) -> LeftOutSets:
        """The sets at `positions`, in that order."""
        sets = list(self)
        chosen = _positions(positions).tolist()
        if any(k < 0 or k >= len(sets) for k in chosen):
            raise InputError(f"There are {len(sets)} left-out sets, 0..{len(sets) - 1}; got positions {chosen[:5]}.")
        return LeftOutSets.groups([sets[k] for k in chosen])

    def _owners(self) -> Tensor:
        """The set each index belongs to, (n_indices,)."""
        return torch.repeat_interleave(torch.arange(len(self)), self.sizes)

    def _require_filled(self) -> None:
        empty = (self.sizes == 0).nonzero().flatten().tolist()
        if empty:
            raise DataError(f"Left-out set {empty[0]} is empty. The run on all examples is separate: drop the set.")

    def _require_distinct(self, n_train: int) -> None:
        keys = (self._owners() * n_train + self.indices).sort().values
        again = keys[1:][keys.diff() == 0]
        if len(again):
            key = int(again[0])
            raise DataError(f"Left-out set {key // n_train} lists example {key % n_train} more than once.")


def _positions(indices: Tensor | Sequence[int]) -> Tensor:
    x = torch.as_tensor(indices).cpu()
    if x.numel() == 0:
        x = x.long()
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool or x.ndim != 1:
        raise InputError(f"Positions must be a list of integers; got {x.dtype} of shape {tuple(x.shape)}.")
    return x.long()


def _require_enough(n_train: int, count: int) -> None:
    require_count(n_train, "n_train")
    require_count(count, "count")
    if count > n_train:
        raise InputError(f"Cannot leave out {count} different single examples of {n_train}. Use a smaller `count`.")
