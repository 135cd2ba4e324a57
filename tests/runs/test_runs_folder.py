"""A run folder continues with its own settings, refuses others, and repeats from its own config.toml."""

import dataclasses
import datetime
import errno
import json
import os

import pytest

from whence.errors import ConfigError, InputError, StoreError, StoreMismatchError, StoreWriteError
from whence.runs.config import RecipeConfig, RunConfig, TaskConfig, load_config
from whence.runs.folder import RunFolder
from whence.runs.machine import machine

CONFIG = RunConfig("my run: 1", TaskConfig("pkg.mod:build", {"n": 3}), RecipeConfig(0.03, 128, epochs=50))


def changed(table, **values):
    return dataclasses.replace(CONFIG, **{table: dataclasses.replace(getattr(CONFIG, table), **values)})


def test_the_first_start_writes_everything_and_the_second_changes_nothing(tmp_path):
    folder = tmp_path / "a" / "run"
    run = RunFolder.open(folder, CONFIG)
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    assert set(before) == {"run.json", "config.toml"}
    assert json.loads(before["run.json"])["machine"] == machine()
    assert run.config == CONFIG
    assert RunFolder.open(folder, CONFIG).config == CONFIG
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_a_folder_and_its_configuration_replay(tmp_path):
    folder = tmp_path / "run"
    RunFolder.open(folder, CONFIG)
    for source in (folder, folder / "config.toml"):
        assert load_config(source) == CONFIG
        assert RunFolder.existing(source).config == CONFIG
        run = RunFolder.resolve(source)
        assert (run.path, run.config) == (folder, CONFIG)
    copy = RunFolder.resolve(folder, tmp_path / "copy")
    assert (copy.path, copy.config) == (tmp_path / "copy", CONFIG)


def test_other_settings_are_refused_with_what_depends_on_them(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(StoreMismatchError) as caught:
        RunFolder.open(tmp_path, changed("gold", seeds=10, left_out_indices=(1, 2)))
    message = str(caught.value)
    assert "gold.seeds: stored 5, asked 10" in message
    assert "gold.left_out_indices: stored [], asked [1,2]" in message
    assert "recipe" not in message
    assert "no longer match: gold, agreement, audit, report." in message
    assert "another folder" in message
    everything = "match: gold, scores, agreement, weights, retraining, evaluation, audit, report"
    with pytest.raises(StoreMismatchError, match=everything):
        RunFolder.open(tmp_path, changed("recipe", lr=0.1))
    with pytest.raises(StoreMismatchError, match="match: scores, agreement, evaluation, report"):
        RunFolder.open(tmp_path, changed("score", top=3))
    with pytest.raises(StoreMismatchError, match="match: weights, evaluation, report"):
        RunFolder.open(tmp_path, changed("weigh", k=3))
    with pytest.raises(StoreMismatchError, match="match: retraining, evaluation, report"):
        RunFolder.open(tmp_path, changed("evaluate", seeds=3))
    with pytest.raises(StoreMismatchError, match="match: audit, report"):
        RunFolder.open(tmp_path, changed("audit", seconds=9.0))
    assert load_config(tmp_path) == CONFIG


def test_an_amount_given_in_another_unit_is_another_setting(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(StoreMismatchError, match=r"recipe\.epochs: stored 50, asked \(nothing\)"):
        RunFolder.open(tmp_path, changed("recipe", epochs=None, steps=50))


def test_options_may_be_all_that_toml_holds(tmp_path):
    options = {"day": datetime.date(2024, 2, 29), "bound": float("inf"), "sizes": (1, 2), "deep": {"a": [True]}}
    config = changed("task", options=options)
    RunFolder.open(tmp_path, config)
    assert RunFolder.open(tmp_path, config).config == config
    with pytest.raises(StoreMismatchError, match=r'task\.options\.bound: stored "inf", asked 3'):
        RunFolder.open(tmp_path, changed("task", options=options | {"bound": 3}))


def test_an_interrupted_start_is_started_again(tmp_path):
    (tmp_path / "run.json.partial").write_text("{")
    RunFolder.open(tmp_path, CONFIG)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml.partial").write_text("name = ")
    other = changed("recipe", lr=0.1)
    assert RunFolder.open(tmp_path, other).config == other
    assert load_config(tmp_path) == other
    assert sorted(os.listdir(tmp_path)) == ["config.toml", "run.json"]


def test_folders_with_other_things_are_refused_and_left_alone(tmp_path):
    (tmp_path / "config.toml").write_text("mine")
    with pytest.raises(StoreError, match=r"not a run folder and holds config\.toml"):
        RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(StoreError, match="not a run folder"):
        RunFolder.existing(tmp_path)
    assert os.listdir(tmp_path) == ["config.toml"]
    with pytest.raises(StoreError, match="as a folder"):
        RunFolder.open(tmp_path / "config.toml", CONFIG)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StoreError, match="not written by whence"):
        RunFolder.open(tmp_path, CONFIG)
    (tmp_path / "run.json").write_text('{"format": "whence-run", "version": 9}')
    with pytest.raises(StoreError, match="version 9"):
        RunFolder.existing(tmp_path)


def test_no_space_leaves_no_half_run(tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def failing(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StoreWriteError, match="Free some space"):
            RunFolder.open(folder, CONFIG)
    assert os.listdir(folder) == []
    RunFolder.open(folder, CONFIG)


def test_a_new_file_runs_below_runs_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.py").write_text("def build(): ...")
    (tmp_path / "energy.toml").write_text(
        'name = "UCI Energy / 1"\ntask.factory = "tasks.py:build"\nrecipe = {lr = 1, batch_size = 2, epochs = 3}\n'
    )
    run = RunFolder.resolve("energy.toml")
    assert run.path.resolve() == tmp_path / "runs" / "UCI-Energy-1"
    assert RunFolder.resolve("energy.toml").config == run.config
    assert RunFolder.resolve(run.path).config.task.factory == f"{tmp_path / 'tasks.py'}:build"
    with pytest.raises(ConfigError, match="folder without a run"):
        RunFolder.resolve(tmp_path)


def test_a_file_factory_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunFolder.open("run", dataclasses.replace(CONFIG, task=TaskConfig("tasks.py:build")))
    assert run.config.task.factory == f"{tmp_path / 'tasks.py'}:build"


def test_every_part_has_its_place(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    assert run.config_path() == tmp_path / "config.toml"
    assert run.gold_dir() == tmp_path / "gold"
    assert run.scores_dir("grad_dot") == tmp_path / "scores" / "grad_dot"
    assert run.agreement_path() == tmp_path / "agreement.parquet"
    assert run.summary_path() == tmp_path / "summary.json"
    assert run.report_path() == tmp_path / "report.html"
    assert run.scored_methods() == []
    run.scores_dir("trak").mkdir(parents=True)
    assert run.scored_methods() == ["trak"]
    with pytest.raises(InputError, match="not fit"):
        run.scores_dir("../elsewhere")


def test_machine_facts_are_plain_and_there():
    facts = machine()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]
    assert facts["cores"] >= facts["cores_usable"] >= 1
    assert facts["threads"] >= 1
