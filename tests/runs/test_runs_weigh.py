"""whence weigh: weights are those of the Python functions, kept once, and learned on nothing that judges them."""

import json
import shutil

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import whence
from whence.data import random_kept_sets
from whence.errors import ConfigError, DamagedShardError, StoreError, StoreMismatchError
from whence.gold import reinitialized
from whence.runs import run_evaluate, run_score, run_weigh
from whence.runs.config import import_factory
from whence.runs.folder import RunFolder
from whence.runs.setup import Setup
from whence.runs.start import build, read_config
from whence.runs.weigh import read_contributions, read_weighted_scores, read_weights, weighed_methods
from whence.storage import read_json
from whence.task import GroupWeights, Task
from whence.weights import (
    SOLVERS,
    distill_weights,
    fit_weights,
    gradient_norms,
    guarded,
    mixed_with_uniform,
    relative_to_norms,
    stability,
    with_entropy_floor,
    without_hubs,
)

FACTORY = """
import pathlib
import torch
import whence

HERE = pathlib.Path(__file__).parent

def build(learning="own", setup=True):
    (HERE / "built").touch()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(34, 3, generator=generator, dtype=torch.float64)
    y = (x @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) > 0).long()
    if (HERE / "other").exists():
        x[20:30] += 1
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double().eval()
    task = whence.Task.classification(model)
    train, learned_from = whence.Examples((x[:20], y[:20])), whence.Examples((x[20:30], y[20:30]))
    queries = whence.Examples((x[30:], y[30:]), ids=["a", "b", "c", "d"])
    if not setup:
        return task, train, queries
    chosen = {"own": learned_from, "none": None, "queries": queries, "train": train.subset(range(5, 15))}
    return whence.Setup(task, train, queries, learning_queries=chosen[learning])
"""
CONFIG = """
name = "tiny"
task.factory = "factory.py:build"
recipe = {lr = 0.05, batch_size = 5, epochs = 3}

[score]
methods = ["grad_cos", "grad_dot", "horizon_ahead"]
top = 2

[weigh]
methods = ["grad_dot", "horizon_ahead"]
groups = "module"
k = 3
"""
METHODS = {"grad_dot": {}, "horizon_ahead": {"recipe": whence.Recipe(lr=0.05, batch_size=5, epochs=3)}}


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
    """Scores and weights, computed once for the tests that copy them."""
    folder = tmp_path_factory.mktemp("finished")
    write(folder)
    run_score(folder / "tiny.toml", folder / "run")
    run_weigh(folder / "tiny.toml", folder / "run")
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


def setup_of(folder):
    config = read_config(folder / "tiny.toml").task
    return build(config, import_factory(config.factory))


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


# What is kept


def test_weights_are_those_of_the_python_functions(finished):
    result = run_weigh(finished / "run")
    assert list(result.weights) == ["grad_dot", "horizon_ahead"]
    setup = setup_of(finished)
    for method, options in METHODS.items():
        parts = setup.task, setup.train
        learned_from = whence.contributions(*parts, setup.learning_queries, method, groups="module", **options)
        asked = whence.contributions(*parts, setup.queries, method, groups="module", **options)
        assert asked.groups.names == ("0", "2")
        relative = relative_to_norms(learned_from, gradient_norms(*parts))
        mixed = mixed_with_uniform(whence.learn_weights(relative, k=3), learned_from)
        softened = {"relative": True, "entropy": mixed.entropy, "max_over_min": mixed.ratio}
        rms = whence.learn_weights(learned_from, "rms", k=3)
        for name, wanted, more in (("learned", mixed, softened), ("rms", rms, {})):
            found = result.weights[method][name]
            assert_close(found.values, wanted.values, rtol=0, atol=0)
            assert (found.name, found.method, found.groups) == (name, method, asked.groups)
            own = {**wanted.facts, **more, "seconds": found.facts["seconds"], "contributions": "in memory"}
            assert {key: value for key, value in found.facts.items() if key != "stability"} == own
            assert ("stability" in found.facts) == (name == "learned")
            top = pd.read_parquet(result.folder / "weights" / method / f"{name}-top.parquet")
            supporters = top[top["sign"] == "supports"].drop(columns="sign").reset_index(drop=True)
            pd.testing.assert_frame_equal(supporters, asked.scores(wanted).top(2))
        kept = read_contributions(RunFolder.existing(result.folder), method)
        assert_close(kept.values, asked.values, rtol=0, atol=0)
        assert kept.provenance == asked.provenance
        scores = whence.ScoreMatrix.load(next((result.folder / "scores" / method).glob("*.safetensors")))
        assert_close(kept.scores().values, scores.values, rtol=1e-10, atol=1e-12)  # sums of two groups


