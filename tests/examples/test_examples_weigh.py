"""The example of weights of parameter groups runs as it stands, and its weights can be scored with."""

import shutil
from pathlib import Path

import pytest

import whence.progress
from whence.cli import main
from whence.scores import ScoreMatrix
from whence.storage import read_json
from whence.task import GroupWeights

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the example, as working directory."""
    for name in ("weigh.py", "weigh.toml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(whence.progress, "_asked", None)
    return tmp_path


def test_weights_are_learned_judged_shown_and_taken_back(folder, capsys):
    assert main(["weigh", "weigh.toml", "--progress", "silent"]) == 0
    printed = capsys.readouterr().out
    for shown in ("0.weight", "5.bias", "few_shot", "Guard: ", "in memory", "Likeness of two of 5 folds"):
        assert shown in printed, shown
    for command in ("score", "evaluate", "report"):
        assert main([command, "weigh.toml", "--quiet"]) == 0
    run = folder / "runs" / "weigh"
    evaluation = read_json(run / "evaluation" / "evaluation.json")
    assert {"grad_dot", "grad_dot, rms", "grad_dot, learned", "grad_dot, few_shot"} == set(evaluation["lds"])
    assert evaluation["lds"]["grad_dot, few_shot"][0] > 0.1  # scores know something, with any of these weights
    assert "Rank by these groups alone" in (run / "report.html").read_text("utf-8")

    learned = next(line for line in printed.splitlines() if line.startswith("To score with them: ")).split(": ", 1)[1]
    table, setting = learned.split("] ", 1)
    text = (
        (folder / "weigh.toml")
        .read_text()
        .replace('name = "weigh"', 'name = "again"')
        .replace("[weigh]", f"{table}]\n{setting}\n\n[weigh]")
    )
    (folder / "again.toml").write_text(text)
    assert main(["score", "again.toml", "--quiet"]) == 0
    scores = ScoreMatrix.load(folder / "runs" / "again" / "scores" / "grad_dot" / "scores.safetensors")
    weights = GroupWeights.load(run / "weights" / "grad_dot" / "learned.json")
    assert scores.provenance["weights"]["values"] == weights.by_name()
