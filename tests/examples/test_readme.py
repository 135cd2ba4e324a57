"""What the README shows runs."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[2] / "README.md"


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    code = "".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.S))
    monkeypatch.setattr("whence.studies.audit.pilot.MOST_SEEDS", 2)  # or it would use its two minutes
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(130, 2, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).eval()
    names = {"model": model, "train_set": (x[:110], y[:110]), "query_set": (x[110:118], y[110:118])}
    names["learning_set"] = (x[118:], y[118:])
    exec(compile(code, str(README), "exec"), names)
    assert (tmp_path / "scores.parquet").is_file()
    assert names["found"].verdict()[0] > 0.9
    assert names["scores"].shape == (8, 110)
    assert set(names["judged"].table["name"]) == {"plain", "weighted"}
    assert names["judged"].table["value"].between(-1, 1).all()
    table = names["whence"].agreement(names["by_amount"], names["gold"].outcomes(), n_bootstrap=20).table
    assert (table[table["metric"] == "pearson"]["value"] > 0.9).all()  # a net this small is nearly linear
