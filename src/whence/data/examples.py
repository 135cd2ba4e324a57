"""Examples: a data set in memory whose rows keep their ids, whatever walks over them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from whence import batches
from whence.batches import Batch
from whence.checks import require_count, require_finite
from whence.errors import DataError, InputError, ShapeError, UnknownNameError

Id = str | int
Collate = Callable[[list[Any]], Batch]
Indices = Tensor | Sequence[int]


@final
class Examples:
    """A data set as one batch of tensors, with an id for every row.

    Items are read twice and each reading is collated in one call, so that a padding collate pads all rows alike and
    a data set that draws at random (augmentation, a masking collate) is found out. Tensors are not copied when a
    batch is passed: do not change them in place afterwards, or `fingerprint` no longer describes them.

    Args:
        dataset: One of
            a batch: a tensor, or a tuple, dict or dataclass of tensors with the examples as first dimension;
            a map-style data set (`__len__`, `__getitem__`) or a **list** of items (a list is never a batch);
            a `DataLoader` that walks its data set in order (its `collate_fn` is used);
            another `Examples` (its tensors, ids, names and texts are taken over where none are given).
        ids: One str or int for each example, all of one type; positions where it is None. Never derived from the
            content, since real data has duplicate rows.
        collate: Turns the list of items into a batch; `default_collate` where it is None.
        name: What the data set is called in reports.
        feature_names: Names of the input columns, for showing.
        class_names: Names of the classes, for showing.
        texts: One str for each example, for showing: what its tensors are the tokens of, or a caption. Any length.
    Raises:
        DataError: Empty, not repeatable, a shuffling loader, duplicate or missing ids, texts that are not one str for
            each example, or a leaf that is no tensor.
        NonFiniteError: NaN or infinity; the ids of the rows are named.
        ShapeError: The tensors disagree on the number of examples, or `collate` changed it.
    Cost:
        Everything is held in memory; while items are read, twice.
    """

    ids: tuple[Id, ...]
    name: str | None
    feature_names: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    texts: tuple[str, ...] | None

    def __init__(
        self,
        dataset: Any,
        *,
        ids: Sequence[Id] | Tensor | None = None,
        collate: Collate | None = None,
        name: str | None = None,
        feature_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        if isinstance(dataset, Examples):
            ids = dataset.ids if ids is None else ids
            name = dataset.name if name is None else name
            feature_names = dataset.feature_names if feature_names is None else feature_names
            class_names = dataset.class_names if class_names is None else class_names
            texts = dataset.texts if texts is None else texts
        if isinstance(dataset, Examples) or _is_batch(dataset):
            batch = dataset.all() if isinstance(dataset, Examples) else dataset
            if collate is not None:
                raise InputError(
                    "`collate` turns items into a batch, and a batch of tensors was passed. "
                    "Drop `collate`, or pass a list of items."
                )
            size = batches.batch_size(batch)
            self._set(batch, _read_ids(ids, size), name, feature_names, class_names, _read_texts(texts, size))
            return
        items, collate = _items(dataset, collate)
        checked_ids, checked_texts = _read_ids(ids, _length(items)), _read_texts(texts, _length(items))
        first = _read(items)
        batch = _collate(collate, first)
        self._set(batch, checked_ids, name, feature_names, class_names, checked_texts)
        _require_repeatable(collate, first, _read(items), batch, checked_ids)

    def _set(
        self,
        batch: Batch,
        ids: tuple[Id, ...],
        name: str | None,
        feature_names: Sequence[str] | None,
        class_names: Sequence[str] | None,
        texts: tuple[str, ...] | None,
    ) -> None:
        """Fill in a checked batch; the one place where attributes are set."""
        size = batches.batch_size(batch)
        if size != len(ids):
            raise ShapeError(f"The batch has {size} examples and there are {len(ids)} ids. One id per example.")
        if size == 0:
            raise DataError("The data set is empty: there is nothing to attribute to. Pass at least one example.")
        for place, leaf in batches.named_leaves(batch):
            require_finite(leaf, place, rows="example", ids=ids)
        self._batch = batches.map_tensors(Tensor.detach, batch)
        self._positions: dict[Id, int] = {}
        self._fingerprint: str | None = None
        self.ids = ids
        self.name = name
        self.feature_names = None if feature_names is None else tuple(feature_names)
        self.class_names = None if class_names is None else tuple(class_names)
        self.texts = texts

    def _with(self, batch: Batch, ids: tuple[Id, ...], texts: tuple[str, ...] | None) -> Examples:
        new = object.__new__(Examples)
        new._set(batch, ids, self.name, self.feature_names, self.class_names, texts)
        return new

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        leaves = ", ".join(
            f"{place.removeprefix('batch')}: {str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape[1:])}"
            for place, leaf in batches.named_leaves(self._batch)
        )
        name = "" if self.name is None else f"{self.name!r}, "
        return f"Examples({name}{len(self)} examples of {leaves.removeprefix(': ')}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """The device of the first tensor."""
        return batches.flatten(self._batch)[0][0].device

    @property
    def fingerprint(self) -> str:
        """SHA-256 of places, dtypes, shapes, bytes and ids, not of what is for showing: the same on every device."""
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(self._batch, self.ids)
        return self._fingerprint

    def index_of(self, id: Id) -> int:
        """The position of the example called `id`.

        Raises:
            UnknownNameError: No example has that id.
        """
        if not self._positions:
            self._positions = {known: k for k, known in enumerate(self.ids)}
        if isinstance(id, bool) or id not in self._positions:
            kind = type(self.ids[0]).__name__
            raise UnknownNameError(
                f"No example has the id {id!r}. The {len(self)} ids are {kind}, from {self.ids[0]!r} to "
                f"{self.ids[-1]!r}."
            )
        return self._positions[id]

    def batch(self, indices: Indices) -> Batch:
        """The rows at positions `indices`: (b,) gives (b, ...), (r, b) gives (r, b, ...)."""
        return batches.take(self._batch, self._checked(indices))

    def all(self) -> Batch:
        """Every row, in order. The tensors themselves: do not change them in place."""
        return self._batch

    def batches(self, size: int) -> Iterator[tuple[Tensor, Batch]]:
        """Walk once over all rows in order, as (positions (b,), batch); the last batch may be smaller."""
        require_count(size, "size")
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield torch.arange(start, stop), _rows(self._batch, start, stop)

    def subset(self, indices: Indices) -> Examples:
        """The examples at positions `indices`, in that order, with their ids and texts.

        Raises:
            DataError: `indices` is empty, or takes an example twice.
        """
        rows = self._checked(indices)
        if rows.ndim != 1:
            raise ShapeError(f"`indices` of a subset must be (k,); got {tuple(rows.shape)}.")
        ids = tuple(self.ids[k] for k in rows.tolist())
        _require_distinct(ids)
        texts = None if self.texts is None else tuple(self.texts[k] for k in rows.tolist())
        return self._with(batches.take(self._batch, rows), ids, texts)

    def replace(self, batch: Batch) -> Examples:
        """The same ids, names and texts with other tensors, such as other labels."""
        return self._with(batch, self.ids, self.texts)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Examples:
        """The same examples on `device`; floating-point tensors become `dtype` (which changes `fingerprint`)."""

        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        moved = self._with(batches.map_tensors(move, self._batch), self.ids, self.texts)
        if dtype is None:
            moved._fingerprint = self._fingerprint
        return moved

    def display(self, index: int) -> dict[str, Tensor]:
        """The tensors of one example by their place, on the CPU: `{"0": x, "1": y}` for a batch `(x, y)`."""
        row = batches.take(self._batch, self._checked([index]))
        return {_short(place): leaf[0].cpu() for place, leaf in batches.named_leaves(row)}

    def _checked(self, indices: Indices) -> Tensor:
        rows = torch.as_tensor(indices)
        if rows.numel() == 0:
            return rows.long()
        if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
            raise InputError(
                f"`indices` must be integer positions; got {rows.dtype}. For a mask use `mask.nonzero().flatten()`."
            )
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            wrong = low if low < 0 else high
            raise InputError(
                f"`indices` must lie in 0..{len(self) - 1}; got {wrong}. They are positions; for ids use `index_of`."
            )
        return rows.long()


def _is_batch(dataset: Any) -> bool:
    if isinstance(dataset, (Dataset, list)):
        return False
    if isinstance(dataset, (Tensor, tuple, Mapping)):
        return True
    is_record = dataclasses.is_dataclass(dataset) and not isinstance(dataset, type)
    return is_record and not hasattr(dataset, "__getitem__")


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    return batches.map_tensors(lambda x: x[start:stop], batch)


def _items(dataset: Any, collate: Collate | None) -> tuple[Any, Collate]:
    """What to read items from, and how to collate them."""
    if isinstance(dataset, DataLoader):
        _require_in_order(dataset)
        return dataset.dataset, collate or dataset.collate_fn
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"`dataset` must have a length and items at positions; got {type(dataset).__name__}. "
            "Pass a list of items, a map-style data set, or a batch of tensors."
        )
    return dataset, collate or default_collate


def _require_in_order(loader: DataLoader[Any]) -> None:
    reason = _disorder(loader)
    if reason is not None:
        raise DataError(
            f"The DataLoader {reason}, so its rows cannot be tied to ids. Pass `loader.dataset` with "
            "`collate=loader.collate_fn`, and `ids=` if positions will not do."
        )


def _disorder(loader: DataLoader[Any]) -> str | None:
    """Why `loader` does not show each item of its data set once and in order; None if it does."""
    if isinstance(loader.dataset, IterableDataset):
        return "walks a data set without positions (IterableDataset)"
    if loader.batch_sampler is None:
        return "does not batch (batch_size=None)"
    if type(loader.batch_sampler) is not BatchSampler:
        return f"uses a batch sampler of its own ({type(loader.batch_sampler).__name__})"
    # Not `loader.sampler`: beside a given batch sampler that is an unused SequentialSampler.
    sampler = loader.batch_sampler.sampler
    if type(sampler) is not SequentialSampler:
        return f"does not walk its data set in order ({type(sampler).__name__})"
    if loader.batch_sampler.drop_last:
        return "leaves out a last batch that is not full (drop_last=True)"
    if getattr(sampler, "data_source", None) is not loader.dataset:
        return "has a sampler made for another data set"
    return None


def _length(items: Any) -> int:
    try:
        n = len(items)
    except TypeError as error:
        raise DataError(f"The data set has no length ({error}). Pass a list of its items.") from error
    if n == 0:
        raise DataError("The data set is empty: there is nothing to attribute to. Pass at least one example.")
    return n


def _read(items: Any) -> list[Any]:
    """Every item once, in order; an exception of the data set says which item raised it."""
    read = []
    for k in range(_length(items)):
        try:
            read.append(items[k])
        except Exception as error:
            error.add_note(f"Raised by the data set ({type(items).__name__}) while item {k} was read.")
            raise
    return read


def _collate(collate: Collate, items: list[Any]) -> Batch:
    batch = collate(items)
    if type(batch) is list:  # `default_collate` makes lists of tuples; one shape of batch is enough
        batch = tuple(batch)
    size = batches.batch_size(batch)
    if size != len(items):
        raise ShapeError(f"`collate` made {size} rows of {len(items)} items. It must give one row per item, in order.")
    return batch


def _require_repeatable(
    collate: Collate, first: list[Any], again: list[Any], batch: Batch, ids: tuple[Id, ...]
) -> None:
    """Refuse a data set or a collate that answers differently the second time."""
    if len(first) == len(again) and _same(batch, _collate(collate, again)):
        return
    pairs = zip(ids, first, again, strict=False)
    # Rows may be padded to other lengths in the two readings: compare item by item.
    differs = next((id for id, a, b in pairs if not _same(_collate(collate, [a]), _collate(collate, [b]))), None)
    where = "" if differs is None else f"; the first to differ is example {differs!r}"
    raise DataError(
        f"The data set answers differently when read twice{where}. Scores would belong to no fixed example: "
        "turn off random augmentation (and random masking in `collate`), or pass the tensors of one draw."
    )


def _same(a: Batch, b: Batch) -> bool:
    left, right = batches.named_leaves(a), batches.named_leaves(b)
    return [place for place, _ in left] == [place for place, _ in right] and all(
        x.dtype == y.dtype and torch.equal(x, y) for (_, x), (_, y) in zip(left, right, strict=True)
    )


def _read_ids(ids: Sequence[Id] | Tensor | None, n: int) -> tuple[Id, ...]:
    if ids is None:
        return tuple(range(n))
    listed = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if len(listed) != n:
        raise DataError(f"`ids` must name each of the {n} examples once; got {len(listed)} ids.")
    checked = tuple(_read_id(id) for id in listed)
    if len({type(id) for id in checked}) > 1:
        raise DataError("`ids` must be all str or all int; got both. Turn them all into str.")
    _require_distinct(checked)
    return checked


def _read_id(id: Any) -> Id:
    if isinstance(id, str):
        return id
    if isinstance(id, bool) or not hasattr(id, "__index__"):
        raise DataError(f"An id must be a str or an int; got {id!r} ({type(id).__name__}).")
    return operator.index(id)


def _read_texts(texts: Sequence[str] | None, n: int) -> tuple[str, ...] | None:
    if texts is None:
        return None
    if isinstance(texts, str):
        raise DataError("`texts` must hold one str for each example; got a single str. Put it in a list.")
    listed = tuple(texts)
    wrong = next((k for k, text in enumerate(listed) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(
            f"`texts` must hold one str for each example; text {wrong} is {type(listed[wrong]).__name__}. Decode "
            "tokens, and pass an empty str where an example has no text."
        )
    if len(listed) != n:
        raise DataError(f"`texts` must hold one str for each of the {n} examples, in order; got {len(listed)}.")
    return listed


def _require_distinct(ids: tuple[Id, ...]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[Id] = set()
    twice = list(dict.fromkeys(id for id in ids if id in seen or seen.add(id)))  # type: ignore[func-returns-value]
    more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
    raise DataError(
        f"Ids must be distinct; used more than once: {', '.join(map(repr, twice[:5]))}{more}. "
        "Rename them, or leave `ids` out to use positions."
    )


def _fingerprint(batch: Batch, ids: tuple[Id, ...]) -> str:
    digest = hashlib.sha256(json.dumps(ids).encode())
    for place, leaf in sorted(batches.named_leaves(batch), key=lambda named: named[0]):
        digest.update(json.dumps([place, str(leaf.dtype), list(leaf.shape)]).encode())
        # Viewed as bytes, since numpy has no bfloat16.
        digest.update(leaf.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short(place: str) -> str:
    """`batch['x'][0]` -> `x.0`; the only tensor of a batch is `0`."""
    parts = place.removeprefix("batch").replace("]", "").replace("[", ".").replace("'", "")
    return parts.removeprefix(".") or "0"
