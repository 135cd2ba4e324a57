"""A store of a gold standard: resumed bit by bit, refused for other settings, repaired shard by shard."""

import pytest
import torch

from whence.data import Examples
from whence.errors import DamagedShardError, StoreError, StoreMismatchError
from whence.gold import further_train, retrain
from whence.storage import ShardStore
from whence.testing.problems import PROBLEMS, classifier, mlp_regression
from whence.training import Recipe, limited_threads
from whence.training.processes import INLINE

RECIPE = {"lr": 0.05, "batch_size": 4, "epochs": 3, "momentum": 0.9}
SMALL = mlp_regression()


def gold_of(store=None, small=SMALL, recipe=None, **options):
    arguments = {"left_out": 6, "seeds": 4, "points": [1, 3], "engine": "stacked", **options}
    recipe = Recipe(**{**RECIPE, **(recipe or {})})
    return further_train(small.task, small.train, small.queries, recipe, store_dir=store, **arguments)


def assert_same_bits(a, b):
    for name in ("measures", "full", "distances"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.points, a.seeds, a.left_out, a.query_ids, a.eps) == (b.points, b.seeds, b.left_out, b.query_ids, b.eps)


@pytest.fixture
def jobs(monkeypatch):
    """Every job that is trained, and a switch that interrupts the n-th."""
    seen, stop = [], {"at": None}

    def watched(name, run):
        def watch(job):
            if stop["at"] is not None and len(seen) >= stop["at"]:
                raise KeyboardInterrupt
            seen.append((name, job.seed, torch.get_num_threads()))
            return run(job)

        return watch

    for name, run in list(INLINE.items()):
        monkeypatch.setitem(INLINE, name, watched(name, run))
    seen_and_stop = type("Jobs", (), {"seen": seen, "stop": stop})
    return seen_and_stop


def shards(store):
    return sorted(store.glob("seed-*.safetensors"))


def test_a_store_changes_no_bit(tmp_path):
    assert_same_bits(gold_of(tmp_path / "store"), gold_of())
    assert ShardStore.existing(tmp_path / "store").complete


