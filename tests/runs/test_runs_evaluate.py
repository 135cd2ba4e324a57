"""whence evaluate: the numbers are those of the Python functions, kept once; what cannot be judged says why."""

import shutil

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import whence
from whence.errors import ConfigError, DamagedShardError, StoreError, StoreMismatchError
from whence.evaluation import mislabel_aucs
from whence.gold import reinitialized
from whence.runs import run_evaluate, run_score, run_weigh
from whence.runs.config import import_factory
from whence.runs.evaluate import labels_of
from whence.runs.folder import RunFolder
from whence.runs.start import build, read_config
from whence.storage import read_json
from whence.task import GroupWeights, Task
from whence.training.processes import INLINE

FACTORY = """
import torch
import whence

def build(clean=True, initialize=False, wrong=3, regression=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(34, 3, generator=generator, dtype=torch.float64)
    true = (x @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) > 0).long()
    given = true.clone()
    given[:wrong] = 1 - given[:wrong]
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double().eval()

    def state(seed):
        torch.manual_seed(seed)
        return {name: torch.randn_like(p) for name, p in model.state_dict().items()}

    model.load_state_dict(state(1))
    task = whence.Task.classification(model)
    labels = given
    if regression:
        task, labels = whence.Task.regression(model), torch.nn.functional.one_hot(given, 2).double()
    examples = whence.Examples((x, labels))
    return whence.Setup(
        task,
        examples.subset(range(20)),
        examples.subset(range(30, 34)),
        learning_queries=examples.subset(range(20, 30)),
        initialize=state if initialize else None,
        clean=true[:20] if clean else None,
    )
"""
CONFIG = """
name = "tiny"
task.factory = "factory.py:build"
recipe = {lr = 0.05, batch_size = 5, epochs = 2}

[score]
methods = ["grad_dot", "horizon_ahead"]
top = 2

[weigh]
groups = "module"
k = 3

[evaluate]
recipe = {lr = 0.1, batch_size = 5, epochs = 3}
kept_sets = 6
share = 0.4
seeds = 2
first_seed = 5
engine = "loop"
n_bootstrap = 30
confidence = 0.9
"""
OPTIONS = {"n_bootstrap": 30, "confidence": 0.9}


def write(folder):
    (folder / "factory.py").write_text(FACTORY)
    (folder / "tiny.toml").write_text(CONFIG)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a factory and a TOML file, as working directory."""
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, computed once for the tests that copy it."""
    folder = tmp_path_factory.mktemp("finished")
    write(folder)
    for command in (run_score, run_weigh, run_evaluate):
        command(folder / "tiny.toml", folder / "run")
    return folder


@pytest.fixture
def done(finished, tmp_path, monkeypatch):
    """A copy of the whole run; its factory stays where it was."""
    shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.fixture
def no_training(monkeypatch):
    """Fail where a model is trained."""
    monkeypatch.setitem(INLINE, "loop", lambda job: pytest.fail("training began"))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def setup_of(folder):
    config = read_config(folder / "tiny.toml").task
    return build(config, import_factory(config.factory))


def retrained(setup, initialize=None):
    return whence.retrain(
        setup.task,
        setup.train,
        setup.queries,
        whence.Recipe(lr=0.1, batch_size=5, epochs=3),
        kept=whence.random_kept_sets(20, 6, share=0.4, seed=5),
        seeds=[5, 6],
        initialize=initialize or reinitialized(setup.task),
        engine="loop",
    ).outcomes()


# A whole run


