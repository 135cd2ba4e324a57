"""Every example runs as it stands, and its answers make sense."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import whence
import whence.progress
from whence.cli import main
from whence.scores import ScoreMatrix
from whence.storage import read_json

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the examples, as working directory."""
    for path in EXAMPLES.iterdir():
        if path.suffix in (".py", ".toml"):
            shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(whence.progress, "_asked", None)
    return tmp_path


def code_lines(source):
    """Lines that are neither blank, nor a comment, nor part of a docstring."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return [line for k, line in lines if line.strip() and not line.strip().startswith("#") and k not in docstrings]


def test_own_model_is_25_lines_from_imports_to_a_report():
    assert len(code_lines((EXAMPLES / "own_model.py").read_text())) == 25


def test_own_model_writes_its_report(folder):
    subprocess.run([sys.executable, "own_model.py"], check=True, capture_output=True, timeout=120)
    page = (folder / "report.html").read_text()
    assert "English or Italian?" in page
    assert "fratello" in page


def test_the_planted_duplicate_of_a_query_supports_it_most(folder):
    spec = importlib.util.spec_from_file_location("own_model", folder / "own_model.py")
    own_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own_model)
    task, train, queries = own_model.build()
    best = whence.attribute(task, train, queries, method="influence_gn").top(1).set_index("query")
    assert best.loc[0, "train"] == "window"  # query 0 is "window", and so is a train example
    assert best.loc[0, "share"] > 2 * best.loc[[1, 2], "share"].max()


def test_own_model_runs_from_toml(folder):
    for command in ("gold", "score", "agree", "evaluate", "report"):
        assert main([command, "own_model.toml", "--quiet"]) == 0
    run = folder / "runs" / "own-model"
    scores = ScoreMatrix.load(run / "scores" / "influence_gn" / "scores.safetensors")
    assert scores.top(1)["train"][0] == "window"
    summary = read_json(run / "summary.json")
    short = {method: values["1"][0] for method, values in summary["agreement"]["cosine"].items()}
    # After little further training the linearised methods are nearly exact, and random scores know nothing.
    assert short["horizon_ahead"] > 0.9
    assert abs(short["random"]) < 0.6
    assert summary["ceiling"]["pearson"]["1"][0] > 0.9
    evaluation = read_json(run / "evaluation" / "evaluation.json")
    assert evaluation["lds"]["influence_gn"][0] > evaluation["lds"]["random"][0]
    assert "mislabel_auc" in evaluation["skipped"]  # nothing is known of wrong labels
    assert "fratello" in (run / "report.html").read_text()