@pytest.mark.parametrize("engine", ["stacked", "loop"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_resumed_is_uninterrupted_bit_by_bit(tmp_path, jobs, engine, at):
    store = tmp_path / "store"
    jobs.stop["at"] = at
    with pytest.raises(KeyboardInterrupt):
        gold_of(store, engine=engine)
    assert len(shards(store)) == at
    jobs.stop["at"] = None
    resumed = gold_of(store, engine="auto")
    assert [seed for _, seed, _ in jobs.seen] == [0, 1, 2, 3]  # nothing twice
    assert_same_bits(resumed, gold_of(tmp_path / "whole", engine=engine))
    for one in shards(store):
        assert one.read_bytes() == (tmp_path / "whole" / one.name).read_bytes()


def test_ragged_sets_are_stored_by_their_number_of_batches(tmp_path):
    from whence.data import LeftOutSets

    small = mlp_regression(13)  # 13 = 1 mod 4
    sets = LeftOutSets.groups([[0], [1, 2], [3], [4, 5, 6, 7, 8], [9, 10]])
    found = gold_of(tmp_path / "store", small, left_out=sets)
    assert_same_bits(found, gold_of(None, small, left_out=sets))
    assert_same_bits(gold_of(tmp_path / "store", small, left_out=sets), found)
    assert len(shards(tmp_path / "store")) == 4 * 3  # seeds x (4, 3 or 2 batches in an epoch)


def test_a_complete_store_is_read_and_nothing_is_trained(tmp_path, jobs):
    first = gold_of(tmp_path / "store")
    jobs.seen.clear()
    assert_same_bits(gold_of(tmp_path / "store"), first)
    assert_same_bits(gold_of(tmp_path / "store", engine="auto"), first)
    assert jobs.seen == []


def test_engine_and_threads_are_those_of_the_first_start(tmp_path, jobs):
    """Another thread count, and an engine that a probe might choose: neither is asked again."""
    jobs.stop["at"] = 2
    with limited_threads(1), pytest.raises(KeyboardInterrupt):
        gold_of(tmp_path / "store", engine="loop")
    jobs.stop["at"] = None
    jobs.seen.clear()
    with limited_threads(2):
        resumed = gold_of(tmp_path / "store", engine="auto")
        assert torch.get_num_threads() == 2
    assert jobs.seen == [("loop", 2, 1), ("loop", 3, 1)]
    assert (resumed.execution.engine, resumed.execution.threads) == ("loop", 1)
    with limited_threads(1):
        assert_same_bits(resumed, gold_of(engine="loop"))


def reordered(small):
    order = [1, 0, *range(2, 14)]
    return type(small)(small.task, small.train.subset(order), small.queries)


def relabelled(small):
    x, y = small.queries.all()
    return type(small)(small.task, small.train, small.queries.replace((x, y + 1)))


def renamed(small):
    return type(small)(small.task, Examples(small.train.all(), ids=[f"t{k}" for k in range(14)]), small.queries)


CHANGES = {
    "recipe.lr: stored 0.05, asked 0.1": {"recipe": {"lr": 0.1}},
    "recipe.epochs: stored 3, asked 4": {"recipe": {"epochs": 4}},
    'recipe.optimizer: stored "sgd", asked "adam"': {"recipe": {"optimizer": "adam", "momentum": 0.0}},
    'recipe.sampler: stored "same_order", asked "down_weight"': {"recipe": {"sampler": "down_weight"}},
    "seeds: stored [0,1,2,3], asked [0,1,2]": {"seeds": 3},
    "points: stored [1,3], asked [3]": {"points": [3]},
    "left_out: stored [[0]": {"left_out": [1, 2]},
    "model: stored": {"small": mlp_regression(seed=1)},
    "train: stored": {"small": reordered(SMALL)},
    "train: stored  ": {"small": renamed(SMALL)},
    "queries: stored": {"small": relabelled(SMALL)},
    'execution.engine: stored "stacked", asked "loop"': {"engine": "loop"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    store = tmp_path_factory.mktemp("finished") / "store"
    gold_of(store)
    return store


@pytest.mark.parametrize("shown", CHANGES)
def test_other_settings_are_refused_and_the_difference_named(finished, jobs, shown):
    before = {file: file.read_bytes() for file in finished.iterdir()}
    with pytest.raises(StoreMismatchError) as caught:
        gold_of(finished, **CHANGES[shown])
    assert f"settings.{shown.strip()}" in str(caught.value)
    assert {file: file.read_bytes() for file in finished.iterdir()} == before
    assert jobs.seen == []


def test_another_measure_is_refused(tmp_path):
    gold_of(tmp_path / "store", classifier(), left_out=2)
    with pytest.raises(StoreMismatchError, match=r'settings.measure: stored "loss", asked "margin"'):
        gold_of(tmp_path / "store", classifier(measure="margin"), left_out=2)


def test_a_retraining_is_another_thing(finished):
    with pytest.raises(StoreMismatchError, match=r'settings.kind: stored "further training", asked "retraining"'):
        retrain(SMALL.task, SMALL.train, SMALL.queries, Recipe(**RECIPE), kept=[[0, 1]], store_dir=finished)


@pytest.mark.parametrize("engine", ["auto", "stacked"])
def test_a_store_of_something_else_is_refused(tmp_path, engine):
    with ShardStore(tmp_path, {"lr": 1}, ["a"], description="gradients").open_or_create() as store:
        store.write("a", {"x": torch.ones(2)})
        store.finish()
    with pytest.raises(StoreError, match="something else than training runs"):
        gold_of(tmp_path, engine=engine)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_shard_is_named_and_only_it_is_computed_again(tmp_path, jobs, damage):
    store = tmp_path / "store"
    first = gold_of(store)
    bad = shards(store)[2]
    whole = bad.read_bytes()
    damage(bad)
    with pytest.raises(DamagedShardError, match=rf"{bad.name} is damaged.*`rebuild=True`"):
        gold_of(store)
    jobs.seen.clear()
    assert_same_bits(gold_of(store, rebuild=True), first)
    assert [seed for _, seed, _ in jobs.seen] == [2]
    assert bad.read_bytes() == whole
    assert ShardStore.existing(store).complete
    jobs.seen.clear()
    assert_same_bits(gold_of(store), first)
    assert jobs.seen == []


def test_a_damaged_shard_of_an_interrupted_sweep(tmp_path, jobs):
    store = tmp_path / "store"
    jobs.stop["at"] = 2
    with pytest.raises(KeyboardInterrupt):
        gold_of(store)
    jobs.stop["at"] = None
    truncate(shards(store)[0])
    with pytest.raises(DamagedShardError):
        gold_of(store)
    assert_same_bits(gold_of(store, rebuild=True), gold_of())


def test_a_lost_shard_is_computed_again(tmp_path, jobs):
    first = gold_of(tmp_path / "store")
    shards(tmp_path / "store")[1].unlink()
    jobs.seen.clear()
    assert_same_bits(gold_of(tmp_path / "store"), first)
    assert [seed for _, seed, _ in jobs.seen] == [1]


def test_rebuild_of_a_sound_store_trains_nothing(tmp_path, jobs):
    first = gold_of(tmp_path / "store")
    jobs.seen.clear()
    assert_same_bits(gold_of(tmp_path / "store", rebuild=True), first)
    assert jobs.seen == []


def test_dropout_and_clipping_resume_bit_by_bit_too(tmp_path, jobs):
    small = PROBLEMS["dropout"]()
    options = {"recipe": {"clip_norm": 0.3, "schedule": "cosine", "warmup_steps": 2}}
    jobs.stop["at"] = 2
    with pytest.raises(KeyboardInterrupt):
        gold_of(tmp_path / "store", small, **options)
    jobs.stop["at"] = None
    assert_same_bits(gold_of(tmp_path / "store", small, **options), gold_of(None, small, **options))