def test_relative_norms_are_those_at_the_checkpoints_of_the_method(project):
    parts = setup_of(project)
    state = parts.task.model.state_dict()
    files = []
    for k, factor in enumerate((0.1, 4.0)):
        files.append(f"state-{k}.pt")
        torch.save({name: factor * value for name, value in state.items()}, files[-1])
    for listed in ('["grad_cos", "grad_dot", "horizon_ahead"]', '["grad_dot", "horizon_ahead"]'):
        edit(project / "tiny.toml", listed, '["tracin"]')
    edit(project / "tiny.toml", 'groups = "module"', 'groups = "tensor"')
    options = {"checkpoints": files, "learning_rates": [0.5, 0.05]}
    with (project / "tiny.toml").open("a") as config:
        config.write(f"[score.options.tracin]\ncheckpoints = {files}\nlearning_rates = [0.5, 0.05]\n")
    found = run_weigh(project / "tiny.toml", project / "run").weights["tracin"]["learned"]
    given = parts.task, parts.train, parts.learning_queries
    learned_from = whence.contributions(*given, "tracin", **options)
    wanted, wrong = (
        mixed_with_uniform(whence.learn_weights(relative_to_norms(learned_from, norms), k=3), learned_from).values
        for norms in (gradient_norms(*given[:2], **options), gradient_norms(*given[:2]))
    )
    assert_close(found.values, wanted)
    assert not torch.allclose(found.values, wrong)


def test_the_same_command_again_computes_nothing(done):
    before = times(done)
    assert run_weigh(done).computed == ()
    assert run_weigh(done / "config.toml").computed == ()
    assert times(done) == before  # the history too


def test_the_history_has_an_entry_for_every_step_that_computed(done):
    assert [entry["step"] for entry in read_json(done / "history.json")] == ["score", "weigh"]
    for entry in read_json(done / "history.json"):
        assert set(entry) == {"step", "finished", "seconds", "peak_mb", "whence"}
        assert entry["seconds"] > 0
        assert entry["whence"].startswith(whence.__version__)
    shutil.rmtree(done / "weights" / "horizon_ahead")
    assert run_weigh(done).computed == ("horizon_ahead",)
    assert [entry["step"] for entry in read_json(done / "history.json")] == ["score", "weigh", "weigh"]


def test_weights_need_no_scores(project):
    result = run_weigh("tiny.toml")
    assert result.computed == ("grad_dot", "horizon_ahead")
    assert not (result.folder / "scores").exists()
    run = RunFolder.existing(result.folder)
    assert list(read_weights(run, "grad_dot")) == ["rms", "learned"]


def test_without_names_the_first_linear_method_is_weighed(project):
    edit(project / "tiny.toml", 'methods = ["grad_dot", "horizon_ahead"]\n', "")
    assert weighed_methods(read_config("tiny.toml")) == ("grad_dot",)
    assert run_weigh("tiny.toml").computed == ("grad_dot",)