def test_the_numbers_are_those_of_the_python_functions(finished):
    found = run_evaluate(finished / "run")
    summary, setup = found.summary, setup_of(finished)
    parts, outcomes = (setup.task, setup.train, setup.queries), retrained(setup)
    recipe = whence.Recipe(lr=0.05, batch_size=5, epochs=2)
    asked = whence.contributions(*parts, "grad_dot", groups="module")
    learned_from = whence.contributions(setup.task, setup.train, setup.learning_queries, "grad_dot", groups="module")
    relative = whence.relative_to_norms(learned_from, whence.gradient_norms(setup.task, setup.train))
    weights = {
        "rms": whence.learn_weights(learned_from, "rms", k=3),
        "learned": whence.mixed_with_uniform(whence.learn_weights(relative, k=3), learned_from),
    }
    scores = {
        "grad_dot": whence.attribute(*parts, "grad_dot"),
        "horizon_ahead": whence.attribute(*parts, "horizon_ahead", recipe=recipe),
        **{f"grad_dot, {name}": asked.scores(one) for name, one in weights.items()},
    }
    judged = whence.lds(scores, outcomes, **OPTIONS)
    assert summary["lds"] == judged.to_dict()
    assert summary["lds_differences"] == {
        "grad_dot: learned - uniform": judged.difference("grad_dot, learned", "grad_dot"),
        "grad_dot: learned - rms": judged.difference("grad_dot, learned", "grad_dot, rms"),
        "grad_dot: rms - uniform": judged.difference("grad_dot, rms", "grad_dot"),
    }
    alone = {name: asked.scores(GroupWeights.only(asked.groups, name)) for name in ("0", "2")}
    assert summary["group_lds"] == {"grad_dot": whence.lds(alone, outcomes, **OPTIONS).to_dict()}
    trust = whence.reliability(outcomes, "spearman", **OPTIONS).table.iloc[0]
    assert summary["lds_reliability"] == [trust["reliability"], trust["low"], trust["high"]]
    assert summary["lds_ceiling"] == [trust["ceiling"], trust["ceiling_low"], trust["ceiling_high"]]
    assert summary["lds_note"] == trust["note"]
    counts = {"n_kept_sets": 6, "share": 0.4, "n_seeds": 2, "n_query": 4, "confidence": 0.9, "skipped": {}}
    assert counts.items() <= summary.items()

    flipped = torch.arange(20) < 3
    suspicion = {"self_influence": whence.self_influence(setup.task, setup.train)}
    for name, one in weights.items():
        suspicion[f"self_influence, {name}"] = whence.self_influence(setup.task, setup.train, weights=one)
    areas = mislabel_aucs(suspicion, flipped, **OPTIONS)
    assert summary["mislabel_auc"] == areas.to_dict()
    assert summary["mislabel_auc_differences"] == {
        f"self_influence: {name} - uniform": areas.difference(f"self_influence, {name}", "self_influence")
        for name in ("rms", "learned")
    }
    table = pd.read_parquet(finished / "run" / "evaluation" / "suspects.parquet")
    assert list(table.columns) == ["id", "score", "given", *list(suspicion)[1:], "true"]
    assert table["id"].tolist() == list(range(20))
    for name, values in suspicion.items():
        column = table["score" if name == "self_influence" else name]
        assert_close(torch.tensor(column.to_numpy()), values, rtol=0, atol=0)
    assert (table["given"] != table["true"]).tolist() == flipped.tolist()
    assert read_json(found.summary_path) == summary


def test_the_same_command_again_computes_nothing(done, no_training):
    before = times(done)
    for source in (done, done / "config.toml"):
        assert not run_evaluate(source).computed
    assert times(done) == before  # the history too
    assert [entry["step"] for entry in read_json(done / "history.json")] == ["score", "weigh", "evaluate"]


def test_a_run_folder_repeats_elsewhere_to_the_last_bit(done, tmp_path):
    run_score(done, tmp_path / "copy")
    run_weigh(done, tmp_path / "copy")
    assert run_evaluate(done, tmp_path / "copy").summary == read_json(done / "evaluation" / "evaluation.json")


