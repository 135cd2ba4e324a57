"""A file is whole or absent, and what was there before survives every failure."""

import errno
import os

import pytest

from whence.errors import InputError, StoreError, StoreWriteError
from whence.storage.atomic import make_dir, read_json, write_atomic, write_json


def fail_with(code):
    def failing(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return failing


def test_writes_bytes_and_writer_functions(tmp_path):
    write_atomic(tmp_path / "a", b"one")
    write_atomic(tmp_path / "b", lambda file: file.write(b"two"))
    assert (tmp_path / "a").read_bytes() == b"one"
    assert (tmp_path / "b").read_bytes() == b"two"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_replaces_old_content_and_a_stale_partial(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a.partial").write_bytes(b"half of something much longer")
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "code, advice",
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "Repeat the same command"),
    ],
)
def test_refusals_of_the_system_name_path_cause_and_remedy(tmp_path, monkeypatch, call, code, advice):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, fail_with(code))
    with pytest.raises(StoreWriteError) as caught:
        write_atomic(path, b"new")
    message = str(caught.value)
    assert str(path) in message
    assert os.strerror(code) in message
    assert advice in message
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_no_space_in_the_middle_of_the_content(tmp_path):
    def writer(file):
        file.write(b"x" * 10_000)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreWriteError, match="No space left"):
        write_atomic(tmp_path / "a", writer)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device without space")
def test_a_device_that_is_really_full(tmp_path):
    (tmp_path / "a.partial").symlink_to("/dev/full")
    with pytest.raises(StoreWriteError, match="Free some space"):
        write_atomic(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_writer_keeps_the_old_file_and_its_own_error(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")

    def writer(file):
        file.write(b"ne")
        raise error

    with pytest.raises(error):
        write_atomic(tmp_path / "a", writer)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_absent_or_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreWriteError, match="No such file"):
        write_atomic(tmp_path / "absent" / "a", b"")
    with pytest.raises(StoreWriteError, match="Cannot write"):
        make_dir(tmp_path / "file" / "dir")


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"ü": "ж"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(read_json(tmp_path / "x.json")) == ["b", "a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x"])
def test_what_is_not_json_is_refused_before_writing(tmp_path, value):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="plain JSON"):
        write_json(tmp_path / "x.json", {"x": value})
    assert (tmp_path / "x.json").read_text() == "{}"


def test_damaged_or_absent_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(StoreError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")
    with pytest.raises(StoreError, match=r"Cannot read .*absent\.json"):
        read_json(tmp_path / "absent.json")
