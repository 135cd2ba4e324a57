"""Scores and outcomes: where the two wings meet.

A method yields blocks of scores (`BlockSource`); `ScoreMatrix` keeps them all, `TopK` only the strongest. `Outcomes`
is the other side: what really happened when examples were left out.

Sign: `score[q, i] > 0` means example i *supports* query q: leaving it out makes the query worse (loss up, margin
down). Unit: o_q times the predicted change of the measure when the weight of i falls by one with the normaliser 1/n
kept fixed; `unit=None` for methods that only rank. Results live on the CPU, in float32 or float64.
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whence.checks import look_up, require_count, require_positive
from whence.errors import (
    DamagedShardError,
    DataError,
    InputError,
    NonFiniteError,
    ShapeError,
    StoreError,
    StoreMismatchError,
    StoreWriteError,
)

Id = int | str
Ids = Sequence[Id]  # kept as a tuple, whatever was passed
Sign = Literal["supports", "opposes", "magnitude"]
PointUnit = Literal["epochs", "steps"]
Adjustment = Literal["mean", "full"]

_STRENGTH: dict[str, Callable[[Tensor], Tensor]] = {
    "supports": lambda scores: scores,
    "opposes": torch.neg,
    "magnitude": torch.abs,
}
_WORKING_ELEMENTS = 2**24  # how many scores one step of a search or of a parquet row group handles


# --- blocks -----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class ScoreBlock:
    """Scores of all queries with the train examples at positions `train_slice`."""

    train_slice: slice
    values: Tensor  # (n_query, b)


@final
@dataclass(frozen=True, eq=False, repr=False)
class BlockSource:
    """What a method yields: a header, and blocks that cover all train examples once, in order.

    Args:
        blocks: Starts a pass over the blocks; called once per iteration, so that a source can be read twice.
        query_ids: Names of the rows, all int or all str, without repeats.
        train_ids: Names of the columns, likewise.
        unit: Unit of the scores, None where they only rank.
        orientation: o_q, +1 where a lower measure is better and -1 otherwise; a number stands for all queries.
        method: Name of the method.
        provenance: What it was computed from; must be JSON.
    Raises:
        DataError: An id repeats or is neither int nor str.
        InputError: The orientation is not +1 or -1, or the provenance is not JSON.
    """

    blocks: Callable[[], Iterable[ScoreBlock]]
    query_ids: Ids
    train_ids: Ids
    unit: str | None = None
    orientation: Tensor | float = 1.0
    method: str = "unnamed"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _set_header(self)

    def __repr__(self) -> str:
        return _describe(self)

    def __iter__(self) -> Iterator[ScoreBlock]:
        """The blocks, checked, on the CPU, in float32 or float64.

        Raises:
            ShapeError: A block has another shape than its slice, or the blocks leave a gap, overlap or end early.
            NonFiniteError: A score is NaN or infinite; the message names query and train example.
        """
        n_query, n_train = len(self.query_ids), len(self.train_ids)
        done = 0
        for block in self.blocks():
            start, stop = block.train_slice.start or 0, block.train_slice.stop
            if start != done or stop is None or not start < stop <= n_train or block.train_slice.step not in (None, 1):
                raise ShapeError(
                    f"Blocks of {self.method!r} must cover train positions 0 to {n_train} once and in order; after "
                    f"{done} came {block.train_slice}."
                )
            values = _as_scores(block.values)
            if tuple(values.shape) != (n_query, stop - start):
                raise ShapeError(
                    f"The block of {self.method!r} for train positions {start} to {stop} must be (n_query, b) = "
                    f"({n_query}, {stop - start}); got {tuple(values.shape)}."
                )
            _require_finite_scores(values, self.query_ids, self.train_ids[start:stop])
            done = stop
            yield ScoreBlock(slice(start, stop), values)
        if done != n_train:
            raise ShapeError(f"Blocks of {self.method!r} ended after {done} of {n_train} train examples.")


# --- all scores -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False, repr=False)
class ScoreMatrix:
    """Every score of every query with every train example.

    Args:
        values: (n_query, n_train), finite.
        query_ids: Names of the rows, all int or all str, without repeats.
        train_ids: Names of the columns, likewise.
        unit: Unit of the scores, None where they only rank.
        orientation: o_q, +1 where a lower measure is better and -1 otherwise. Already applied to `values`.
        method: Name of the method.
        provenance: What it was computed from; must be JSON.
    Raises:
        ShapeError: `values` does not fit the ids.
        NonFiniteError: A score is NaN or infinite; the message names query and train example.
        DataError: An id repeats or is neither int nor str.
    """

    values: Tensor
    query_ids: Ids
    train_ids: Ids
    unit: str | None = None
    orientation: Tensor | float = 1.0
    method: str = "unnamed"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _set_header(self)
        values = _as_scores(self.values)
        expected = (len(self.query_ids), len(self.train_ids))
        if tuple(values.shape) != expected:
            raise ShapeError(
                f"`scores` must be (n_query, n_train) = {expected}; got {tuple(values.shape)}. "
                "Transposed? Use `scores.T`."
            )
        _require_finite_scores(values, self.query_ids, self.train_ids)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        return _describe(self)

    @classmethod
    def from_blocks(cls, source: BlockSource) -> ScoreMatrix:
        """All blocks of `source` side by side; memory n_query x n_train."""
        values: Tensor | None = None
        for block in source:
            if values is None:
                values = torch.empty(len(source.query_ids), len(source.train_ids), dtype=block.values.dtype)
            values[:, block.train_slice] = block.values
        assert values is not None  # a source without blocks has raised
        return cls(values, **_header(source))

    def blocks(self, block_size: int = 4096) -> BlockSource:
        """The same scores as a source of blocks of at most `block_size` train examples."""
        require_count(block_size, "block_size")
        starts = range(0, len(self.train_ids), block_size)
        slices = [slice(start, min(start + block_size, len(self.train_ids))) for start in starts]
        return BlockSource(lambda: (ScoreBlock(s, self.values[:, s]) for s in slices), **_header(self))

    @property
    def shape(self) -> tuple[int, int]:
        """(n_query, n_train)."""
        return len(self.query_ids), len(self.train_ids)

    def top(self, k: int, *, sign: Sign = "supports") -> pd.DataFrame:
        """The strongest train examples of each query.

        Args:
            k: How many per query. Fewer are listed where fewer support (or oppose): an example with a negative score
                is no supporter, and one with score 0 is neither.
            sign: `supports` (highest first), `opposes` (lowest first) or `magnitude` (both, by absolute value).
        Returns:
            Columns query, rank (from 1), train, score, share: the score over the sum of absolute scores of the query
            with *all* train examples. Equal scores are ordered by train position.
        """
        require_count(k, "k")
        strength = look_up(_STRENGTH, sign, "sign")(self.values)
        columns = _strongest(strength, k)
        total = self.values.abs().sum(1, dtype=torch.float64)
        return _table(self, self.values.gather(1, columns), columns, strength.gather(1, columns) > 0, total)

    def columns(self, train_ids: Iterable[Id]) -> ScoreMatrix:
        """The scores of these train examples, in this order."""
        ids = _as_ids(train_ids, "train")
        return replace(self, values=self.values[:, _positions(ids, self.train_ids, "train")], train_ids=ids)

    def rows(self, query_ids: Iterable[Id]) -> ScoreMatrix:
        """The scores of these queries, in this order."""
        ids = _as_ids(query_ids, "query")
        at = _positions(ids, self.query_ids, "query")
        assert isinstance(self.orientation, Tensor)
        return replace(self, values=self.values[at], query_ids=ids, orientation=self.orientation[at])

    def select(self, *, train_ids: Iterable[Id] | None = None, query_ids: Iterable[Id] | None = None) -> ScoreMatrix:
        """`columns` and `rows` in one call; None keeps all.

        Raises:
            DataError: An id is not in the matrix; the missing ones are listed.
        """
        narrow = self if train_ids is None else self.columns(train_ids)
        return narrow if query_ids is None else narrow.rows(query_ids)

    def centered(self) -> ScoreMatrix:
        """Each query's scores minus their mean over the train examples."""
        return replace(self, values=center(self.values))

    def to_pandas(self) -> pd.DataFrame:
        """Wide table: one row per query, one column per train example."""
        rows = pd.Index(list(self.query_ids), name="query")
        return pd.DataFrame(self.values.numpy(), index=rows, columns=pd.Index(list(self.train_ids), name="train"))

    def to_csv(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the wide table. CSV has no place for unit, method and provenance: use `to_parquet` or `save`.

        A spreadsheet takes text that begins with one of `=+-@` for a formula. Such an id gets a `'` before it, and so
        does one that begins so after quotes of its own: taking one away from these gives the ids again.
        """
        table = self.to_pandas().rename(index=_no_formula, columns=_no_formula)
        return _write_atomic(path, table.to_csv, overwrite)

    def to_parquet(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a long table with columns query, train, score, one row per pair, queries outermost.

        Unit, orientation, method and provenance are JSON under the key `whence` of the schema's metadata.
        """
        return _write_atomic(path, self._write_long, overwrite)

    def _write_long(self, path: Path) -> None:
        query_ids, train_ids = pa.array(list(self.query_ids)), pa.array(list(self.train_ids))
        score_type = pa.float32() if self.values.dtype == torch.float32 else pa.float64()
        columns = [("query", query_ids.type), ("train", train_ids.type), ("score", score_type)]
        schema = pa.schema(columns, metadata={"whence": json.dumps(_metadata(self))})
        n_query, n_train = self.shape
        step = max(1, _WORKING_ELEMENTS // 16 // n_train)  # queries per row group
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, n_query, step):
                values = self.values[start : start + step].contiguous()
                query = query_ids.take(np.repeat(np.arange(start, start + len(values)), n_train))
                train = train_ids.take(np.tile(np.arange(n_train), len(values)))
                writer.write_table(pa.table([query, train, pa.array(values.flatten().numpy())], schema=schema))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a safetensors file that `load` reads back exactly.

        Raises:
            StoreError: `path` exists and `overwrite` is False.
            StoreWriteError: The disk is full, read-only or missing; what was there before is still there.
        """
        return _save(path, self, {"values": self.values}, overwrite)

    @classmethod
    def load(cls, path: str | Path) -> ScoreMatrix:
        """Read what `save` wrote.

        Raises:
            StoreError: There is no such file.
            StoreMismatchError: The file holds something else.
            DamagedShardError: The file is truncated or altered.
        """
        tensors, header = _load(path, cls.__name__)
        return cls(tensors["values"], **header)


def _no_formula(id: Id) -> Id:
    """The id as a cell that a spreadsheet shows as it is."""
    is_formula = isinstance(id, str) and id.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{id}" if is_formula else id


# --- the strongest scores ---------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False, repr=False)
class TopK:
    """The k strongest supporters and opposers of each query, kept while the scores stream by.

    Equal to what `ScoreMatrix.top` finds, ties included (lower train position first); shares agree to rounding, since
    the sums of absolute scores are added up block by block. Build it with `from_blocks`.
    """

    query_ids: Ids
    train_ids: Ids
    k: int
    support_scores: Tensor  # (n_query, min(k, n_train)), highest first
    support_columns: Tensor  # train positions of them
    oppose_scores: Tensor  # lowest first
    oppose_columns: Tensor
    absolute_sum: Tensor  # (n_query,) float64: sum of |score| over all train examples
    unit: str | None = None
    orientation: Tensor | float = 1.0
    method: str = "unnamed"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _set_header(self)

    def __repr__(self) -> str:
        return _describe(self)

    @classmethod
    def from_blocks(cls, source: BlockSource, k: int) -> TopK:
        """Read `source` once.

        Cost:
            Memory n_query x (block + 2k); the search looks at each score once per side.
        """
        require_count(k, "k")
        n_query = len(source.query_ids)
        total = torch.zeros(n_query, dtype=torch.float64)
        support: tuple[Tensor, Tensor] | None = None
        oppose: tuple[Tensor, Tensor] | None = None
        for block in source:
            total += block.values.abs().sum(1, dtype=torch.float64)
            support = _keep_strongest(support, block, k, "supports")
            oppose = _keep_strongest(oppose, block, k, "opposes")
        assert support is not None  # a source without blocks has raised
        assert oppose is not None
        header = _header(source)
        return cls(header.pop("query_ids"), header.pop("train_ids"), k, *support, *oppose, total, **header)

    def top(self, k: int | None = None, *, sign: Sign = "supports") -> pd.DataFrame:
        """As `ScoreMatrix.top`, for `k` up to the number kept (all of them where it is None)."""
        wanted = self.k if k is None else k
        require_count(wanted, "k")
        if wanted > self.k and self.k < len(self.train_ids):
            raise InputError(f"`k`={wanted} was asked for, {self.k} were kept. Stream again with a larger `k`.")
        strength_of = look_up(_STRENGTH, sign, "sign")
        scores, columns = self._candidates(sign)
        best = _strongest(strength_of(scores), wanted)
        scores, columns = scores.gather(1, best), columns.gather(1, best)
        return _table(self, scores, columns, strength_of(scores) > 0, self.absolute_sum)

    def _candidates(self, sign: Sign) -> tuple[Tensor, Tensor]:
        if sign == "supports":
            return self.support_scores, self.support_columns
        if sign == "opposes":
            return self.oppose_scores, self.oppose_columns
        # With few train examples the two sides share some: what does not belong to a side counts as zero.
        scores = torch.cat([self.support_scores.clamp(min=0), self.oppose_scores.clamp(max=0)], dim=1)
        columns = torch.cat([self.support_columns, self.oppose_columns], dim=1)
        by_position = columns.argsort(dim=1, stable=True)  # equal magnitudes: lower train position first
        return scores.gather(1, by_position), columns.gather(1, by_position)

    def to_pandas(self) -> pd.DataFrame:
        """Columns query, sign (`supports` or `opposes`), rank, train, score, share; supporters first."""
        sides: list[Sign] = ["supports", "opposes"]
        tables = []
        for side in sides:
            table = self.top(sign=side)
            table.insert(1, "sign", side)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def to_parquet(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the table of `to_pandas`, with unit, method and provenance in the schema's metadata."""
        table = pa.Table.from_pandas(self.to_pandas(), preserve_index=False)
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), b"whence": json.dumps(_metadata(self)).encode()}
        )
        return _write_atomic(path, lambda partial: pq.write_table(table, partial), overwrite)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a safetensors file that `load` reads back exactly; errors as `ScoreMatrix.save`."""
        tensors = {name: getattr(self, name) for name in _TOP_K_TENSORS}
        return _save(path, self, {**tensors, "k": torch.tensor([self.k])}, overwrite)

    @classmethod
    def load(cls, path: str | Path) -> TopK:
        """Read what `save` wrote; errors as `ScoreMatrix.load`."""
        tensors, header = _load(path, cls.__name__)
        fields: dict[str, Any] = {name: tensors[name] for name in _TOP_K_TENSORS}
        return cls(k=int(tensors["k"]), **fields, **header)


_TOP_K_TENSORS = ("support_scores", "support_columns", "oppose_scores", "oppose_columns", "absolute_sum")


# --- what really happened ---------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False, repr=False)
class Outcomes:
    """What really happened to the queries when sets of examples were left out: the gold standard's side.

    Args:
        effects: float64 (n_seeds, n_points, n_query, n_sets), already adjusted and oriented by o_q: positive means that
            leaving the set out made the query worse.
        level: (n_points, n_query) mean absolute measure, against which rounding is judged.
        eps: Machine epsilon of the parameters' dtype.
        points: How much training each point stands for, without repeats.
        point_unit: What `points` count.
        query_ids: Names of the queries.
        left_out: Ids of the train examples in each left-out set; a set of one for leave-one-out.
        adjustment: What the common movement was removed with: the `mean` over left-out sets of one size (eq. 13), or
            the run on the `full` data (eq. 17).
    Raises:
        ShapeError: `effects` or `level` does not fit the rest.
        NonFiniteError: An effect is NaN or infinite; the message names seed, point, query and set.
        DataError: An id repeats, or a set is empty.
    """

    effects: Tensor
    level: Tensor
    eps: float
    points: tuple[int, ...]
    point_unit: PointUnit
    query_ids: Ids
    left_out: tuple[Ids, ...]
    adjustment: Adjustment = "mean"

    def __post_init__(self) -> None:
        require_positive(self.eps, "eps")
        for name, allowed in (("point_unit", ("epochs", "steps")), ("adjustment", ("mean", "full"))):
            look_up(dict.fromkeys(allowed), getattr(self, name), name)
        fields = {
            "points": tuple(operator.index(point) for point in self.points),
            "query_ids": _as_ids(self.query_ids, "query"),
            "left_out": tuple(_as_ids(ids, "left-out") for ids in self.left_out),
            "effects": self.effects.detach().to("cpu", torch.float64),
            "level": self.level.detach().to("cpu", torch.float64),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        expected = (len(self.points), len(self.query_ids), len(self.left_out))
        if self.effects.ndim != 4 or self.effects.shape[0] < 1 or tuple(self.effects.shape[1:]) != expected:
            raise ShapeError(
                f"`effects` must be (n_seeds, n_points, n_query, n_sets) = (at least 1, {', '.join(map(str, expected))}"
                f"); got {tuple(self.effects.shape)}."
            )
        if tuple(self.level.shape) != expected[:2]:
            raise ShapeError(f"`level` must be (n_points, n_query) = {expected[:2]}; got {tuple(self.level.shape)}.")
        if 0 in expected or len(set(self.points)) < len(self.points):
            raise DataError(f"`points` and `left_out` must not be empty, and no point may repeat; got {self.points}.")
        bad = (~torch.isfinite(self.effects)).nonzero()
        if len(bad):
            seed, point, query, left_out = bad[0].tolist()
            raise NonFiniteError(
                f"{len(bad)} effects are NaN or infinite, the first for seed {seed}, point {self.points[point]}, query "
                f"{self.query_ids[query]!r}, left-out set {left_out}. Did a run diverge? Lower its learning rate."
            )
        if not bool(torch.isfinite(self.level).all()):
            raise NonFiniteError("`level` has NaN or infinite values. Did a run diverge?")

    def __repr__(self) -> str:
        seeds, points, queries, sets = self.effects.shape
        return (
            f"Outcomes({seeds} seeds x {points} points in {self.point_unit} x {queries} queries x {sets} left-out "
            f"sets, adjustment={self.adjustment!r})"
        )

    @property
    def n_seeds(self) -> int:
        """Runs per left-out set."""
        return int(self.effects.shape[0])

    @property
    def set_sizes(self) -> tuple[int, ...]:
        """The number of train examples in each left-out set."""
        return tuple(len(ids) for ids in self.left_out)

    def mean(self) -> Tensor:
        """(n_points, n_query, n_sets) mean effect over seeds."""
        return self.effects.mean(0)

    def standard_error(self) -> Tensor:
        """(n_points, n_query, n_sets) standard error of `mean` over seeds; NaN with one seed."""
        if self.n_seeds == 1:
            return torch.full_like(self.effects[0], float("nan"))
        return self.effects.std(0, correction=1) / math.sqrt(self.n_seeds)

    def defined(self, point: int) -> Tensor:
        """(n_query,) bool: where the mean effects are more than rounding, at position `point` of `points`.

        False where the largest mean effect is below 16 eps times the level of the measure, or where all effects are
        equal: no score can be compared with such a row.
        """
        mean = self.effects[:, point].mean(0)
        above_rounding = mean.abs().amax(1) >= 16 * self.eps * self.level[point]
        return above_rounding & (mean.amax(1) > mean.amin(1))


def center(values: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """`values` (..., n) minus their mean over the last dimension, or over the positions of equal `sizes`.

    Equal entries become exactly zero, so that "constant" can be told from "nearly constant" without an epsilon.

    Args:
        values: Any floating tensor.
        sizes: One number per position, such as the sizes of left-out sets; None is one group.
    """
    if sizes is None or len(set(sizes)) == 1:
        constant = (values == values[..., :1]).all(-1, keepdim=True)
        return (values - values.mean(-1, keepdim=True)).masked_fill(constant, 0)
    out = torch.empty_like(values)
    labels = torch.tensor(sizes)
    for size in set(sizes):
        at = labels == size
        out[..., at] = center(values[..., at])
    return out


# --- shared pieces ----------------------------------------------------------------------------------------------------


def _as_ids(ids: Iterable[Any], what: str) -> Ids:
    """A tuple of ids, all int or all str.

    Raises:
        DataError: There is none, one repeats, or one is neither int nor str.
    """
    named = tuple(ids) if isinstance(ids, range) else tuple(_as_id(x, what) for x in ids)
    if not named:
        raise DataError(f"At least one {what} id is needed; got none.")
    if len({isinstance(x, str) for x in named}) > 1:
        raise DataError(f"The {what} ids mix int and str. Use one kind.")
    if len(set(named)) < len(named):
        repeated = [x for x, count in Counter(named).items() if count > 1]
        raise DataError(f"{len(repeated)} {what} ids occur more than once: {_some(repeated)}. Ids must be unique.")
    return named


def _as_id(value: Any, what: str) -> Id:
    if isinstance(value, str):
        return str(value)
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # also numpy and torch integers
    except TypeError:
        raise DataError(f"A {what} id must be an int or a str; got {value!r}.") from None


def _some(ids: Sequence[Id], limit: int = 5) -> str:
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(map(repr, ids[:limit])) + more


def _positions(ids: Sequence[Id], among: Ids, what: str) -> Tensor:
    position = {x: i for i, x in enumerate(among)}
    missing = [x for x in ids if x not in position]
    if missing:
        raise DataError(f"{len(missing)} {what} ids are not among the {len(among)} scored: {_some(missing)}.")
    return torch.tensor([position[x] for x in ids])


def _as_scores(values: Tensor) -> Tensor:
    if values.is_complex():
        raise InputError("Scores must be real numbers; got a complex tensor.")
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    return values.detach().to("cpu", values.dtype if values.is_floating_point() else torch.float64)


def _require_finite_scores(values: Tensor, query_ids: Ids, train_ids: Ids) -> None:
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    bad = (~finite).nonzero()
    named = ", ".join(f"(query {query_ids[q]!r}, train {train_ids[i]!r})" for q, i in bad[:3].tolist())
    raise NonFiniteError(
        f"{len(bad)} scores are NaN or infinite, such as {named}. Check the losses of these examples at this model."
    )


def _as_orientation(orientation: Tensor | float, n_query: int) -> Tensor:
    given = torch.as_tensor(orientation).detach().to("cpu", torch.float64)
    if given.ndim == 0:
        given = given.expand(n_query).clone()
    if tuple(given.shape) != (n_query,):
        raise ShapeError(f"`orientation` must be a number or (n_query,) = ({n_query},); got {tuple(given.shape)}.")
    if not bool((given.abs() == 1).all()):
        raise InputError(f"`orientation` must be +1 or -1 for every query; got {sorted(set(given.tolist()))}.")
    return given


def _as_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
    except (TypeError, ValueError) as error:
        raise InputError(f"`provenance` must be JSON (numbers, text, lists, dicts): {error}.") from None
    return plain


Scored = BlockSource | ScoreMatrix | TopK


def _set_header(scores: Scored) -> None:
    """Bring the fields that all three classes share into their one form."""
    fields = {
        "query_ids": _as_ids(scores.query_ids, "query"),
        "train_ids": _as_ids(scores.train_ids, "train"),
        "provenance": _as_provenance(scores.provenance),
    }
    fields["orientation"] = _as_orientation(scores.orientation, len(fields["query_ids"]))
    for name, value in fields.items():
        object.__setattr__(scores, name, value)


def _header(scores: Scored) -> dict[str, Any]:
    names = ("query_ids", "train_ids", "unit", "orientation", "method", "provenance")
    return {name: getattr(scores, name) for name in names}


def _metadata(scores: Scored) -> dict[str, Any]:
    """The part of the header that fits a file's metadata (ids do not)."""
    assert isinstance(scores.orientation, Tensor)
    return {
        "kind": type(scores).__name__,
        "version": 1,
        "unit": scores.unit,
        "orientation": scores.orientation.int().tolist(),
        "method": scores.method,
        "provenance": scores.provenance,
    }


