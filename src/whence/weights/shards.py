"""Train gradients on disk, projected group by group: contributions where gradients do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from whence.algebra import Projection
from whence.checks import look_up, require_count
from whence.data import Examples
from whence.errors import InputError, NumericalError, StoreMismatchError
from whence.gradients import loss_gradients, measure_gradients
from whence.methods import Inputs
from whence.progress import stage
from whence.rng import derive_seed
from whence.scores import Ids
from whence.storage import ShardStore
from whence.task import Grouping, NameOf, ParameterGroups, ParameterLayout, Task, fingerprint
from whence.weights.stream import ContributionStream

HEADER = "header"
ROWS = 1024  # train examples of a shard
RUN = 16  # groups whose products are one batch: threads then share the batch, and not each small product
GOLDEN = 0.618
KIND = "whence-gradient-shards"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@final
@dataclass(frozen=True, eq=False)
class GroupProjection:
    """P_j^T of each group's part of a gradient, one after the other; a group of no more than `dim` entries stays whole.

    Attributes:
        groups: The groups.
        layout: Of the gradients.
        dim: Longest code of a group.
        seed: Of all projections.
    """

    groups: ParameterGroups
    layout: ParameterLayout
    dim: int
    seed: int

    def __call__(self, rows: Tensor) -> Tensor:
        """(b, n_params) to (b, sum of dims)."""
        codes = []
        for members, projection in self._parts:
            own = rows[:, members.to(rows.device)]
            codes.append(own if projection is None else projection.project(own).to(rows.dtype))
        return torch.cat(codes, 1)

    @property
    def dims(self) -> list[int]:
        """Length of each group's code."""
        return [min(self.dim, size) for size in self.groups.sizes]

    @cached_property
    def _parts(self) -> list[tuple[Tensor, Projection | None]]:
        """The entries of each group, and its projection."""
        of_parameter = self.groups.of_parameter(self.layout)
        found = []
        for j, size in enumerate(self.groups.sizes):
            seed = derive_seed(self.seed, "group", j)
            projection = None if size <= self.dim else Projection(size, self.dim, seed)
            found.append(((of_parameter == j).nonzero().flatten(), projection))
        return found


