"""A store refuses what it was not written for, names what is damaged, and loses nothing that was finished."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.errors import (
    DamagedShardError,
    InputError,
    StoreError,
    StoreMismatchError,
    StoreWriteError,
    UnknownNameError,
)
from whence.storage.payload import Damage, Shard, decode, encode
from whence.storage.shards import ShardStore

SETTINGS = {"recipe": {"lr": 0.03, "optimizer": "sgd"}, "seeds": 3}
NAMES = ["seed_0", "seed_1", "seed_2"]


def new_store(folder, settings=SETTINGS, names=NAMES):
    return ShardStore(folder, settings, names, description="test numbers")


def tensors(k):
    return {"x": torch.arange(6.0).reshape(2, 3) + k, "ids": torch.arange(4) * k}


@pytest.fixture
def folder(tmp_path):
    """A complete store."""
    store = new_store(tmp_path / "store").open_or_create()
    for k, name in enumerate(store.missing()):
        store.write(name, tensors(k), {"seed": k})
    store.finish()
    return tmp_path / "store"


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype
        assert_close(found[name], x, rtol=0, atol=0)


# Round trips


def test_round_trip_through_a_second_store_object(folder):
    store = ShardStore.existing(folder)
    assert store.complete
    assert store.shard_names == tuple(NAMES)
    assert store.settings == SETTINGS
    for k, name in enumerate(NAMES):
        shard = store.load(name)
        assert_same(shard.tensors, tensors(k))
        assert shard.metadata == {"seed": k}


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
DTYPES = [*FLOATS, torch.bool, torch.uint8, torch.int16, torch.int64]

tensor_names = st.text(min_size=1).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(tensor_names, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3))))
def test_every_dtype_and_shape_survives(kinds):
    written = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in kinds.items()}
    found = decode(encode(Shard(written, {}), {"shard": "a"}), {"shard": "a"})
    assert_same(found.tensors, written)


def test_views_transposes_conjugates_and_parameters_are_stored_by_value():
    x = torch.randn(4, 3, dtype=torch.complex64)
    awkward = {"row": x[1], "same": x[1], "turned": x.T, "conj": x.conj(), "p": torch.nn.Parameter(x.real.clone())}
    found = decode(encode(Shard(awkward, {}), {}), {}).tensors
    assert_same(found, {name: y.detach().resolve_conj().clone() for name, y in awkward.items()})


def test_non_finite_numbers_are_kept():
    x = torch.tensor([float("nan"), float("inf"), -0.0])
    found = decode(encode(Shard({"x": x}, {}), {}), {}).tensors["x"]
    assert_close(found, x, rtol=0, atol=0, equal_nan=True)


def test_same_tensors_give_same_bytes():
    shards = [Shard(tensors(1), {"b": 1, "a": 2}), Shard(dict(reversed(tensors(1).items())), {"a": 2, "b": 1})]
    assert encode(shards[0], {"s": "x"}) == encode(shards[1], {"s": "x"})


@pytest.mark.parametrize("bad", [torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex128)])
def test_tensors_that_cannot_be_stored_are_named(bad):
    with pytest.raises(InputError, match="bad"):
        encode(Shard({"bad": bad}, {}), {})


def test_reserved_name_and_odd_metadata_are_refused():
    with pytest.raises(InputError, match="reserved"):
        encode(Shard({"__metadata__": torch.zeros(1)}, {}), {})
    with pytest.raises(InputError, match="plain JSON"):
        encode(Shard({}, {"x": torch.zeros(1)}), {})


# Damage


@given(st.data())
def test_every_flipped_bit_is_noticed(data):
    whole = encode(Shard(tensors(1), {"seed": 1}), {"shard": "a"})
    place = data.draw(st.integers(0, 8 * len(whole) - 1))
    altered = bytearray(whole)
    altered[place // 8] ^= 1 << place % 8
    with pytest.raises(Damage):
        decode(bytes(altered), {"shard": "a"})


@given(st.data())
def test_every_truncation_is_called_one(data):
    whole = encode(Shard(tensors(1), {}), {})
    with pytest.raises(Damage, match="truncated"):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))], {})


def test_longer_files_and_zeroed_files_are_altered():
    whole = encode(Shard(tensors(1), {}), {})
    for damaged in (whole + b"\0", b"\0" * len(whole)):
        with pytest.raises(Damage, match="altered"):
            decode(damaged, {})


@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_damaged_shard_is_named_and_recomputed_alone(folder, how):
    path = folder / "seed_1.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-5] if how == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    store = new_store(folder).open_or_create()
    assert_same(store.read("seed_0"), tensors(0))
    with pytest.raises(DamagedShardError, match=rf"seed_1\.safetensors is damaged: {how}.*--rebuild"):
        store.read("seed_1")

    store = new_store(folder).open_or_create(rebuild=True)
    assert not store.complete
    assert store.missing() == ["seed_1"]
    assert (folder / "seed_1.safetensors.damaged").exists()
    store.write("seed_1", tensors(1), {"seed": 1})
    store.finish()
    assert path.read_bytes() == data
    assert new_store(folder).open_or_create().complete


def test_damage_by_an_earlier_process_is_found_before_the_manifest(tmp_path):
    store = new_store(tmp_path).open_or_create()
    for k, name in enumerate(NAMES):
        store.write(name, tensors(k))
    store.close()
    path = store.path("seed_2")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedShardError, match="seed_2"):
        new_store(tmp_path).open_or_create().finish()
    assert not (tmp_path / "manifest.json").exists()


def test_a_shard_under_another_name_or_from_another_store_is_refused(folder, tmp_path):
    os.replace(folder / "seed_0.safetensors", folder / "seed_1.safetensors")
    with pytest.raises(DamagedShardError, match="seed_1"):
        ShardStore.existing(folder).read("seed_1")
    other = new_store(tmp_path / "other", settings={"lr": 1}).open_or_create()
    (other.dir / "seed_2.safetensors").write_bytes((folder / "seed_2.safetensors").read_bytes())
    with pytest.raises(DamagedShardError, match="seed_2"):
        other.read("seed_2")


def test_manifest_lists_sizes_and_checksums(folder):
    import hashlib

    files = json.loads((folder / "manifest.json").read_text())["files"]
    for name in NAMES:
        data = (folder / f"{name}.safetensors").read_bytes()
        assert files[f"{name}.safetensors"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# Settings and folders


def test_other_settings_are_refused_with_both_values(folder):
    with pytest.raises(StoreMismatchError) as caught:
        new_store(folder, settings={"recipe": {"lr": 0.1, "optimizer": "sgd"}, "seeds": 3}).open_or_create()
    message = str(caught.value)
    assert "settings.recipe.lr: stored 0.03, asked 0.1" in message
    assert "optimizer" not in message
    assert "another folder" in message


@pytest.mark.parametrize("names, shown", [(NAMES[:2], "only there: ['seed_2']"), (NAMES[::-1], "another order")])
def test_other_shard_names_are_refused(folder, names, shown):
    with pytest.raises(StoreMismatchError) as caught:
        new_store(folder, names=names).open_or_create()
    assert shown in str(caught.value)


def test_many_differences_are_cut_short(tmp_path):
    new_store(tmp_path, settings={f"k{i}": 0 for i in range(40)}).open_or_create().close()
    with pytest.raises(StoreMismatchError, match="and 28 more"):
        new_store(tmp_path, settings={f"k{i}": 1 for i in range(40)}).open_or_create()


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        new_store(tmp_path).open_or_create()
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(StoreError, match="as a folder"):
        new_store(tmp_path / "thesis.tex").open_or_create()


@pytest.mark.parametrize(
    "plan, shown",
    [
        ('{"format": "other"}', "not written by whence"),
        ('{"format": "whence-store", "version": 99}', "version 99"),
        ('{"format": "whence-store", "version": 1}', "altered"),
        ("half a pl", "damaged"),
    ],
)
def test_a_foreign_newer_or_damaged_plan_is_refused(tmp_path, plan, shown):
    (tmp_path / "plan.json").write_text(plan)
    with pytest.raises(StoreError, match=shown):
        new_store(tmp_path).open_or_create()
    assert (tmp_path / "plan.json").read_text() == plan


def test_an_edited_plan_is_noticed(folder):
    plan = folder / "plan.json"
    plan.write_text(plan.read_text().replace("0.03", "0.04"))
    with pytest.raises(StoreError, match="altered"):
        ShardStore.existing(folder)


def test_traces_of_an_interrupted_start_are_replaced(tmp_path):
    (tmp_path / "plan.json.partial").write_text('{"for')
    (tmp_path / ".lock").write_text("1\n")
    assert new_store(tmp_path).open_or_create().missing() == NAMES


def test_existing_needs_a_store(tmp_path):
    with pytest.raises(StoreError, match="holds no store"):
        ShardStore.existing(tmp_path)


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", "A"], ["../a"], [".a"], ["a b"], [""]])
def test_shard_names_must_fit_files(tmp_path, names):
    with pytest.raises(InputError, match="hard name"):
        new_store(tmp_path, names=names)


# Order of use


def test_misuse_is_refused(tmp_path):
    store = new_store(tmp_path / "a")
    with pytest.raises(StoreError, match="open_or_create"):
        store.write("seed_0", tensors(0))
    store.open_or_create()
    with pytest.raises(UnknownNameError, match="seed_0"):
        store.write("sead_0", tensors(0))
    with pytest.raises(StoreError, match="3 of 3 shards are missing"):
        store.read("seed_0")
    store.write("seed_0", tensors(0))
    with pytest.raises(StoreError, match="already written"):
        store.write("seed_0", tensors(1))
    with pytest.raises(StoreError, match="lacks 2 of 3 shards: seed_1, seed_2"):
        store.finish()
    assert_same(store.read("seed_0"), tensors(0))


def test_a_complete_store_is_not_written_and_finishing_twice_is_harmless(folder):
    store = new_store(folder).open_or_create()
    store.finish()
    with pytest.raises(StoreError, match="complete; nothing was written"):
        store.write("seed_0", tensors(0))


def test_a_lost_shard_of_a_complete_store_is_recomputed(folder):
    os.unlink(folder / "seed_1.safetensors")
    store = new_store(folder).open_or_create()
    assert not store.complete
    assert store.missing() == ["seed_1"]
    store.write("seed_1", tensors(1), {"seed": 1})
    assert not (folder / "manifest.json").exists()
    store.finish()
    assert store.complete


# Failing disks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_failing_disk_costs_only_the_shard_in_flight(tmp_path, monkeypatch, code):
    store = new_store(tmp_path).open_or_create()
    store.write("seed_0", tensors(0))
    with monkeypatch.context() as patch:

        def failing(handle):
            raise OSError(code, os.strerror(code))

        patch.setattr(os, "fsync", failing)
        with pytest.raises(StoreWriteError, match=r"seed_1\.safetensors"):
            store.write("seed_1", tensors(1))
    assert store.missing() == ["seed_1", "seed_2"]
    assert_same(store.read("seed_0"), tensors(0))
    store.write("seed_1", tensors(1))
    assert_same(store.read("seed_1"), tensors(1))


def test_a_read_only_place_is_named_at_the_start(tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(StoreWriteError, match="read-only"):
        new_store(tmp_path / "a").open_or_create()


# Two processes


def test_a_second_writer_is_told_who_writes(tmp_path):
    store = new_store(tmp_path).open_or_create()
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()} \\(this one"):
        new_store(tmp_path).open_or_create()
    script = f"""
from whence.storage.lock import FolderLock
from whence.errors import StoreError
from pathlib import Path
try:
    FolderLock(Path({str(tmp_path / ".lock")!r})).acquire()
except StoreError as error:
    print(error)
"""
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"in use by process {os.getpid()}." in second.stdout
    store.close()
    assert new_store(tmp_path).open_or_create().missing() == NAMES


def test_the_lock_goes_with_the_object(tmp_path):
    store = new_store(tmp_path).open_or_create()
    del store
    new_store(tmp_path).open_or_create()


def test_complete_stores_have_many_readers(folder):
    stores = [new_store(folder).open_or_create() for _ in range(3)]
    assert all(store.complete for store in stores)


def test_platforms_without_locks_go_on(tmp_path, monkeypatch):
    import whence.storage.lock

    monkeypatch.setattr(whence.storage.lock, "_fcntl", None)
    store = new_store(tmp_path).open_or_create()
    store.write("seed_0", tensors(0))
    assert_same(store.read("seed_0"), tensors(0))
