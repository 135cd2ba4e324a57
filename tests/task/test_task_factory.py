"""One implementation of factories, for configurations and for worker processes. More cases: tests/runs."""

import pytest

import whence.runs.config
import whence.task.factory
from whence.errors import ConfigError
from whence.task import Task
from whence.task.factory import import_factory
from whence.testing.problems import SmallProblem


def test_configurations_use_the_same_function():
    assert whence.runs.config.import_factory is whence.task.factory.import_factory


def test_a_module_of_the_package():
    problem = import_factory("whence.testing.problems:mlp_regression")(n_train=5)
    assert isinstance(problem, SmallProblem)
    assert isinstance(import_factory("whence.testing.problems:lambda_task")(), Task)


def test_a_relative_file_starts_from_the_base(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    for folder in ("here", "there"):
        (tmp_path / folder / "own.py").write_text(f"def build():\n    return {folder!r}\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert import_factory("own.py:build")() == "here"
    assert import_factory("own.py:build", tmp_path / "there")() == "there"
    assert import_factory(f"{tmp_path}/here/own.py:build", tmp_path / "there")() == "here"


def test_two_files_of_one_name_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", ["/nowhere"])
    made = []
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "own.py").write_text("class Net:\n    pass\n")
        made.append(import_factory(f"{tmp_path}/{k}/own.py:Net"))
    assert made[0].__module__ != made[1].__module__


@pytest.mark.parametrize("factory", ["pkg.mod", "pkg.mod:", ":build", "pkg.mod:a b"])
def test_text_that_is_no_factory(factory):
    with pytest.raises(ConfigError, match=r"'package.module:name' or 'path/to/file.py:name'"):
        import_factory(factory)


def test_a_name_that_is_nearly_there():
    with pytest.raises(ConfigError, match=r"has no `mlp_regresion`\. Did you mean `mlp_regression`\?"):
        import_factory("whence.testing.problems:mlp_regresion")


def test_what_is_not_callable():
    with pytest.raises(ConfigError, match="`DTYPE` is a dtype, not callable"):
        import_factory("whence.testing.problems:DTYPE")