@final
class GradientShards:
    """A store of codes (n_train, sum of dims): the train side of Grad-Dot, group by group.

    Made by `gradient_shards`, or by `create` from codes of one's own; read by `open`. `stream` gives contributions

        values[q, i, j] = scale * <query code q, train code i> over the columns of group j

    Args:
        store: A store that `create` has planned.
    """

    def __init__(self, store: ShardStore) -> None:
        self._store = store
        settings = store.settings
        if settings.get("kind") != KIND:
            raise StoreMismatchError(f"{store.dir} holds {store.description}; gradient shards were asked for.")
        self.dims: list[int] = settings["dims"]
        self.groups = ParameterGroups.from_dict(settings["groups"])
        self.dtype = DTYPES[settings["dtype"]]
        self.settings: dict[str, Any] = settings["made_by"]
        self._n_train: int = settings["n_train"]

    @classmethod
    def create(
        cls,
        dir: str | Path,
        *,
        groups: ParameterGroups,
        dims: Sequence[int],
        train_ids: Ids,
        made_by: dict[str, Any],
        dtype: str = "float16",
    ) -> Self:
        """Plan a store, or continue it.

        Args:
            dir: Its folder.
            groups: What the columns belong to.
            dims: Columns of each group, one after the other.
            train_ids: Names of the train examples.
            made_by: JSON facts that decide the codes.
            dtype: "float16", "bfloat16" or "float32".
        Raises:
            StoreMismatchError: The folder holds codes of other settings.
        """
        look_up(DTYPES, dtype, "dtype")
        if len(dims) != len(groups):
            raise InputError(f"`dims` must have one length for each of the {len(groups)} groups; got {len(dims)}.")
        n_train = len(train_ids)
        settings = {
            "kind": KIND,
            "dims": list(dims),
            "groups": groups.to_dict(),
            "dtype": dtype,
            "n_train": n_train,
            "made_by": made_by,
        }
        names = [HEADER, *(_name(start) for start in range(0, n_train, ROWS))]
        store = ShardStore(dir, settings, names, description="projected gradients").open_or_create()
        if not store.has(HEADER):
            store.write(HEADER, {"empty": torch.zeros(0)}, {"train_ids": list(train_ids)})
        return cls(store)

    @classmethod
    def open(cls, dir: str | Path) -> Self:
        """Read what was written.

        Raises:
            StoreError: The folder holds no store, or an incomplete one.
        """
        return cls(ShardStore.existing(dir))

    @cached_property
    def train_ids(self) -> tuple[int | str, ...]:
        """Names of the train examples."""
        return tuple(self._store.load(HEADER).metadata["train_ids"])

    def missing(self) -> list[slice]:
        """Parts of the train set whose codes are not there yet."""
        starts = [int(name.split("-")[1]) for name in self._store.missing()]
        return [slice(start, min(start + ROWS, self._n_train)) for start in starts]

    def write(self, part: slice, codes: Tensor) -> None:
        """The codes (b, sum of dims) of one of the parts in `missing`.

        Raises:
            NumericalError: A number is too large for the store's precision.
        """
        stored = codes.to(self.dtype)
        bad = ~torch.isfinite(stored)
        if bool(bad.any()):
            row = int(bad.any(1).nonzero()[0])
            raise NumericalError(
                f"The code of train example {self.train_ids[part.start + row]!r} does not fit {self.dtype}: its "
                f'largest number is {float(codes[row].abs().max()):.3g}. Use dtype="bfloat16" or "float32".'
            )
        self._store.write(_name(part.start), {"codes": stored})

    def finish(self) -> Self:
        """Say that all parts are written."""
        self._store.finish()
        return self

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """(slice, codes (b, sum of dims)) of all train examples; every byte is checked once.

        The first of them are spread over the train set, as a sample is: it may be sorted. While one is worked on the
        next is read and checked.
        """
        starts = spread_out(range(0, self._n_train, ROWS))
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._store.view, _name(starts[0]))
            for start, after in zip(starts, [*starts[1:], None], strict=True):
                codes = coming.result()["codes"]
                if after is not None:
                    coming = reader.submit(self._store.view, _name(after))
                yield slice(start, min(start + ROWS, self._n_train)), codes

    def norms(self) -> Tensor:
        """(n_train,) float64 norms of the train gradients, those of their projections where groups are projected."""
        scale = self._factors().double()
        norms = torch.empty(self._n_train, dtype=torch.float64)
        for part, rows in self.blocks():
            norms[part] = (rows.double() / scale).norm(dim=1)
        return norms

    def _factors(self) -> Tensor:
        """(sum of dims,): the powers of two that gradients were multiplied with; 1 for codes of one's own."""
        factors = self.settings.get("factors", [1.0] * len(self.dims))
        return torch.tensor(factors).repeat_interleave(torch.tensor(self.dims))

    def stream(self, codes: Tensor, query_ids: Ids, *, scale: float = 1.0) -> ContributionStream:
        """Contributions to the scores of queries with these codes (n_query, sum of dims)."""
        if tuple(codes.shape) != (len(query_ids), sum(self.dims)):
            raise InputError(
                f"`codes` must be (n_query, columns) = {(len(query_ids), sum(self.dims))}; got {tuple(codes.shape)}."
            )
        runs = equal_runs(self.dims, RUN)
        widths = [len(run) * self.dims[run.start] for run in runs]
        columns = torch.split(codes.float() * scale, widths, 1)
        sides = [_by_group(own, len(run)).transpose(1, 2).contiguous() for run, own in zip(runs, columns, strict=True)]

        def blocks() -> Iterator[tuple[slice, Tensor]]:
            found = torch.empty(0)
            for part, rows in self.blocks():
                if found.shape[-1] != len(rows):  # else the memory of the last block: to get new pages takes as long
                    found = torch.empty(len(self.dims), len(codes), len(rows))
                for run, side, own in zip(runs, sides, torch.split(rows, widths, 1), strict=True):
                    torch.bmm(side, _by_group(own.float(), len(run)), out=found[run.start : run.stop])
                yield part, found

        provenance = {"gradient_shards": self.settings}
        return ContributionStream(blocks, self.groups, query_ids, self.train_ids, "grad_dot", provenance=provenance)

    def contributions(self, task: Task, queries: Examples) -> ContributionStream:
        """Contributions to the Grad-Dot scores of queries of the task that the store was made for.

        Raises:
            StoreMismatchError: It was made for another model.
        """
        project, model = self._projection(task), fingerprint(task.model)
        if self.settings.get("model") != model:
            raise StoreMismatchError(
                f"{self._store.dir} holds gradients of the model {str(self.settings.get('model'))[:12]}; this one is "
                f"{model[:12]}. Make shards for it."
            )
        task.check(queries.all(), queries.ids, role="query")
        rows = project(measure_gradients(task, queries))
        # The store's codes are multiplied by powers of two, which these take back.
        return self.stream(rows / self._factors().to(rows), queries.ids, scale=task.measure.orientation)

    def _projection(self, task: Task) -> GroupProjection:
        return GroupProjection(self.groups, task.layout, self.settings["dim"], self.settings["seed"])