def test_rows_that_learning_queries_share_with_others_are_noted(project):
    edit(project / "factory.py", "torch.manual_seed(1)", "x[21], y[21] = x[3], y[3]; torch.manual_seed(1)")
    for weights in run_weigh("tiny.toml").weights["grad_dot"].values():
        assert weights.facts["learning_queries_equal_to_rows_of"] == {"train": 1, "queries": 0}


def test_a_last_amount_is_weighed_where_there_are_several(project):
    edit(project / "tiny.toml", "[score]", "gold.points = [1, 2]\n\n[score]")
    result = run_weigh("tiny.toml")
    setup, options = setup_of(project), METHODS["horizon_ahead"]
    wanted = whence.attribute(setup.task, setup.train, setup.queries, "horizon_ahead", **options, at=2)
    kept = read_contributions(RunFolder.existing(result.folder), "horizon_ahead")
    assert_close(kept.scores().values, wanted.values, rtol=1e-10, atol=1e-12)


# Refusals


def test_changed_settings_are_refused_with_what_no_longer_matches(project):
    run_weigh("tiny.toml")
    edit(project / "tiny.toml", "k = 3", "k = 4")
    with pytest.raises(StoreMismatchError) as caught:
        run_weigh("tiny.toml")
    assert "weigh.k: stored 3, asked 4" in str(caught.value)
    assert "no longer match: weights, evaluation, report." in str(caught.value)


def test_an_edited_config_in_the_run_folder_is_refused_by_the_weights(done):
    edit(done / "config.toml", "k = 3", "k = 4")
    with pytest.raises(StoreMismatchError, match=r"holds weights of other settings:\n  weigh\.k: stored 3, asked 4"):
        run_weigh(done)


def test_other_learning_queries_are_refused(project):
    run_weigh("tiny.toml")
    (project / "other").touch()
    with pytest.raises(StoreMismatchError, match="learning_queries: stored"):
        run_weigh("tiny.toml")


@pytest.mark.parametrize("options", ['{learning = "none"}', "{setup = false}"])
def test_missing_learning_queries_are_asked_for(project, options):
    edit(project / "tiny.toml", "recipe =", f"task.options = {options}\nrecipe =")
    with pytest.raises(ConfigError, match=r"gives none. Let it return `whence\.Setup\(.*learning_queries=\.\.\.\)`"):
        run_weigh("tiny.toml")
    assert not (project / "runs" / "tiny").exists()
    run_score("tiny.toml")  # scores need none


