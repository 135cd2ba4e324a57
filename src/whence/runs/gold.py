"""`whence gold`: the gold standard of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from whence.data import Examples, LeftOutSets
from whence.gold import Gold, further_train
from whence.runs.config import GoldConfig
from whence.runs.start import Source, Start, opened
from whence.storage import ShardStore
from whence.storage.shards import PLAN


@dataclass(frozen=True)
class GoldResult:
    """Where the gold standard is, and what it holds.

    Attributes:
        folder: The run.
        store: The gold standard in it.
        points: Amounts of further training.
        point_unit: What they count.
        n_seeds: Runs of each left-out set.
        n_sets: Left-out sets.
        n_query: Queries.
        engine: What ran them.
    """

    folder: Path
    store: Path
    points: tuple[int, ...]
    point_unit: str
    n_seeds: int
    n_sets: int
    n_query: int
    engine: str


def run_gold(source: Source, out: Source | None = None, *, rebuild: bool = False) -> GoldResult:
    """Train the final model further without examples, or continue where that stopped.

    Args:
        source: A TOML file, a run folder, or its `config.toml`.
        out: Folder of the run; see `RunFolder.resolve`.
        rebuild: Compute damaged shards again.
    Raises:
        ConfigError, StoreMismatchError: See `opened` and `Opened.build`.
        DamagedShardError: A stored shard is damaged, and `rebuild` is False.
    Cost:
        See `further_train`; nothing but reading where all is there.
    """
    with opened(source, out) as folder:
        begun = folder.build()
        had_all = has_finished(begun.run.gold_dir())
        gold = gold_of(begun, rebuild=rebuild)
        if not had_all:
            folder.record("gold")
    return GoldResult(
        folder=begun.run.path,
        store=begun.run.gold_dir(),
        points=gold.points,
        point_unit=gold.point_unit,
        n_seeds=len(gold.seeds),
        n_sets=len(gold.left_out),
        n_query=len(gold.query_ids),
        engine=gold.execution.engine,
    )


def has_finished(store: Path) -> bool:
    """Whether a folder holds a sweep with all its runs."""
    return (store / PLAN).is_file() and ShardStore.existing(store).complete


def gold_of(begun: Start, *, rebuild: bool = False) -> Gold:
    """The gold standard of a run, computed where it is not stored."""
    config = begun.run.config
    return further_train(
        begun.task,
        begun.train,
        begun.queries,
        config.recipe,
        left_out=left_out_sets(config.gold, begun.train),
        seeds=range(config.gold.first_seed, config.gold.first_seed + config.gold.seeds),
        points=config.gold.points or None,
        engine=config.gold.engine,
        store_dir=begun.run.gold_dir(),
        rebuild=rebuild,
    )


def left_out_sets(config: GoldConfig, train: Examples) -> LeftOutSets:
    """The examples to leave out, one at a time."""
    if config.left_out_indices:
        return LeftOutSets.singles(config.left_out_indices)
    if config.left_out_choice == "random":
        return LeftOutSets.random(len(train), config.left_out, seed=config.first_seed)
    return LeftOutSets.evenly_spaced(len(train), config.left_out)
