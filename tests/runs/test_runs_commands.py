"""gold, score, agree: a run is computed once, continues, repeats from its own folder, and refuses what does not fit."""

import os
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

import whence
from whence.algebra import Damping
from whence.errors import ConfigError, DamagedShardError, StoreError, StoreMismatchError
from whence.runs import run_agree, run_gold, run_score
from whence.runs.config import RunConfig, TaskConfig, load_toml
from whence.runs.folder import RunFolder
from whence.runs.gold import left_out_sets
from whence.runs.options import method_options
from whence.runs.start import build, read_config
from whence.scores import ScoreMatrix
from whence.storage import read_json

FACTORY = """
import pathlib
import torch
import whence

HERE = pathlib.Path(__file__).parent

def build(n=14, seed=0):
    (HERE / "built").touch()
    seed += len((HERE / "other").read_text()) if (HERE / "other").exists() else 0
    torch.manual_seed(seed)
    x = torch.randn(n + 4, 3, dtype=torch.float64)
    y = torch.tanh(x @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64))[:, None] + 0.1 * torch.randn(n + 4, 1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double().eval()
    task = whence.Task.regression(model)
    return task, whence.Examples((x[:n], y[:n])), whence.Examples((x[n:], y[n:]), ids=["a", "b", "c", "d"])
"""
CONFIG = """
name = "tiny"
task.factory = "factory.py:build"
recipe = {lr = 0.05, batch_size = 4, epochs = 3}
gold = {left_out = 5, seeds = 3, points = [1, 3], engine = "loop"}

[score]
methods = ["grad_dot", "influence_gn", "horizon_ahead"]
options.influence_gn.damping = {value = 0.5, unit = "relative"}
top = 2

[agree]
metrics = ["cosine", "pearson"]
n_bootstrap = 50
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a factory and a TOML file, as working directory."""
    (tmp_path / "factory.py").write_text(FACTORY)
    (tmp_path / "tiny.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, computed once for the tests that copy it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "factory.py").write_text(FACTORY)
    (folder / "tiny.toml").write_text(CONFIG)
    for command in (run_gold, run_score, run_agree):
        command(folder / "tiny.toml", folder / "run")
    return folder


@pytest.fixture
def done(finished, tmp_path, monkeypatch):
    """A copy of the whole run; its factory stays where it was."""
    shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# A whole run


def test_a_run_is_computed_once_and_holds_what_python_gives(project):
    gold = run_gold("tiny.toml")
    score = run_score("tiny.toml")
    agree = run_agree("tiny.toml")
    assert (gold.folder, gold.store) == (gold.folder, gold.folder / "gold")
    assert str(gold.folder) == os.path.join("runs", "tiny")
    assert (gold.n_seeds, gold.n_sets, gold.n_query, gold.points, gold.engine) == (3, 5, 4, (1, 3), "loop")
    assert score.computed == ("grad_dot", "influence_gn", "horizon_ahead")
    assert agree.computed

    config = read_config("tiny.toml")
    setup = build(config.task, whence.runs.config.import_factory(config.task.factory))
    task, train, queries = setup.task, setup.train, setup.queries
    reference = whence.further_train(
        task, train, queries, config.recipe, left_out=5, seeds=3, points=[1, 3], engine="loop"
    )
    expected = {
        "grad_dot": whence.attribute(task, train, queries, "grad_dot"),
        "influence_gn": whence.attribute(task, train, queries, "influence_gn", damping=Damping.relative(0.5)),
        "horizon_ahead": whence.attribute(task, train, queries, "horizon_ahead", recipe=config.recipe, at=[1, 3]),
    }
    stored = ScoreMatrix.load(score.stores["influence_gn"] / "scores.safetensors")
    assert_close(stored.values, expected["influence_gn"].values, rtol=0, atol=0)
    stored = ScoreMatrix.load(score.stores["horizon_ahead"] / "amount-3.safetensors")
    assert_close(stored.values, expected["horizon_ahead"][3].values, rtol=0, atol=0)
    top = pd.read_parquet(score.stores["horizon_ahead"] / "amount-3-top.parquet")
    supporters = top[top["sign"] == "supports"].drop(columns="sign").reset_index(drop=True)
    pd.testing.assert_frame_equal(supporters, expected["horizon_ahead"][3].top(2))

    outcomes = reference.outcomes()
    for name, scores in expected.items():
        found = whence.agreement(scores, outcomes, metrics=["cosine", "pearson"], n_bootstrap=50)
        for metric in ("cosine", "pearson"):
            curve = {str(point): values for point, values in found.to_dict(metric)[name].items()}
            assert agree.summary["agreement"][metric][name] == curve
        rows = agree.table[agree.table["method"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, found.table)
    ceiling = whence.reliability(outcomes, "pearson").ceiling()
    assert {int(p): v[0] for p, v in agree.summary["ceiling"]["pearson"].items()} == ceiling
    assert read_json(agree.summary_path) == agree.summary


def test_the_same_commands_again_compute_nothing(done):
    before = times(done)
    assert run_gold(done).n_seeds == 3
    again = run_score(done / "config.toml")
    assert (again.computed, again.kept) == ((), ("grad_dot", "influence_gn", "horizon_ahead"))
    assert not run_agree(done).computed
    assert times(done) == before


def test_a_run_folder_repeats_elsewhere_to_the_last_bit(done, tmp_path):
    run_gold(done, tmp_path / "copy")
    run_score(done / "config.toml", tmp_path / "copy")
    for place in ("scores/horizon_ahead", "gold"):
        for path in (done / place).glob("*.safetensors"):
            assert (tmp_path / "copy" / place / path.name).read_bytes() == path.read_bytes()


def test_without_points_gold_and_scores_are_taken_at_the_end(project):
    edit(project / "tiny.toml", ", points = [1, 3]", "")
    assert run_gold("tiny.toml").points == (3,)
    names = os.listdir(run_score("tiny.toml").stores["horizon_ahead"])
    assert {name for name in names if name.endswith(".safetensors")} == {"amount-3.safetensors"}


def test_an_interrupted_method_is_scored_again_alone(done):
    (done / "scores" / "grad_dot" / "manifest.json").unlink()
    (done / "scores" / "influence_gn" / "top.parquet").unlink()
    assert run_score(done).computed == ("grad_dot", "influence_gn")
    assert run_score(done).computed == ()


def test_new_scores_are_compared_again(done):
    shutil.rmtree(done / "scores" / "grad_dot")
    with pytest.raises(StoreError, match=r"no scores of grad_dot yet.*whence score"):
        run_agree(done)
    run_score(done)
    assert not run_agree(done).computed  # the same scores again, bit for bit
    (done / "agreement.parquet").unlink()
    assert run_agree(done).computed


def test_fewer_methods_are_compared_again(done):
    edit(done / "config.toml", '    "grad_dot",\n', "")
    again = run_agree(done)
    assert again.computed
    assert list(again.summary["agreement"]["cosine"]) == ["influence_gn", "horizon_ahead"]
    assert set(again.table["method"]) == {"influence_gn", "horizon_ahead"}


# Refusals


def test_a_changed_setting_is_refused_with_what_no_longer_matches(project):
    run_score("tiny.toml")
    edit(project / "tiny.toml", "lr = 0.05", "lr = 0.5")
    with pytest.raises(StoreMismatchError) as caught:
        run_score("tiny.toml")
    assert "recipe.lr: stored 0.05, asked 0.5" in str(caught.value)
    assert "gold, scores, agreement, weights, retraining, evaluation, audit, report" in str(caught.value)


def test_an_edited_config_in_the_run_folder_is_refused_by_the_scores(done):
    edit(done / "config.toml", "value = 0.5", "value = 0.7")
    with pytest.raises(StoreMismatchError, match=r"options\.damping\.value: stored 0\.5, asked 0\.7"):
        run_score(done)


def test_a_factory_that_gives_another_model_is_refused(project):
    run_score("tiny.toml")
    (project / "other").write_text("x")
    for command in (run_score, run_gold):
        with pytest.raises(StoreMismatchError, match="same model and data every time") as caught:
            command("tiny.toml")
        assert "model: stored" in str(caught.value)
        assert "train: stored" in str(caught.value)
        assert "loss" not in str(caught.value)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"grad_dot"', '"grad_dto"', "Did you mean 'grad_dot'"),
        ('"cosine"', '"cosin"', "Did you mean 'cosine'"),
        ('"relative"', '"relatve"', "Did you mean `relative`"),
        ("options.influence_gn.damping", "options.influence_gn.dampign", "Did you mean `damping`"),
        ("points = [1, 3]", "points = [1, 30]", "from 1 to the recipe's 3 epochs"),
        ("factory.py:build", "factory.py:biuld", "Did you mean `build`"),
        ("factory.py:build", "absent.py:build", "no file"),
        ('factory.py:build"', 'factory.py:build"\ntask.options.m = 3', r"takes \(n=14, seed=0\)"),
    ],
)
def test_typing_errors_are_found_before_the_factory_runs_and_leave_no_folder(project, old, new, message):
    edit(project / "tiny.toml", old, new)
    for command in (run_gold, run_score, run_agree):
        with pytest.raises(ConfigError, match=message):
            command("tiny.toml")
    assert sorted(name for name in os.listdir(project) if name != "__pycache__") == ["factory.py", "tiny.toml"]