def test_without_weights_the_plain_scores_are_judged(project, finished):
    run_score("tiny.toml")
    summary = run_evaluate("tiny.toml").summary
    whole = read_json(finished / "run" / "evaluation" / "evaluation.json")
    assert summary["lds"] == {name: whole["lds"][name] for name in ("grad_dot", "horizon_ahead")}
    assert summary["mislabel_auc"] == {"self_influence": whole["mislabel_auc"]["self_influence"]}
    assert (summary["lds_differences"], summary["group_lds"]) == ({}, {})


def test_weights_learned_later_are_judged_without_training_again(project, finished, monkeypatch):
    run_score("tiny.toml")
    run_evaluate("tiny.toml")
    run_weigh("tiny.toml")
    monkeypatch.setitem(INLINE, "loop", lambda job: pytest.fail("training began"))
    found = run_evaluate("tiny.toml")
    assert found.computed
    assert found.summary == read_json(finished / "run" / "evaluation" / "evaluation.json")
    assert not run_evaluate("tiny.toml").computed
    assert [e["step"] for e in read_json(found.folder / "history.json")] == ["score", "evaluate", "weigh", "evaluate"]


def test_other_weights_are_judged_again(done, no_training):
    before = read_json(done / "evaluation" / "evaluation.json")
    edit(done / "config.toml", "k = 3", "k = 1")
    shutil.rmtree(done / "weights")
    run_weigh(done)
    found = run_evaluate(done)
    assert found.computed
    assert found.summary["lds"]["grad_dot"] == before["lds"]["grad_dot"]
    assert found.summary["mislabel_auc"].keys() == before["mislabel_auc"].keys()
    table = pd.read_parquet(done / "evaluation" / "suspects.parquet")["self_influence, learned"]
    learned = GroupWeights.load(done / "weights" / "grad_dot" / "learned.json")
    setup = build(read_config(done).task, import_factory(read_config(done).task.factory))
    wanted = whence.self_influence(setup.task, setup.train, weights=learned)
    assert_close(torch.tensor(table.to_numpy()), wanted, rtol=0, atol=0)


def test_other_true_labels_are_judged_again(project, no_training):
    edit(project / "tiny.toml", "recipe = {lr = 0.1, batch_size = 5, epochs = 3}\n", "")
    run_score("tiny.toml")
    value = run_evaluate("tiny.toml").summary["mislabel_auc"]["self_influence"][0]
    edit(project / "factory.py", "clean=true[:20]", "clean=1 - true[:20]")  # now all but three are wrong
    found = run_evaluate("tiny.toml")
    assert found.computed
    assert found.summary["mislabel_auc"]["self_influence"][0] == pytest.approx(1 - value)


def test_the_initialisation_of_the_factory_is_used(project):
    edit(project / "tiny.toml", "recipe = {lr = 0.05", "task.options = {initialize = true}\nrecipe = {lr = 0.05")
    run_score("tiny.toml")
    summary, setup = run_evaluate("tiny.toml").summary, setup_of(project)
    scores = whence.attribute(setup.task, setup.train, setup.queries, "grad_dot")
    wanted = whence.lds(scores, retrained(setup, setup.initialize), **OPTIONS)
    assert summary["lds"]["grad_dot"] == wanted.to_dict()["grad_dot"]
    assert summary["lds"]["grad_dot"] != whence.lds(scores, retrained(setup), **OPTIONS).to_dict()["grad_dot"]


def test_constant_outcomes_are_null_in_the_summary(project):
    edit(project / "tiny.toml", "lr = 0.1", "lr = 1e-300")  # nothing moves: all runs of a seed are alike
    run_score("tiny.toml")
    summary = run_evaluate("tiny.toml").summary
    assert summary["lds"]["grad_dot"] == [None, None, None]
    assert summary["lds_ceiling"] == [None, None, None]
    assert summary["lds_note"] == "outcomes no more than rounding"


# What is left out


