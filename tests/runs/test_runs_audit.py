"""whence audit: kept once, its settings score with the winner."""

import json

import pytest

from whence.errors import ConfigError, StoreMismatchError
from whence.runs import load_config, run_audit, run_score, run_weigh
from whence.storage import read_json
from whence.studies.audit import Candidate, pilot

FACTORY = """
import torch
import whence

def build():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(44, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double().eval()
    task = whence.Task.regression(model)
    return task, whence.Examples((x[:40], y[:40])), whence.Examples((x[40:], y[40:]))
"""
CONFIG = """
name = "tiny"
task.factory = "factory.py:build"
recipe = {lr = 0.05, batch_size = 10, epochs = 2}
audit.seconds = 60
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(pilot, "MOST_SEEDS", 3)  # or every audit would use its time
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factory.py").write_text(FACTORY)
    (tmp_path / "tiny.toml").write_text(CONFIG)
    return tmp_path


def test_an_audit_is_kept_and_its_winner_can_be_scored_with(project, monkeypatch):
    first = run_audit("tiny.toml")
    assert first.computed
    assert first.summary == read_json(first.summary_path)
    config = load_config(first.config_path)
    assert config.name == "tiny, audited"
    assert list(config.score.methods) == first.summary["winner"]["score"]["methods"]
    scored = run_score(first.config_path, "scored")
    assert list(scored.computed) == list(config.score.methods)
    assert [entry["step"] for entry in json.loads((first.folder / "history.json").read_text())] == ["audit"]
    monkeypatch.setattr("whence.runs.audit.audit", lambda *a, **k: pytest.fail("audited again"))
    again = run_audit("runs/tiny")
    assert (again.computed, again.summary) == (False, first.summary)


def test_an_interrupted_audit_is_made_again_from_its_pilot(project):
    first = run_audit("tiny.toml")
    first.summary_path.unlink()
    stored = sorted((first.folder / "audit" / "pilot").rglob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in stored]
    assert run_audit("tiny.toml").computed
    assert [path.stat().st_mtime_ns for path in stored] == before


def test_a_winner_with_weights_is_written_with_both_tables(project, monkeypatch):
    only = (Candidate("grad_dot, rms", "grad_dot", weights="rms"),)
    monkeypatch.setattr("whence.studies.audit.run.default_candidates", lambda recipe: only)
    factory = FACTORY.replace(
        "whence.Examples((x[40:], y[40:]))", "whence.Examples((x[40:], y[40:])), whence.Examples((-x[:9], y[:9]))"
    )
    factory = factory.replace("    return task, ", "    return whence.Setup(task, ").rstrip() + ")\n"
    (project / "factory.py").write_text(factory)
    found = run_audit("tiny.toml")
    assert found.summary["winner"]["weights"] == "rms"
    assert "weights/grad_dot/rms-top.parquet" in found.summary["summary"]
    config = load_config(found.config_path)
    assert (config.score.methods, config.weigh.methods) == (("grad_dot",), ("grad_dot",))
    assert list(run_weigh(found.config_path, "weighed").weights["grad_dot"]) == ["rms", "learned"]


def test_other_settings_need_another_folder(project):
    run_audit("tiny.toml")
    (project / "tiny.toml").write_text(CONFIG.replace("seconds = 60", "seconds = 61"))
    with pytest.raises(StoreMismatchError, match=r"no longer match: audit, report"):
        run_audit("tiny.toml")
    (project / "bad.toml").write_text(CONFIG.replace("seconds = 60", 'metric = "kendal"'))
    with pytest.raises(ConfigError, match="kendal"):
        run_audit("bad.toml")