def test_work_refused_before_anything_is_stored_leaves_no_folder(project):
    edit(project / "tiny.toml", "left_out = 5", "left_out = 50")
    with pytest.raises(whence.errors.InputError, match="Cannot leave out 50"):
        run_gold("tiny.toml")
    assert not (project / "runs" / "tiny").exists()
    edit(project / "tiny.toml", "left_out = 50", "left_out = 5")
    run_gold("tiny.toml")
    with pytest.raises(StoreError, match=r"no scores of grad_dot, influence_gn, horizon_ahead yet"):
        run_agree("tiny.toml")
    assert (project / "runs" / "tiny" / "gold").is_dir()


def test_agree_names_what_is_missing(project, done):
    shutil.rmtree(done / "gold")
    with pytest.raises(StoreError, match=f"no gold standard yet. Run `whence gold {done}`"):
        run_agree(done)
    with pytest.raises(StoreError, match=r"whence gold tiny\.toml --out elsewhere"):
        run_agree("tiny.toml", "elsewhere")
    assert not (project / "elsewhere").exists()


def test_a_run_folder_that_is_named_is_never_removed(done):
    for name in ("gold", "scores"):
        shutil.rmtree(done / name)
    for name in ("agreement.parquet", "summary.json"):
        (done / name).unlink()
    with pytest.raises(StoreError, match="no gold standard"):
        run_agree(done)
    assert (done / "config.toml").is_file()