def test_without_a_recipe_nothing_is_retrained_and_labels_are_still_judged(project, no_training, finished):
    edit(project / "tiny.toml", "recipe = {lr = 0.1, batch_size = 5, epochs = 3}\n", "")
    run_score("tiny.toml")
    found = run_evaluate("tiny.toml")
    assert found.summary["skipped"] == {"lds": "no original training is given: add [evaluate.recipe] to the settings"}
    assert "lds" not in found.summary
    assert not (found.folder / "retraining").exists()
    whole = read_json(finished / "run" / "evaluation" / "evaluation.json")
    assert found.summary["mislabel_auc"]["self_influence"] == whole["mislabel_auc"]["self_influence"]


@pytest.mark.parametrize(
    "options, columns",
    [
        ("{clean = false}", ["id", "score", "given"]),
        ("{wrong = 0}", ["id", "score", "given", "true"]),
        ("{wrong = 20}", ["id", "score", "given", "true"]),
        ("{regression = true}", ["id", "score"]),
    ],
)
def test_without_wrong_labels_no_area_is_taken(project, options, columns):
    edit(project / "tiny.toml", "recipe = {lr = 0.05", f"task.options = {options}\nrecipe = {{lr = 0.05")
    edit(project / "tiny.toml", "recipe = {lr = 0.1, batch_size = 5, epochs = 3}\n", "")
    run_score("tiny.toml")
    found = run_evaluate("tiny.toml")
    assert "mislabel_auc" not in found.summary
    assert list(found.summary["skipped"]) == ["lds", "mislabel_auc"]
    table = pd.read_parquet(found.folder / "evaluation" / "suspects.parquet")
    assert list(table.columns) == columns
    assert len(table) == 20


def test_unknown_true_labels_are_asked_for(project):
    edit(project / "tiny.toml", "recipe = {lr = 0.05", "task.options = {clean = false}\nrecipe = {lr = 0.05")
    run_score("tiny.toml")
    summary = run_evaluate("tiny.toml").summary
    assert summary["skipped"] == {
        "mislabel_auc": "true labels are not known: let the factory return Setup(..., clean=...)"
    }
    assert len(summary["lds"]) == 2


def test_labels_are_those_of_classifiers():
    model = torch.nn.Linear(3, 2).eval()
    examples = whence.Examples((torch.zeros(2, 3), torch.tensor([1, 0])))
    assert labels_of(Task.classification(model), examples).tolist() == [1, 0]
    assert labels_of(Task.regression(model), whence.Examples((torch.zeros(2, 3), torch.zeros(2, 2)))) is None


# Refusals


def test_scores_that_are_missing_name_the_command(project, no_training):
    with pytest.raises(StoreError, match=r"no finished scores\. Run `whence score` first"):
        run_evaluate("tiny.toml")
    assert not (project / "runs" / "tiny").exists()


def test_changed_settings_are_refused_with_what_no_longer_matches(project, no_training):
    run_score("tiny.toml")
    edit(project / "tiny.toml", "kept_sets = 6", "kept_sets = 7")
    with pytest.raises(StoreMismatchError) as caught:
        run_evaluate("tiny.toml")
    assert "evaluate.kept_sets: stored 6, asked 7" in str(caught.value)
    assert "no longer match: retraining, evaluation, report." in str(caught.value)


def test_another_original_training_is_refused_by_what_was_retrained(done, no_training):
    edit(done / "config.toml", "lr = 0.1", "lr = 0.2")
    with pytest.raises(StoreMismatchError, match=r"lr"):
        run_evaluate(done)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("kept_sets = 6", "kept_sets = 2", "`kept_sets` must be an integer of at least 3"),
        ("share = 0.4", "share = 1.0", "`share` must lie between 0 and 1"),
        ("seeds = 2", "seds = 2", "Did you mean `seeds`"),
        ('"loop"', '"lop"', "Did you mean `loop`"),
        ("confidence = 0.9", "confidence = 90", "confidence"),
    ],
)
def test_settings_that_cannot_be_are_refused(project, old, new, message):
    edit(project / "tiny.toml", old, new)
    with pytest.raises(ConfigError, match=message):
        run_evaluate("tiny.toml")


