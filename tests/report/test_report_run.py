"""`whence report`: a page from whatever a run folder holds, with a word on what is missing or damaged."""

import json
import re
import shutil

import pytest

from whence.errors import StoreError, UnknownNameError
from whence.report.run import run_report
from whence.runs import run_agree, run_evaluate, run_gold, run_score, run_weigh

FACTORY = """
import pathlib
import torch
import whence

def build():
    if (pathlib.Path(__file__).parent / "broken").exists():
        raise OSError("the data is gone")
    torch.manual_seed(0)
    x, labels = torch.randn(40, 3), torch.arange(40) % 2
    x[:, 0] += 2.0 * labels
    noisy = labels.clone()
    noisy[:3] = 1 - noisy[:3]
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).eval()
    task = whence.Task.classification(model)
    train = whence.Examples((x[:20], noisy[:20]), ids=[f"<b>row {k}</b>" for k in range(20)], name="rows")
    part = lambda a, b: whence.Examples((x[a:b], labels[a:b]))
    return whence.Setup(task, train, part(20, 26), learning_queries=part(26, 40), clean=labels[:20])
"""
CONFIG = """
name = "tiny <run>"
task.factory = "factory.py:build"
recipe = {lr = 0.05, batch_size = 10, epochs = 2}
gold = {left_out = 6, seeds = 2, engine = "loop"}
score.methods = ["grad_dot", "horizon", "random"]
agree = {metrics = ["pearson"], n_bootstrap = 20}
weigh.k = 3

[evaluate]
kept_sets = 6
engine = "loop"
n_bootstrap = 20
recipe = {lr = 0.1, batch_size = 10, epochs = 3}
"""
COMMANDS = (run_gold, run_score, run_agree, run_weigh, run_evaluate)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, computed once for the tests that copy it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "factory.py").write_text(FACTORY)
    (folder / "tiny.toml").write_text(CONFIG)
    for command in COMMANDS:
        command(folder / "tiny.toml", folder / "run")
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the whole run with a factory of its own."""
    shutil.copy(finished / "factory.py", tmp_path)
    shutil.copytree(finished / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(finished), str(tmp_path)))
    return tmp_path / "run"


def page(path):
    """What the page was made from, and the whole file."""
    html = path.read_text("utf-8")
    data = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    return json.loads(data[1]), html


def test_a_whole_run_is_shown_without_a_word_on_missing_parts(run):
    path = run_report(run)
    assert path == run / "report.html"
    data, html = page(path)
    text = json.dumps(data, ensure_ascii=False)
    # `horizon` or `grad_dot` agrees best, never `random`.
    assert "tiny <run>: random" not in text
    for shown in ("grad_dot, learned", "0.bias", "2.weight", "6 kept sets of 0.5 of the data", "whence evaluate"):
        assert shown in text, shown
    for wrong in ("damaged", "has no", "Run `whence"):
        assert wrong not in text, wrong
    assert "<b>row" not in html


AUDIT = {
    "candidates": [
        {"candidate": "unrolled", "choice": 0.5, "verdict": 0.625, "seconds": 2.0, "peak_mb": None, "note": ""},
        {"candidate": "broken", "choice": None, "verdict": None, "seconds": None, "peak_mb": None, "note": "why"},
    ],
    "summary": "Use unrolled.\nIt is slow.",
}


def test_an_audit_is_shown_and_a_damaged_one_is_said(run):
    place = run / "audit"
    place.mkdir()
    (place / "audit.json").write_text(json.dumps(AUDIT))
    text = json.dumps(page(run_report(run, methods=["grad_dot"]))[0], ensure_ascii=False)
    for shown in ("Use unrolled.", "It is slow.", "unrolled", "0.625", "broken", "whence audit"):
        assert shown in text, shown
    (place / "audit.json").write_text("[]")
    text = json.dumps(page(run_report(run, methods=["grad_dot"]))[0], ensure_ascii=False)
    assert "audit.json is damaged" in text
    assert "Use unrolled." not in text


def test_methods_are_shown_as_asked(run):
    data, _ = page(run_report(run, methods=["random", "grad_dot"]))
    text = json.dumps(data)
    assert text.index("tiny <run>: random") < text.index("tiny <run>: grad_dot")
    with pytest.raises(UnknownNameError, match="Did you mean 'grad_dot'"):
        run_report(run, methods=["grad_dott"])


@pytest.mark.parametrize(
    "part, shown",
    [
        ("summary.json", "has no agreement yet. Run `whence gold` and `whence agree` first."),
        ("weights", "has no weights of parameter groups"),
        ("evaluation", "holds no finished evaluation. Run `whence evaluate` first."),
        ("scores", "holds no finished scores. Run `whence score` first."),
    ],
)
def test_a_missing_part_is_said(run, part, shown):
    target = run / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    data, _ = page(run_report(run, methods=["grad_dot"]))
    assert shown in json.dumps(data, ensure_ascii=False)


@pytest.mark.parametrize(
    "part, shown",
    [
        ("summary.json", "summary.json is damaged"),
        ("history.json", "history.json is damaged"),
        ("problem.json", "Examples are shown by their ids only"),
        ("weights/grad_dot/learned.json", "is truncated, altered or gone"),
        ("weights/grad_dot/manifest.json", "is damaged"),
        ("evaluation/suspects.parquet", "is truncated, altered or gone"),
        ("scores/grad_dot/scores.safetensors", "is truncated, altered or gone"),
        ("scores/grad_dot/manifest.json", "is damaged"),
        ("gold/manifest.json", "is damaged"),
    ],
)
def test_a_damaged_part_is_said_and_the_rest_is_shown(run, part, shown):
    (run / part).write_bytes((run / part).read_bytes()[:7])
    data, _ = page(run_report(run, methods=["grad_dot"]))
    text = json.dumps(data, ensure_ascii=False)
    assert shown in text
    assert "tiny <run>: grad_dot" in text


def test_numbers_of_other_scores_are_not_shown(run):
    path = run / "scores" / "random" / "manifest.json"
    path.write_text(path.read_text().replace('"top": 10', '"top": 99'))
    text = json.dumps(page(run_report(run, methods=["grad_dot"]))[0])
    assert "Scores or gold standard have changed since the agreement." in text
    assert "Scores or weights have changed since the evaluation." in text
    assert "6 kept sets of 0.5 of the data" not in text  # the weights themselves are still those that were learned


def test_a_broken_factory_leaves_ids(run):
    (run.parent / "broken").touch()
    text = json.dumps(page(run_report(run))[0])
    assert "Examples are shown by their ids only" in text
    assert "the data is gone" in text
    assert "<b>row 1</b>" in text


def test_a_report_needs_a_run(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="holds no run yet"):
        run_report(finished / "tiny.toml")
    assert list(tmp_path.iterdir()) == []