def test_unfinished_gold_is_not_compared(done):
    next((done / "gold").glob("seed-*.safetensors")).unlink()
    with pytest.raises(StoreError, match="is not finished: 1 of"):
        run_agree(done)


# Damage


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_a_damaged_gold_shard_is_named_and_rebuilt_alone(done):
    shards = sorted((done / "gold").glob("seed-*.safetensors"))
    original, before = shards[1].read_bytes(), times(done / "gold")
    flip_last_byte(shards[1])
    with pytest.raises(DamagedShardError, match=f"{shards[1].name} is damaged.*--rebuild"):
        run_gold(done)
    run_gold(done, rebuild=True)
    assert shards[1].read_bytes() == original
    after = times(done / "gold")
    assert all(after[shard] == before[shard] for shard in shards if shard != shards[1])


def test_damaged_scores_are_named_and_rebuilt_alone(done):
    path = done / "scores" / "grad_dot" / "scores.safetensors"
    original = path.read_bytes()
    flip_last_byte(path)
    (done / "summary.json").unlink()
    for command in (run_score, run_agree):
        with pytest.raises(DamagedShardError, match=r"grad_dot.scores\.safetensors is truncated.*--rebuild"):
            command(done)
    assert run_score(done, rebuild=True).computed == ("grad_dot",)
    assert path.read_bytes() == original
    assert run_agree(done).computed