def test_a_model_that_cannot_be_initialised_anew_is_refused(project, no_training):
    edit(project / "factory.py", "torch.nn.Linear(4, 2))", "torch.nn.Linear(4, 2), Scale())")
    edit(
        project / "factory.py",
        "def build",
        "class Scale(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.ones(2))\n"
        "    def forward(self, x):\n"
        "        return self.scale * x\n\n"
        "def build",
    )
    run_score("tiny.toml")
    with pytest.raises(whence.errors.InputError, match=r"^3 cannot be initialised anew.*`initialize=`"):
        run_evaluate("tiny.toml")


# Interruption and damage


def test_interrupted_retraining_continues(project, finished, monkeypatch):
    run_score("tiny.toml")
    run_weigh("tiny.toml")
    run, calls = INLINE["loop"], []

    def interrupted(job):
        calls.append(job.seed)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(job)

    with monkeypatch.context() as patch:
        patch.setitem(INLINE, "loop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_evaluate("tiny.toml")
    store = project / "runs" / "tiny" / "retraining"
    shards = sorted(store.glob("seed-*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in shards}
    assert shards
    assert not (project / "runs" / "tiny" / "evaluation").exists()
    found = run_evaluate("tiny.toml")
    assert {path: path.stat().st_mtime_ns for path in shards} == before
    assert len(sorted(store.glob("seed-*.safetensors"))) > len(shards)
    assert found.summary == read_json(finished / "run" / "evaluation" / "evaluation.json")
    steps = [entry["step"] for entry in read_json(project / "runs" / "tiny" / "history.json")]
    assert steps == ["score", "weigh", "evaluate"]


def test_damaged_parts_name_the_command_that_mends_them(done):
    whole = read_json(done / "evaluation" / "evaluation.json")
    shutil.rmtree(done / "evaluation")
    shard = sorted((done / "retraining").glob("seed-*.safetensors"))[0]
    contributions = done / "weights" / "grad_dot" / "contributions.safetensors"
    originals = {path: path.read_bytes() for path in (shard, contributions)}
    flip_last_byte(contributions)
    with pytest.raises(DamagedShardError, match=r"contributions\.safetensors is truncated.*`whence weigh CONFIG --reb"):
        run_evaluate(done)
    run_weigh(done, rebuild=True)
    flip_last_byte(shard)
    with pytest.raises(DamagedShardError, match=f"{shard.name} is damaged") as caught:
        run_evaluate(done)
    assert "For the retraining that is `whence evaluate CONFIG --rebuild`." in caught.value.__notes__
    assert run_evaluate(done, rebuild=True).summary == whole
    assert {path: path.read_bytes() for path in originals} == originals


def test_a_damaged_evaluation_is_computed_again_from_what_is_stored(done, no_training):
    path = done / "evaluation" / "evaluation.json"
    original = path.read_bytes()
    flip_last_byte(path)
    assert run_evaluate(done).computed
    assert path.read_bytes() == original
    (done / "evaluation" / "suspects.parquet").unlink()
    assert run_evaluate(done).computed
    assert not run_evaluate(done).computed


def test_rebuilt_weights_are_judged_again(done, no_training):
    """What is written beside the weights, such as seconds, differs from time to time."""
    (done / "weights" / "grad_dot" / "learned.json").unlink()
    run_weigh(done)
    summary = read_json(done / "evaluation" / "evaluation.json")
    assert run_evaluate(done).summary == summary


def test_the_paths_of_a_run_are_where_the_docstring_says(done):
    run = RunFolder.existing(done)
    for path in (run.weights_dir("grad_dot"), run.retraining_dir(), run.evaluation_dir(), run.history_path()):
        assert path.exists()