def _describe(scores: Scored) -> str:
    kept = f", k={scores.k}" if isinstance(scores, TopK) else ""
    return (
        f"{type(scores).__name__}({len(scores.query_ids)} queries x {len(scores.train_ids)} train examples{kept}, "
        f"method={scores.method!r}, unit={scores.unit!r})"
    )


def _strongest(strength: Tensor, k: int) -> Tensor:
    """Positions of the `k` largest entries of each row, largest first, equal ones by position. -> (rows, <=k)"""
    rows = max(1, _WORKING_ELEMENTS // strength.shape[1])
    parts = torch.split(strength, rows)
    return torch.cat([_strongest_of_rows(part, min(k, strength.shape[1])) for part in parts])


def _strongest_of_rows(strength: Tensor, k: int) -> Tensor:
    # `topk` alone breaks ties as it likes: it only gives the threshold here.
    threshold = strength.topk(k, dim=1).values[:, -1:]
    above, tied = strength > threshold, strength == threshold
    room = k - above.sum(1, keepdim=True)
    columns = (above | (tied & (tied.cumsum(1) <= room))).nonzero()[:, 1].reshape(-1, k)
    order = strength.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)


def _keep_strongest(kept: tuple[Tensor, Tensor] | None, block: ScoreBlock, k: int, sign: Sign) -> tuple[Tensor, Tensor]:
    """The `k` strongest (scores, columns) among those kept so far and a block of later columns."""
    scores = block.values
    columns = torch.arange(block.train_slice.start, block.train_slice.stop).expand(len(scores), -1)
    if kept is not None:
        scores, columns = torch.cat([kept[0], scores], dim=1), torch.cat([kept[1], columns], dim=1)
    best = _strongest(_STRENGTH[sign](scores), k)
    return scores.gather(1, best), columns.gather(1, best)