# Options


def test_a_damping_is_a_number_or_a_table():
    assert method_options("influence_gn", {"damping": 2}) == {"damping": Damping.absolute(2)}
    relative = {"damping": {"value": 0.1, "unit": "relative"}, "form": "dual"}
    assert method_options("influence_gn", relative) == {"damping": Damping.relative(0.1), "form": "dual"}
    assert method_options("random", {"seed": 3}) == {"seed": 3}
    assert method_options("horizon", {"flow": True}) == {"flow": True}


@pytest.mark.parametrize(
    "method, given, message",
    [
        ("influence_gn", {"damping": "high"}, "damping"),
        ("influence_gn", {"damping": -1}, "damping"),
        ("influence_gn", {"damping": {"value": 1}}, "lacks `unit`"),
        ("influence_gn", {"damping": {"value": 1, "unit": "absolut"}}, "Did you mean `absolute`"),
        ("influence_gn", {"filter": "flow"}, "cannot be written in TOML"),
        ("influence_gn", {"tolerance": 1}, "Known: `damping`, `form`"),
        ("influence_hessian", {}, "lacks `damping`"),
        ("influence_cg", {"tolerance": "small"}, r"tolerance` must be a number"),
        ("random", {"seed": True}, r"seed` must be an integer"),
        ("horizon", {"recipe": {}}, r"filled in from the table \[recipe\]"),
        ("horizon_ahead", {"at": [1]}, r"filled in from `points` in \[gold\]"),
        ("horizon_ahead", {"flw": True}, "Unknown key `flw`"),
        ("horizont", {}, "Did you mean 'horizon'"),
        ("tracin", {}, "lacks `checkpoints`"),
        ("tracin", {"checkpoints": "a.pt"}, "tracin.checkpoints` must be a list"),
        ("trak", {"checkpoints": [1]}, r"trak.checkpoints\[0\]` must be text in quotes"),
        ("tracin", {"checkpoints": ["a.pt"], "learning_rates": "high"}, "learning_rates` must be"),
        ("tracin", {"checkpoints": ["a.pt"], "learning_rates": [0.1, "b"]}, r"learning_rates\[1\]` must be a number"),
        ("unrolled", {"start": {}}, "`start` cannot be written in TOML"),
    ],
)
def test_wrong_options_say_what_is_known(method, given, message):
    with pytest.raises(ConfigError, match=message):
        method_options(method, given)


# Checkpoints

CHECKPOINTS = """
name = "checkpoints"
task.factory = "factory.py:build"
recipe = {lr = 0.05, batch_size = 4, epochs = 3}

[score]
methods = ["tracin", "trak"]
options.tracin = {checkpoints = ["states/a.pt", "states/b.safetensors"], learning_rates = [0.5, 0.1]}
options.trak = {dim = 4, checkpoints = ["states/a.pt"]}
"""


@pytest.fixture
def with_checkpoints(project):
    """The project, with two state dicts that only the configuration knows of."""
    (project / "states").mkdir()
    (project / "checkpoints.toml").write_text(CHECKPOINTS)
    for path, seed in (("states/a.pt", 1), ("states/b.safetensors", 2)):
        save_state(project / path, seed)
    return project


def save_state(path, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (1, 4), "2.bias": (1,)}
    state = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    (torch.save if path.suffix == ".pt" else save_file)(state, path)


