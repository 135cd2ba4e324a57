"""Contributions: scores taken apart by parameter groups, so that any weights cost one product."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from whence.data import Examples
from whence.errors import DamagedShardError, InputError, ShapeError, StoreError, StoreMismatchError
from whence.methods import Call, Inputs, block_source
from whence.scores import Ids, ScoreMatrix
from whence.storage import write_atomic
from whence.task import Grouping, GroupWeights, NameOf, ParameterGroups, Task

QUERY_ROWS = 2**30  # bytes of query gradients, split by groups, that are held at once


@final
@dataclass(frozen=True, eq=False)
class Contributions:
    """What each parameter group contributes to each score: `values[q, i].sum()` is the score of the method itself.

        values[q, i, j] = (o_q / n) a_q^T D_j f(C) b_i,    D_j keeps group j of the query's gradient

    Args:
        values: (n_query, n_train, n_groups), finite.
        groups: The parameter groups, in the model's order.
        query_ids: Names of the queries.
        train_ids: Names of the train examples.
        method: Name of the method.
        orientation: o_q, already applied to `values`.
        unit: Unit of the unweighted scores.
        provenance: What they were computed from, as JSON.
    Raises:
        ShapeError: `values` does not fit the ids and groups.
        NonFiniteError, DataError: As in `ScoreMatrix`.
    """

    values: Tensor
    groups: ParameterGroups
    query_ids: Ids
    train_ids: Ids
    method: str = "unnamed"
    orientation: float = 1.0
    unit: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = (len(self.query_ids), len(self.train_ids), len(self.groups))
        if tuple(self.values.shape) != expected:
            raise ShapeError(
                f"`values` must be (n_query, n_train, n_groups) = {expected}; got {tuple(self.values.shape)}."
            )
        checked = self.scores()  # ids, provenance and finiteness are checked where they always are
        for name in ("query_ids", "train_ids", "provenance"):
            object.__setattr__(self, name, getattr(checked, name))
        object.__setattr__(self, "values", self.values.detach().cpu())

    def __repr__(self) -> str:
        q, t, m = self.values.shape
        return f"Contributions({q} queries x {t} train examples x {m} groups, method={self.method!r})"

    def scores(self, weights: GroupWeights | None = None) -> ScoreMatrix:
        """(n_query, n_train) scores with the given weights; without any, those of the method itself.

        Raises:
            InputError: The weights belong to other groups.
        """
        facts = dict(self.provenance)
        if weights is None:
            values = self.values.sum(-1)
        else:
            self._require_same_groups(weights)
            values = self.values @ weights.values.to(self.values)
            facts["weights"] = {"name": weights.name, "values": weights.by_name()}
        return ScoreMatrix(
            values,
            self.query_ids,
            self.train_ids,
            unit=self.unit if weights is None or weights.is_uniform else None,
            orientation=self.orientation,
            method=self.method,
            provenance=facts,
        )

    def rows(self, positions: list[int]) -> Contributions:
        """The queries at these positions, in this order."""
        return replace(self, values=self.values[positions], query_ids=[self.query_ids[q] for q in positions])

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a safetensors file that `load` reads back exactly.

        Raises:
            StoreError: `path` exists and `overwrite` is False.
            StoreWriteError: It cannot be written; what was there before is still there.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise StoreError(f"{path} exists. Choose another name, or pass `overwrite=True`.")
        facts = {name: getattr(self, name) for name in ("method", "orientation", "unit", "provenance")}
        header = {"kind": "Contributions", "version": 1, "groups": self.groups.to_dict(), **facts}
        ids = json.dumps({"query_ids": list(self.query_ids), "train_ids": list(self.train_ids)}).encode()
        tensors = {"values": self.values.contiguous(), "ids": torch.frombuffer(bytearray(ids), dtype=torch.uint8)}
        write_atomic(path, save(tensors, {"whence": json.dumps(header)}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Contributions:
        """Read what `save` wrote.

        Raises:
            StoreError: There is no such file.
            StoreMismatchError: The file holds something else.
            DamagedShardError: The file is truncated or altered.
        """
        if not Path(path).is_file():
            raise StoreError(f"There is no file {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("whence", "{}"))
                kind = header.get("kind"), header.get("version")
                if kind != ("Contributions", 1):
                    raise StoreMismatchError(
                        f"{path} holds {kind[0] or 'something else'}; Contributions were asked for."
                    )
                values, ids = file.get_tensor("values"), json.loads(bytes(file.get_tensor("ids").tolist()))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise DamagedShardError(f"{path} is truncated or altered ({error}). Write it again.") from error
        groups = ParameterGroups.from_dict(header["groups"])
        facts = {name: header[name] for name in ("method", "orientation", "unit", "provenance")}
        return cls(values, groups, ids["query_ids"], ids["train_ids"], **facts)

    def _require_same_groups(self, weights: GroupWeights) -> None:
        if weights.groups != self.groups:
            raise InputError(
                f"The weights {weights.name!r} are of {len(weights.groups)} groups, such as "
                f"{weights.groups.names[0]!r}; the contributions of {len(self.groups)}, such as "
                f"{self.groups.names[0]!r}. Use the same grouping."
            )


def contributions(
    task: Task,
    train: Examples,
    queries: Examples,
    method: str = "grad_dot",
    *,
    groups: str | NameOf | Grouping | ParameterGroups = "tensor",
    at: int | None = None,
    **options: Any,
) -> Contributions:
    """Take the scores of a method apart by parameter groups.

    Args:
        task: The final model and its contract, in eval mode.
        train: The train set.
        queries: Whose scores; to learn weights from, queries that are neither trained on nor evaluated with.
        method: A method that is linear in the query's gradient (`linear_in_w` in `METHODS`).
        groups: A name in `GROUPINGS`, a callable parameter name -> group name, or a `Grouping`: `Heads`, `Channels`.
        at: Amount of training, for methods that follow it.
        options: Of the method.
    Raises:
        InputError: The method is not linear, or something does not fit; before any long work.
    Cost:
        As the method with n_groups times as many queries; memory n_query x n_train x n_groups.
    Reference:
        Li et al. (2026), arXiv:2506.05647: the unified weighted score, weights on the query side only.
    """
    call = Call.of(method, at, options, linear=True)
    return _contributions(call, Inputs(task, train, queries), groups)


def contributions_with(
    inputs: Inputs,
    method: str = "grad_dot",
    *,
    groups: str | NameOf | Grouping | ParameterGroups = "tensor",
    at: int | None = None,
    **options: Any,
) -> Contributions:
    """As `contributions`, on inputs that are shared with other methods."""
    return _contributions(Call.of(method, at, options, linear=True), inputs, groups)


def _contributions(call: Call, inputs: Inputs, groups: str | NameOf | Grouping | ParameterGroups) -> Contributions:
    layout, n_query = inputs.task.layout, len(inputs.queries)
    found = ParameterGroups.of(layout, groups)
    size = max(1, QUERY_ROWS // (len(found) * layout.n_params * torch.float64.itemsize))
    if size >= n_query:
        return _part(call, inputs, found)
    parts = [range(start, min(start + size, n_query)) for start in range(0, n_query, size)]
    blocks = [_part(call, inputs.with_queries(inputs.queries.subset(part)), found) for part in parts]
    values = torch.cat([block.values for block in blocks])
    facts = {**blocks[0].provenance, "queries": inputs.queries.fingerprint}
    return replace(blocks[0], values=values, query_ids=inputs.queries.ids, provenance=facts)


def _part(call: Call, inputs: Inputs, groups: ParameterGroups) -> Contributions:
    """Contributions of queries that fit into memory at once."""
    blocks, facts = group_blocks(call, inputs, groups)
    values = collected(blocks(), (len(inputs.queries), inputs.n_train, len(groups)))
    return Contributions(values, groups, **facts)


def group_blocks(
    call: Call, inputs: Inputs, groups: ParameterGroups
) -> tuple[Callable[[], Iterator[tuple[slice, Tensor]]], dict[str, Any]]:
    """A pass over (slice of train examples, (n_groups, n_query, b)), and what `Contributions` says beside values."""
    ((amount, result),) = call.run(inputs.by_group(groups)).items()
    shape = len(inputs.queries), len(groups), -1

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        for block in result.blocks():
            # Row q * n_groups + j of a block is group j of query q.
            yield block.train_slice, block.values.detach().reshape(shape).transpose(0, 1)

    header = block_source(call.preset, inputs, result, amount)
    facts = {name: getattr(header, name) for name in ("query_ids", "train_ids", "method", "unit", "provenance")}
    return blocks, {**facts, "orientation": float(inputs.orientation)}


def collected(blocks: Iterator[tuple[slice, Tensor]], shape: tuple[int, int, int]) -> Tensor:
    """All blocks (n_groups, n_query, b) as one tensor of `shape` (n_query, n_train, n_groups), on the CPU."""
    values: Tensor | None = None
    for part, block in blocks:
        if values is None:
            values = torch.empty(shape, dtype=block.dtype)
        values[:, part] = block.permute(1, 2, 0).cpu()
    assert values is not None  # a train set has examples
    return values
