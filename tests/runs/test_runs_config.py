"""A configuration says what is wrong with it and where, and survives being written."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.errors import ConfigError
from whence.runs.config import (
    AgreeConfig,
    GoldConfig,
    RecipeConfig,
    RunConfig,
    ScoreConfig,
    TaskConfig,
    dump_toml,
    from_dict,
    import_factory,
    load_config,
    load_toml,
    to_dict,
)

MINIMAL = """
name = "energy"
[task]
factory = "pkg.mod:build"
[recipe]
lr = 0.03
batch_size = 128
epochs = 50
"""


def load_text(tmp_path, text, cls=RunConfig):
    (tmp_path / "run.toml").write_text(text)
    return load_toml(tmp_path / "run.toml", cls)


# Round trips

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
toml_values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
options = st.dictionaries(text, toml_values, max_size=3)
names = st.from_regex(r"[a-z]{1,6}(\.[a-z]{1,6})?:[a-z]{1,6}", fullmatch=True)
positive = st.floats(1e-8, 1e3)


@st.composite
def recipes(draw):
    optimizer = draw(st.sampled_from(["sgd", "adam", "adamw"]))
    amount = {draw(st.sampled_from(["epochs", "steps"])): draw(st.integers(50, 100))}
    return RecipeConfig(
        lr=draw(positive),
        batch_size=draw(st.integers(1, 512)),
        optimizer=optimizer,
        momentum=draw(st.floats(0, 0.99)) if optimizer == "sgd" else 0.0,
        betas=(draw(st.floats(0, 0.99)), draw(st.floats(0, 0.99))),
        clip_norm=draw(st.none() | positive),
        **amount,
    )


@st.composite
def score_configs(draw):
    methods = draw(st.lists(st.sampled_from(["grad_dot", "ekfac", "trak", "a b"]), min_size=1, unique=True))
    chosen = draw(st.lists(st.sampled_from(methods), unique=True))
    return ScoreConfig(tuple(methods), {name: draw(options) for name in chosen}, draw(st.integers(1, 50)))


distinct = st.lists(st.integers(1, 50), unique=True, max_size=4).map(tuple)
configs = st.builds(
    RunConfig,
    name=text.filter(str.strip),
    task=st.builds(TaskConfig, factory=names, options=options),
    recipe=recipes(),
    gold=st.builds(
        GoldConfig,
        left_out=st.integers(1, 500),
        left_out_choice=st.sampled_from(["even", "random"]),
        left_out_indices=distinct,
        seeds=st.integers(1, 100),
        points=distinct,
        engine=st.sampled_from(["auto", "stacked", "loop", "processes"]),
    ),
    score=score_configs(),
    agree=st.builds(AgreeConfig, confidence=st.floats(0.5, 0.99)),
)


@given(configs)
def test_written_configurations_read_back_equal(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "round_trip.toml"
    path.write_text(dump_toml(config), encoding="utf-8", newline="")
    assert load_toml(path, RunConfig) == config
    assert from_dict(RunConfig, to_dict(config)) == config


def test_minimal_configuration_gets_every_default(tmp_path):
    config = load_text(tmp_path, MINIMAL)
    assert config.recipe == RecipeConfig(lr=0.03, batch_size=128, epochs=50)
    assert config.gold == GoldConfig()
    written = dump_toml(config)
    assert "seeds = 5" in written
    assert "steps" not in written.replace("warmup_steps", "")  # None has no place in TOML


def test_an_integer_is_a_number_and_a_byte_order_mark_is_harmless(tmp_path):
    (tmp_path / "run.toml").write_text("\ufeff" + MINIMAL.replace("0.03", "1"), encoding="utf-8")
    lr = load_toml(tmp_path / "run.toml", RunConfig).recipe.lr
    assert (lr, type(lr)) == (1.0, float)


# What is wrong, and where


@pytest.mark.parametrize(
    "old, new, messages",
    [
        ("lr = 0.03", "lr = 0.03\nmomentun = 0.9", ["`momentun` in [config.recipe]", "`momentum`?", "`nesterov`"]),
        ("[task]", "recipes = 3\n[task]", ["`recipes` in [config]", "`recipe`?"]),
        ("lr = 0.03", "lr = '0.03'", ["`config.recipe.lr` must be a number", "got text in quotes, '0.03'"]),
        ("lr = 0.03", "lr = true", ["`config.recipe.lr` must be a number", "true or false"]),
        ("batch_size = 128", "batch_size = 128.0", ["`config.recipe.batch_size` must be an integer", "128.0"]),
        ("batch_size = 128", "", ["[config.recipe] lacks `batch_size`"]),
        ("[task]\nfactory = \"pkg.mod:build\"", "task = 'pkg.mod:build'", ["`config.task` must be a table"]),
        ("factory = \"pkg.mod:build\"", "", ["[config.task] lacks `factory`"]),
        ("pkg.mod:build", "pkg.mod.build", ["[config.task]", "'package.module:name'", "colon"]),
        ("epochs = 50", "epochs = 50\nsteps = 3", ["[config.recipe]", "either `epochs` or `steps`"]),
        ("epochs = 50", "", ["[config.recipe]", "either `epochs` or `steps`"]),
        ("epochs = 50", "epochs = 'all'", ["`config.recipe.epochs` must be an integer"]),
        ("epochs = 50", "epochs = 50\nbetas = [0.9]", ["`config.recipe.betas` must have 2 entries; got 1"]),
        ("epochs = 50", "epochs = 50\nbetas = 0.9", ["`config.recipe.betas` must be a list"]),
        ("epochs = 50", "epochs = 50\noptimizer = 'adma'", ["must be one of `sgd`, `adam`, `adamw`", "`adam`?"]),
        ("epochs = 50", "epochs = 50\n[gold]\npoints = [1, '2']", ["`config.gold.points[1]` must be an integer"]),
        ("epochs = 50", "epochs = 50\n[gold]\npoints = [1, 60]", ["[config]", "from 1 to the recipe's 50 epochs"]),
        ("epochs = 50", "epochs = 50\n[gold]\nleft_out_indices = [3, 3]", ["[config.gold]", "not repeat"]),
        ("epochs = 50", "epochs = 50\n[gold]\nseeds = 0", ["[config.gold]", "`seeds`", "at least 1"]),
        ("epochs = 50", "epochs = 50\n[score]\nmethods = []", ["[config.score]", "at least one method"]),
        ("epochs = 50", "epochs = 50\n[score.options.grad_dt]\na = 1", ["[config.score]", "'grad_dot'?"]),
        ("epochs = 50", "epochs = 50\n[score.options]\ngrad_dot = 1", ["`config.score.options.grad_dot`", "a table"]),
        ("epochs = 50", "epochs = 50\n[agree]\nmetrics = ['cosin']", ["[config.agree]", "'cosine'?"]),
        ("epochs = 50", "epochs = 50\n[agree]\nconfidence = 95", ["[config.agree]", "between 0 and 1"]),
        ("epochs = 50", "epochs = ", ["not valid TOML", "line 8"]),
        ("\"energy\"", "\" \"", ["[config]", "`name` must not be empty"]),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(tmp_path, old, new, messages):
    assert old in MINIMAL
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, MINIMAL.replace(old, new))
    found = str(caught.value)
    assert found.startswith(str(tmp_path / "run.toml"))
    for message in messages:
        assert message in found


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load_toml(tmp_path / "absent.toml", RunConfig)
    (tmp_path / "latin.toml").write_bytes(b'name = "a"\nother = "\xe9"\n')
    with pytest.raises(ConfigError, match="not UTF-8 text at line 2"):
        load_toml(tmp_path / "latin.toml", RunConfig)


@dataclass(frozen=True)
class Inner:
    x: int = 0


@dataclass(frozen=True)
class Outer:
    many: tuple[Inner, ...] = ()
    mixed: int | str | None = None
    anything: Any = 1
    by_name: dict[str, Inner] = field(default_factory=dict)
    level: Literal[1, "high"] = 1
    numbers: list[float] = field(default_factory=list)


def test_nested_kinds_convert():
    data = {
        "many": [{"x": 1}, {"x": 2}],
        "mixed": "a",
        "anything": [1, "b"],
        "by_name": {"one": {"x": 1}},
        "level": "high",
        "numbers": [1, 2.5],
    }
    outer = from_dict(Outer, data)
    assert outer == Outer((Inner(1), Inner(2)), "a", [1, "b"], {"one": Inner(1)}, "high", [1.0, 2.5])
    assert to_dict(outer) == data


@pytest.mark.parametrize(
    "data, message",
    [
        ({"many": [{"x": 1}, {"y": 2}]}, r"`y` in \[config.many\[1\]\]"),
        ({"by_name": {"one": {"z": 1}}}, r"`z` in \[config.by_name.one\]"),
        ({"mixed": 1.5}, "`config.mixed` must be text"),
        ({"level": True}, "`config.level` must be one of `1`, `high`; got True"),
    ],
)
def test_nested_mistakes_have_their_place(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, data)


def test_what_toml_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match=r"TaskConfig.options.path\[0\]` is None"):
        dump_toml(TaskConfig("a:b", {"path": [None]}))
    with pytest.raises(ConfigError, match="TOML cannot hold"):
        dump_toml(TaskConfig("a:b", {"path": Path("x")}))


# Factories


def write_factory(folder, source="def build(n=1):\n    return n\n", name="tasks.py"):
    (folder / name).write_text(source)
    return folder / name


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    return tmp_path


def test_factories_from_files_and_modules(in_tmp):
    path = write_factory(in_tmp)
    assert import_factory("tasks.py:build")(n=3) == 3
    assert import_factory(f"{path}:build")() == 1
    write_factory(in_tmp, name="a_module_of_ours.py")
    assert import_factory("a_module_of_ours:build")(n=2) == 2
    assert import_factory("collections:OrderedDict")() == {}


def test_a_file_is_read_anew_and_finds_its_neighbours(in_tmp):
    write_factory(in_tmp, "N = 7\n", "a_neighbour_of_ours.py")
    write_factory(in_tmp, "import a_neighbour_of_ours as o\ndef build():\n    return o.N\n")
    assert import_factory("tasks.py:build")() == 7
    write_factory(in_tmp, "def build():\n    return 8\n")
    assert import_factory("tasks.py:build")() == 8


def test_a_dataclass_in_a_file_works(in_tmp):
    write_factory(
        in_tmp,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Batch:\n    x: int\ndef build():\n    return Batch(1)\n",
    )
    assert dataclasses.asdict(import_factory("tasks.py:build")()) == {"x": 1}


@pytest.mark.parametrize(
    "factory, messages",
    [
        ("absent.py:build", ["there is no file", "absent.py"]),
        ("no_such_pkg.mod:build", ["cannot import no_such_pkg.mod", "No module named 'no_such_pkg'", "Install it"]),
        ("tasks.py:biuld", ["has no `biuld`", "Did you mean `build`?"]),
        ("tasks.py:n", ["`n` is a int, not callable"]),
        ("broken.py:build", ["cannot import", "broken.py", "ModuleNotFoundError: No module named 'no_such_pkg'"]),
        ("exits.py:build", ["SystemExit: 2"]),
        ("tasks.py", ["after a colon"]),
        (":build", ["after a colon"]),
        ("tasks.py:", ["after a colon"]),
    ],
)
def test_factories_that_do_not_work_say_why(in_tmp, factory, messages):
    write_factory(in_tmp, "n = 3\ndef build():\n    pass\n")
    write_factory(in_tmp, "import no_such_pkg\n", "broken.py")
    write_factory(in_tmp, "raise SystemExit(2)\n", "exits.py")
    with pytest.raises(ConfigError) as caught:
        import_factory(factory)
    for message in messages:
        assert message in str(caught.value)


def test_a_file_factory_is_looked_for_beside_its_configuration(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    write_factory(folder)
    (folder / "run.toml").write_text(MINIMAL.replace("pkg.mod:build", "tasks.py:build"))
    config = load_config(folder / "run.toml")
    assert config.task.factory == f"{folder / 'tasks.py'}:build"
    assert import_factory(config.task.factory)() == 1


def test_checkpoints_are_looked_for_beside_the_configuration(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    absolute = tmp_path / "elsewhere.pt"
    table = f"""
[score]
methods = ["tracin", "trak"]
options.tracin = {{checkpoints = ["a.pt", "../b.safetensors", "{absolute}"], learning_rates = [1, 2, 0.5]}}
options.trak.checkpoints = "alone.pt"
"""
    (folder / "run.toml").write_text(MINIMAL.partition("[score")[0] + table)
    options = load_config(folder / "run.toml").score.options
    assert options["tracin"] == {
        "checkpoints": [str(folder / "a.pt"), str(tmp_path / "b.safetensors"), str(absolute)],
        "learning_rates": [1, 2, 0.5],
    }
    assert options["trak"] == {"checkpoints": "alone.pt"}  # no list: the method's own check says so