def test_checkpoints_from_toml_give_what_python_gives(with_checkpoints, monkeypatch):
    monkeypatch.chdir(with_checkpoints / "states")  # paths are those of the TOML file, wherever one stands
    found = run_score(with_checkpoints / "checkpoints.toml", with_checkpoints / "run")
    config = read_config(with_checkpoints / "checkpoints.toml")
    setup = build(config.task, whence.runs.config.import_factory(config.task.factory))
    files = [with_checkpoints / "states/a.pt", with_checkpoints / "states/b.safetensors"]
    wanted = {
        "tracin": {"checkpoints": files, "learning_rates": [0.5, 0.1]},
        "trak": {"checkpoints": files[:1], "dim": 4},
    }
    for method, options in wanted.items():
        scores = whence.attribute(setup.task, setup.train, setup.queries, method, **options)
        stored = ScoreMatrix.load(found.stores[method] / "scores.safetensors")
        assert_close(stored.values, scores.values, rtol=1e-6, atol=0)  # stored in float32
        assert len(stored.provenance["settings"]["checkpoints"]) == len(options["checkpoints"])
    assert run_score(with_checkpoints / "run").kept == ("tracin", "trak")


def test_scores_do_not_outlive_a_change_of_their_checkpoint(with_checkpoints):
    run_score("checkpoints.toml")
    save_state(with_checkpoints / "states/b.safetensors", 3)
    with pytest.raises(StoreMismatchError, match=r"checkpoints"):
        run_score("checkpoints.toml")


def test_a_checkpoint_that_is_not_there_is_named_before_any_scores(with_checkpoints, monkeypatch):
    (with_checkpoints / "states/a.pt").unlink()
    monkeypatch.setattr("whence.runs.score.Inputs", lambda *_: pytest.fail("work was begun"))
    where = r"score\.options\.tracin\.checkpoints\[0\]`: cannot read .*states/a\.pt: No such file.*folder of the TOML"
    with pytest.raises(ConfigError, match=where):
        run_score("checkpoints.toml")
    assert not (with_checkpoints / "runs" / "checkpoints").exists()


def test_a_run_folder_keeps_absolute_paths_of_checkpoints(with_checkpoints):
    folder = RunFolder.open(with_checkpoints / "run", load_toml("checkpoints.toml", RunConfig))
    (path,) = folder.config.score.options["trak"]["checkpoints"]
    assert path == str(with_checkpoints / "states/a.pt")
    assert RunFolder.existing(with_checkpoints / "run").config == folder.config


# The factory


def parts():
    task = whence.Task.regression(torch.nn.Linear(2, 1).eval())
    examples = whence.Examples((torch.randn(3, 2), torch.randn(3, 1)))
    return task, examples, examples


@pytest.mark.parametrize(
    "built, message",
    [
        (lambda: parts()[:2], "got 2 values"),
        (lambda: list(parts()), "got a list"),
        (lambda: None, "got a NoneType"),
        (
            lambda: (parts()[0].model, *parts()[1:]),
            r"`task` must be of type Task, got Linear. Wrap the model: whence\.Task",
        ),
        (
            lambda: (*parts()[:2], torch.randn(3, 2)),
            r"`queries` must be of type Examples, got Tensor. Wrap the data: whence\.Examples",
        ),
        (lambda: (parts()[0], [1], parts()[1]), "`train` must be of type Examples, got list"),
        (lambda: {}["weights"], r"failed: KeyError: 'weights' \(.*test_runs_commands.py, line \d+\)"),
    ],
)
def test_a_factory_must_return_task_train_and_queries(built, message):
    with pytest.raises(ConfigError, match=message):
        build(TaskConfig("pkg.mod:build"), built)


def test_worker_processes_can_call_a_factory_without_options():
    assert build(TaskConfig("pkg.mod:build"), parts).task.factory == "pkg.mod:build"
    assert build(TaskConfig("pkg.mod:build", {"n": 3}), lambda n: parts()).task.factory is None


def test_left_out_examples_are_chosen_as_asked(project):
    edit(project / "tiny.toml", "left_out = 5", 'left_out = 5, left_out_choice = "random"')
    examples = whence.Examples(torch.arange(14.0))
    chosen = left_out_sets(read_config("tiny.toml").gold, examples)
    assert chosen == whence.LeftOutSets.random(14, 5, seed=0)
    edit(project / "tiny.toml", "left_out = 5", "left_out_indices = [3, 1]")
    assert list(left_out_sets(read_config("tiny.toml").gold, examples)) == [(3,), (1,)]