def _table(of: ScoreMatrix | TopK, scores: Tensor, columns: Tensor, keep: Tensor, absolute_sum: Tensor) -> pd.DataFrame:
    """Long table of the kept entries; `scores`, `columns`, `keep` (n_query, k), strongest first."""
    query, rank = keep.nonzero(as_tuple=True)
    score = scores[keep].double()
    return pd.DataFrame(
        {
            "query": [of.query_ids[q] for q in query.tolist()],
            "rank": (rank + 1).numpy(),
            "train": [of.train_ids[i] for i in columns[keep].tolist()],
            "score": score.numpy(),
            "share": (score / absolute_sum[query]).numpy(),
        }
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _write_atomic(path: str | Path, write: Callable[[Path], object], overwrite: bool) -> Path:
    """Write beside `path`, sync, rename: a reader meets the old file or the new one, never half of one."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise StoreError(f"{path} exists. Choose another name, or pass `overwrite=True`.")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(mode)  # safetensors writes files that only their owner can read
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreWriteError(
            f"Could not write {path}: {reason}. What was there before is unchanged; use another folder or free space."
        ) from error
    finally:
        _remove_quietly(partial)
    return path


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a read-only or vanished folder: the error that led here says more
        return


def _save(path: str | Path, scores: ScoreMatrix | TopK, tensors: dict[str, Tensor], overwrite: bool) -> Path:
    contents = {name: x.contiguous() for name, x in tensors.items()}
    for name in ("query_ids", "train_ids"):  # as JSON text: ids may be long, and a file's metadata must be short
        text = json.dumps(getattr(scores, name)).encode()
        contents[name] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    metadata = {"whence": json.dumps(_metadata(scores))}
    return _write_atomic(path, lambda partial: save_file(contents, partial, metadata), overwrite)


def _load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not Path(path).is_file():
        raise StoreError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("whence", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DamagedShardError(f"{path} is truncated or altered ({error}). Write it again.") from error
    if metadata.get("kind") != kind:
        raise StoreMismatchError(f"{path} holds {metadata.get('kind', 'no scores')}; {kind} was asked for.")
    header = {name: metadata[name] for name in ("unit", "method", "provenance")}
    header["orientation"] = torch.tensor(metadata["orientation"])
    for name in ("query_ids", "train_ids"):
        header[name] = tuple(json.loads(bytes(tensors.pop(name).tolist())))
    return tensors, header