def gradient_shards(
    task: Task,
    train: Examples,
    dir: str | Path,
    *,
    groups: str | NameOf | Grouping | ParameterGroups = "tensor",
    dim: int = 128,
    seed: int = 0,
    dtype: str = "float16",
) -> GradientShards:
    """Write the train set's gradients, projected group by group; interrupted, the same call continues.

    Args:
        task: The final model and its contract, in eval mode.
        train: The train set.
        dir: A folder of their own.
        groups: As in `contributions`.
        dim: Longest code of a group: inner products within a group are off by about 1 / sqrt(dim).
        seed: Of the projections.
        dtype: Of the numbers on disk. Each group is scaled by a power of two, so that its codes are about 1 in size.
    Raises:
        InputError: Something does not fit.
        StoreMismatchError: The folder holds the shards of other settings.
        NumericalError: A number is too large for float16.
    Cost:
        One pass of gradients; n_train x the sum of min(dim, size of group) numbers on disk.
    Reference:
        Li et al. (2026), arXiv:2506.05647: concatenated features of groups.
    """
    require_count(dim, "dim")
    require_count(seed, "seed", minimum=0)
    Inputs(task, train, train.subset([0]))  # checks what every method checks
    found = ParameterGroups.of(task.layout, groups)
    project = GroupProjection(found, task.layout, dim, seed)
    factors = _factors(_codes(task, train.subset(range(min(len(train), 64))), project), project.dims)
    facts = {
        "model": fingerprint(task.model),
        "train": train.fingerprint,
        "dim": dim,
        "seed": seed,
        "factors": factors,
    }
    shards = GradientShards.create(
        dir, groups=found, dims=project.dims, train_ids=train.ids, made_by=facts, dtype=dtype
    )
    scale = torch.tensor(factors).repeat_interleave(torch.tensor(project.dims))
    missing = shards.missing()
    with stage("gradient shards", total=len(missing), unit="shards") as progress:
        for part in missing:
            codes = _codes(task, train.subset(range(part.start, part.stop)), project)
            shards.write(part, codes * scale.to(codes))
            progress.advance()
    return shards.finish()


def _codes(task: Task, examples: Examples, project: GroupProjection) -> Tensor:
    """(n, sum of dims)."""
    return torch.cat([project(rows) for _, rows in loss_gradients(task, examples)])


def _factors(codes: Tensor, dims: list[int]) -> list[float]:
    """For each group the power of two that brings its codes to a root mean square of about 1."""
    sizes = [float(part.double().square().mean().sqrt()) for part in torch.split(codes, dims, 1)]
    return [2.0 ** -round(math.log2(size)) if size > 0 else 1.0 for size in sizes]


def _by_group(columns: Tensor, n_groups: int) -> Tensor:
    """(b, n_groups x dim) as (n_groups, dim, b)."""
    return columns.reshape(len(columns), n_groups, -1).permute(1, 2, 0)


def equal_runs(dims: Sequence[int], most: int) -> list[range]:
    """Positions in order, in stretches of equal entries and at most so many: `[3, 3, 5]` gives 0 to 1, and 2."""
    runs: list[range] = []
    for k, dim in enumerate(dims):
        if runs and dims[runs[-1].start] == dim and len(runs[-1]) < most:
            runs[-1] = range(runs[-1].start, k + 1)
        else:
            runs.append(range(k, k + 1))
    return runs


def spread_out(positions: Sequence[int]) -> list[int]:
    """All of them, in steps of the golden ratio of their number: the first few are far from each other."""
    step = round(len(positions) * GOLDEN)
    while math.gcd(step, len(positions)) > 1:
        step += 1
    return [positions[k * step % len(positions)] for k in range(len(positions))]


def _name(start: int) -> str:
    return f"rows-{start:09d}"