@pytest.mark.parametrize(
    "learning, message",
    [
        ("queries", "4 of 4 learning queries are also in `queries`"),
        ("train", "10 of 10 learning queries are also in `train`"),
    ],
)
def test_learning_queries_that_are_not_held_out_are_refused(project, learning, message):
    edit(project / "tiny.toml", "recipe =", f'task.options = {{learning = "{learning}"}}\nrecipe =')
    with pytest.raises(ConfigError, match=f"{message}.*neither trained on nor used to judge"):
        run_weigh("tiny.toml")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"grad_cos", "grad_dot", "horizon_ahead"', '"grad_cos", "random"', "one of"),
        (
            'methods = ["grad_dot", "horizon_ahead"]\ngroups',
            'methods = ["grad_cos"]\ngroups',
            r"grad_cos in \[weigh\] is not suitable. Linear in \[score\]: grad_dot, horizon_ahead",
        ),
        ("k = 3", 'k = 3\nsolver = "nlns"', "Did you mean `nnls`"),
        ("k = 3", "kk = 3", "Unknown key `kk`.*Did you mean `k`"),
        ("k = 3", "k = 3\nholdout = 1.0", r"holdout"),
        ("k = 3", "k = 3\nguard = true\nholdout = 0", r"`guard` compares losses on queries held out"),
        ("k = 3", "k = 3\nentropy_floor = 1.5", r"`entropy_floor` must be in \[0, 1\]"),
        ("k = 3", "k = 3\nfew_shot = 4", r"`few_shot` must be .* 5"),
        ("k = 3", "k = 3\noptions.steps = 9", r"Unknown key `steps` in \[weigh\.options\].*Known: `max_rounds`"),
        ("k = 3", 'k = 3\noptions.max_rounds = "9"', r"`weigh\.options\.max_rounds` must be an integer"),
        ("k = 3", 'k = 3\n[score.options.grad_dot]\nweights = "w.json"', "scored with the weights of a file"),
        ('"module"', '"modul"', "Did you mean `module`"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_factory_runs(project, old, new, message):
    edit(project / "tiny.toml", old, new)
    with pytest.raises(ConfigError, match=message):
        run_weigh("tiny.toml")
    assert not (project / "built").exists()
    assert not (project / "runs" / "tiny").exists()


def test_methods_without_a_linear_one_are_refused(project):
    edit(project / "tiny.toml", '"grad_cos", "grad_dot", "horizon_ahead"', '"grad_cos", "random"')
    edit(project / "tiny.toml", 'methods = ["grad_dot", "horizon_ahead"]\n', "")
    with pytest.raises(ConfigError, match=r"of grad_cos, random none is not suitable.*add for instance grad_dot"):
        run_weigh("tiny.toml")
    assert not (project / "built").exists()


def test_more_signal_than_examples_is_refused_and_named(project):
    edit(project / "tiny.toml", "k = 3", "k = 21")
    with pytest.raises(whence.errors.InputError, match="`k` must be at most the 20 train examples") as caught:
        run_weigh("tiny.toml")
    assert "This was method 'grad_dot'; methods weighed before it are kept." in caught.value.__notes__
    assert not (project / "runs" / "tiny").exists()


# How weights are learned


def learned(folder, method="grad_dot"):
    return read_weights(RunFolder.existing(folder / "runs" / "tiny"), method)


def learning_contributions(folder, groups="module", method="grad_dot", **options):
    setup = setup_of(folder)
    return whence.contributions(setup.task, setup.train, setup.learning_queries, method, groups=groups, **options)


PLAIN = "k = 3\nrelative = false\nunweighted_share = 0.0\n"


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_can_be_named(project, solver):
    edit(project / "tiny.toml", "k = 3", f'{PLAIN}solver = "{solver}"\nmethods = ["grad_dot"]')
    edit(project / "tiny.toml", 'methods = ["grad_dot", "horizon_ahead"]\n', "")
    run_weigh("tiny.toml")
    wanted = whence.learn_weights(learning_contributions(project), solver, k=3)
    assert_close(learned(project)["learned"].values, wanted.values, rtol=0, atol=0)


def test_options_reach_the_solver(project):
    edit(project / "tiny.toml", "k = 3", PLAIN + 'two_sided = true\nsolver = "adamw"\noptions = {steps = 7, lr = 0.5}')
    run_weigh("tiny.toml")
    wanted = whence.learn_weights(learning_contributions(project), "adamw", k=3, two_sided=True, steps=7, lr=0.5)
    assert_close(learned(project)["learned"].values, wanted.values, rtol=0, atol=0)
    assert learned(project)["learned"].facts["steps"] == 7


def test_channels_are_groups_too(project):
    edit(project / "tiny.toml", 'groups = "module"', 'groups = "channel"\nchannels = 3')
    run_weigh("tiny.toml")
    assert learned(project)["learned"].groups.names == ("0[0:3]", "0[3:4]", "2")


def test_robust_weights_are_those_of_the_python_functions(project):
    edit(project / "tiny.toml", "k = 3", PLAIN + "without_hubs = true\nguard = true\nentropy_floor = 0.99\nfolds = 3")
    run_weigh("tiny.toml")
    for method, options in METHODS.items():
        found = without_hubs(learning_contributions(project, method=method, **options))
        candidates = [whence.learn_weights(found, solver, k=3) for solver in ("uniform", "rms", "nnls")]
        wanted = with_entropy_floor(guarded(candidates), 0.99)
        own = learned(project, method)["learned"]
        assert_close(own.values, wanted.values, rtol=0, atol=0)
        assert own.facts["guard"] == wanted.facts["guard"]
        assert own.facts["entropy"] == own.entropy >= 0.99
        spread = stability(found, folds=3, k=3)
        assert own.facts["stability"]["low"] == spread.table["low"].tolist()
        assert own.facts["stability"]["cosine"] == spread.likeness.cosine
        assert own.name == "learned"


def test_few_shot_weights_follow_what_training_anew_does(project):
    edit(
        project / "tiny.toml",
        "k = 3",
        'k = 3\nfew_shot = 6\n[evaluate]\nseeds = 2\nfirst_seed = 1\nengine = "loop"\n'
        "recipe = {lr = 0.1, batch_size = 5, epochs = 2}",
    )
    run_weigh("tiny.toml")
    setup = setup_of(project)
    outcomes = whence.retrain(
        setup.task,
        setup.train,
        setup.learning_queries,
        whence.Recipe(lr=0.1, batch_size=5, epochs=2),
        kept=random_kept_sets(20, 6, seed=3),  # the first seed after those of the evaluation
        seeds=[3, 4],
        initialize=reinitialized(setup.task),
        engine="loop",
    ).outcomes()
    wanted = fit_weights(learning_contributions(project), outcomes, towards=learned(project)["learned"])
    own = learned(project)["few_shot"]
    assert_close(own.values, wanted.values, rtol=1e-9, atol=1e-12)
    assert (own.facts["sets"], own.name) == (6, "few_shot")
    assert list(learned(project)) == ["rms", "learned", "few_shot"]


def test_few_shot_weights_need_an_original_training(project):
    edit(project / "tiny.toml", "k = 3", "k = 3\nfew_shot = 6")
    with pytest.raises(ConfigError, match=r"add \[evaluate\.recipe\]"):
        run_weigh("tiny.toml")
    assert not (project / "runs" / "tiny").exists()


# Memory: 10 learning queries, 20 train examples, 2 groups are 3200 bytes; with 26 parameters 4160 of gradients by group


def with_bytes(project, allowed, methods='["grad_dot", "horizon_ahead"]'):
    edit(project / "tiny.toml", "k = 3", f"{PLAIN}memory_gib = {allowed / 2**30!r}")
    edit(project / "tiny.toml", 'methods = ["grad_dot", "horizon_ahead"]', f"methods = {methods}")


def test_contributions_that_just_fit_stay_in_memory(project):
    with_bytes(project, 3200)
    run_weigh("tiny.toml")
    assert learned(project)["learned"].facts["contributions"] == "in memory"


def test_contributions_that_do_not_fit_are_streamed_to_the_same_weights(project):
    edit(project / "factory.py", "torch.randn(34,", "torch.randn(64,")
    for old, new in (
        ("x[20:30] += 1", "x[50:60] += 1"),
        ("x[:20], y[:20]", "x[:50], y[:50]"),
        ("x[20:30], y[20:30]", "x[50:60], y[50:60]"),
        ("x[30:], y[30:]", "x[60:], y[60:]"),
    ):
        edit(project / "factory.py", old, new)
    with_bytes(project, 5000)  # contributions take 8000, gradients by group 4160
    run_weigh("tiny.toml")
    for method, options in METHODS.items():
        own = learned(project, method)["learned"]
        assert own.facts["contributions"] == "streamed"
        assert own.facts["passes"] > 1
        assert "stability" not in own.facts
        wanted = whence.learn_weights(learning_contributions(project, method=method, **options), k=3)
        assert_close(own.values, wanted.values, rtol=1e-6, atol=1e-9)


def test_gradients_are_projected_where_those_of_the_queries_do_not_fit(project):
    with_bytes(project, 3000, '["grad_dot"]')
    run_weigh("tiny.toml")
    own = learned(project)["learned"]
    assert own.facts["contributions"] == "streamed, gradients projected to 128 numbers a group"
    wanted = whence.learn_weights(learning_contributions(project), k=3)
    assert_close(own.values, wanted.values, rtol=0.02, atol=0.02)  # groups of 16 and 10 stay whole: float16 is left
    assert (project / "runs" / "tiny" / "weights" / "grad_dot" / "gradients" / "manifest.json").is_file()


def test_what_cannot_be_streamed_is_refused_with_its_size(project):
    with_bytes(project, 3000)
    with pytest.raises(ConfigError, match=r"of horizon_ahead to 10 learning queries .* or weigh grad_dot"):
        run_weigh("tiny.toml")
    edit(project / "tiny.toml", "k = 3", "k = 3\nfew_shot = 6")
    with pytest.raises(ConfigError, match=r"`few_shot` in .* needs contributions in memory, and those of grad_dot"):
        run_weigh("tiny.toml")
    assert not (project / "runs" / "tiny").exists()


def test_queries_whose_contributions_do_not_fit_still_have_scores(project):
    with_bytes(project, 700, '["grad_dot"]')  # 320 for each query
    run_score("tiny.toml")
    result = run_weigh("tiny.toml")
    run = RunFolder.existing(result.folder)
    setup = setup_of(project)
    assert read_contributions(run, "grad_dot").query_ids == ("a", "b")
    for name, matrix in read_weighted_scores(run, "grad_dot").items():
        own = result.weights["grad_dot"][name]
        wanted = whence.attribute(setup.task, setup.train, setup.queries, "grad_dot", weights=own)
        assert_close(matrix.values, wanted.values, rtol=0, atol=0)
    edit(result.folder / "config.toml", "[evaluate]", "[evaluate]\nrecipe = {lr = 0.1, batch_size = 5, epochs = 1}")
    edit(result.folder / "config.toml", "kept_sets = 32", "kept_sets = 4")
    summary = run_evaluate(result.folder).summary
    assert "grad_dot, learned" in summary["lds"]
    assert summary["group_lds"] == {}


def test_weighted_scores_are_those_of_the_contributions_where_all_are_kept(done):
    run = RunFolder.existing(done)
    parts, weights = read_contributions(run, "grad_dot"), read_weights(run, "grad_dot")
    found = read_weighted_scores(run, "grad_dot")
    assert list(found) == ["rms", "learned"]
    for name, matrix in found.items():
        assert_close(matrix.values, parts.scores(weights[name]).values, rtol=0, atol=0)


# Weights taken back


def test_scores_take_weights_back(project):
    path = run_weigh("tiny.toml").folder / "weights" / "grad_dot" / "learned.json"
    shutil.copy("tiny.toml", "weighted.toml")
    edit(project / "weighted.toml", '"tiny"', '"weighted"')
    edit(project / "weighted.toml", 'methods = ["grad_dot", "horizon_ahead"]', 'methods = ["horizon_ahead"]')
    edit(project / "weighted.toml", "[weigh]", f'[score.options.grad_dot]\nweights = "{path.as_posix()}"\n[weigh]')
    folder = run_score("weighted.toml").folder
    setup, weights = setup_of(project), GroupWeights.load(path)
    wanted = whence.attribute(setup.task, setup.train, setup.queries, "grad_dot", weights=weights)
    found = whence.ScoreMatrix.load(folder / "scores" / "grad_dot" / "scores.safetensors")
    assert_close(found.values, wanted.values, rtol=0, atol=0)
    assert found.provenance["weights"]["values"] == weights.by_name()
    assert not weights.is_uniform
    assert run_score(folder).computed == ()
    GroupWeights.uniform(weights.groups).save(path, overwrite=True)
    with pytest.raises(StoreMismatchError, match=r"weights\.0"):  # other weights in the same file
        run_score(folder)


def test_a_path_of_weights_begins_at_the_folder_of_the_settings(project, monkeypatch):
    edit(project / "tiny.toml", "[weigh]", '[score.options.grad_dot]\nweights = "deep/w.json"\n[weigh]')
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    given = read_config(project / "tiny.toml").score.options["grad_dot"]
    assert given == {"weights": str((project / "deep" / "w.json").resolve())}


@pytest.mark.parametrize(
    "method, value, message",
    [
        ("grad_cos", '"w.json"', "grad_cos is not linear in the query's gradient"),
        ("grad_dot", "3", "must be the path of a file that `whence weigh` wrote; got 3"),
    ],
)
def test_weights_that_do_not_apply_are_refused_before_the_factory_runs(project, method, value, message):
    edit(project / "tiny.toml", "[weigh]", f"[score.options.{method}]\nweights = {value}\n[weigh]")
    with pytest.raises(ConfigError, match=message):
        run_score("tiny.toml")
    assert not (project / "built").exists()


def test_a_missing_file_of_weights_is_said_before_anything_is_scored(project):
    edit(project / "tiny.toml", "[weigh]", '[score.options.horizon_ahead]\nweights = "w.json"\n[weigh]')
    with pytest.raises(StoreError, match=r"w\.json"):
        run_score("tiny.toml")
    assert not (project / "runs" / "tiny" / "scores").exists()


# Damage


def test_damaged_contributions_are_named_and_rebuilt_alone(done):
    path = done / "weights" / "grad_dot" / "contributions.safetensors"
    original, before = path.read_bytes(), times(done / "weights" / "horizon_ahead")
    flip_last_byte(path)
    message = r"grad_dot.contributions\.safetensors is truncated, altered or gone.*`whence weigh CONFIG --rebuild`"
    with pytest.raises(DamagedShardError, match=message):
        run_weigh(done)
    with pytest.raises(DamagedShardError, match=message):
        read_contributions(RunFolder.existing(done), "grad_dot")
    assert run_weigh(done, rebuild=True).computed == ("grad_dot",)
    assert path.read_bytes() == original
    assert times(done / "weights" / "horizon_ahead") == before
    assert run_weigh(done).computed == ()


@pytest.mark.parametrize("name", ["learned.json", "rms-top.parquet", "manifest.json"])
def test_a_method_with_a_file_missing_is_weighed_again(done, name):
    (done / "weights" / "grad_dot" / name).unlink()
    assert run_weigh(done).computed == ("grad_dot",)
    assert (done / "weights" / "grad_dot" / name).is_file()


def test_an_interrupted_command_keeps_the_methods_before(project, monkeypatch):
    from whence.runs import weigh as room

    contributions_with = room.contributions_with

    def interrupted(inputs, method, **options):
        if method == "horizon_ahead":
            raise KeyboardInterrupt
        return contributions_with(inputs, method, **options)

    with monkeypatch.context() as patch:
        patch.setattr(room, "contributions_with", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_weigh("tiny.toml")
    assert run_weigh("tiny.toml").computed == ("horizon_ahead",)


def test_weights_that_are_not_there_name_the_command(done):
    shutil.rmtree(done / "weights" / "grad_dot")
    with pytest.raises(StoreError, match=r"no finished weights\. Run `whence weigh` first"):
        read_weights(RunFolder.existing(done), "grad_dot")


def test_weights_are_plain_json(done):
    path = done / "weights" / "grad_dot" / "learned.json"
    content = json.loads(path.read_text())
    assert GroupWeights.load(path).values.tolist() == content["values"]
    assert content["facts"]["queries"]["n"] + content["facts"]["held_out"]["n"] == 10


# Setup


def parts(n=6):
    x = torch.arange(3.0 * n).reshape(n, 3)
    model = torch.nn.Linear(3, 2).eval()
    whole = whence.Examples((x, torch.zeros(n, dtype=torch.int64)))
    return Task.classification(model), whole.subset(range(n - 2)), whole.subset(range(n - 2, n))


def test_a_setup_checks_its_parts():
    task, train, queries = parts()
    assert Setup(task, train, queries).shared_rows() == {}
    with pytest.raises(ConfigError, match="`train` must be of type Examples, got list"):
        Setup(task, [1], queries)
    with pytest.raises(ConfigError, match="`learning_queries` must be Examples; got Tensor"):
        Setup(task, train, queries, learning_queries=torch.zeros(2))
    with pytest.raises(ConfigError, match=r"`clean` must hold one label for each of the 4 .* got shape \(3,\)"):
        Setup(task, train, queries, clean=torch.zeros(3))


def test_half_of_the_learning_queries_may_be_in_the_train_set():
    """Real data has a few equal rows. Ids do not matter: the same row under another id is the same row."""
    task, train, queries = parts(12)
    x, y = train.all()
    fresh = x[:3] + 0.5
    mixed = whence.Examples((torch.cat([x[:3], fresh]), y[:6]), ids=[f"l{k}" for k in range(6)])
    assert Setup(task, train, queries, learning_queries=mixed).shared_rows() == {"train": 3, "queries": 0}
    most = whence.Examples((torch.cat([x[:4], fresh]), y[:7]), ids=[f"l{k}" for k in range(7)])
    with pytest.raises(ConfigError, match="4 of 7 learning queries are also in `train`"):
        Setup(task, train, queries, learning_queries=most)
    # the same inputs with another label are other examples
    other = whence.Examples((x[:4], y[:4] + 1))
    assert Setup(task, train, queries, learning_queries=other).shared_rows() == {"train": 0, "queries": 0}


# --- a teacher --------------------------------------------------------------------------------------------------------


def test_a_teacher_is_followed_with_its_own_options(project):
    edit(project / "tiny.toml", 'groups = "module"\nk = 3', 'groups = "module"\nteacher = "ekfac"')
    edit(project / "tiny.toml", '"grad_cos",', '"grad_cos", "ekfac",')
    options = '\n[score.options.ekfac]\ndamping = {value = 0.5, unit = "relative"}\n'
    (project / "tiny.toml").write_text((project / "tiny.toml").read_text() + options)
    result = run_weigh(project / "tiny.toml")
    setup = setup_of(project)
    damping = whence.Damping.relative(0.5)
    teacher = whence.attribute(setup.task, setup.train, setup.learning_queries, method="ekfac", damping=damping)
    norms = gradient_norms(setup.task, setup.train)
    for method, own in METHODS.items():
        at = {} if method == "grad_dot" else {"at": 3}
        found = whence.contributions(
            setup.task, setup.train, setup.learning_queries, method, groups="module", **own, **at
        )
        weights = distill_weights(relative_to_norms(found, norms), relative_to_norms(teacher, norms))
        learned = result.weights[method]["learned"]
        assert_close(learned.values, mixed_with_uniform(weights, found).values)
        assert (learned.facts["teacher"], learned.facts["solver"]) == ("ekfac", "distilled")
        assert learned.facts["stability"]["folds"] == 5
    before = times(result.folder)
    assert run_weigh(project / "tiny.toml").computed == ()
    assert times(result.folder) == before
    edit(project / "tiny.toml", "value = 0.5", "value = 0.1")
    with pytest.raises(StoreMismatchError, match="damping"):
        run_weigh(project / "tiny.toml", result.folder)


@pytest.mark.parametrize(
    "line, message",
    [
        ('teacher = "grad_dot"', "weighed itself"),
        ('teacher = "ekfak"', "Did you mean 'ekfac'"),
        ('teacher = "ekfac"\nguard = true\ntwo_sided = true', "`two_sided`, `guard` would change nothing"),
    ],
)
def test_a_teacher_that_cannot_be_followed_is_refused_before_anything_is_built(project, line, message):
    edit(project / "tiny.toml", 'groups = "module"\nk = 3', f'groups = "module"\n{line}')
    with pytest.raises(ConfigError, match=message):
        run_weigh(project / "tiny.toml")
    assert not (project / "built").exists()
