"""The command line: answers at once, says what is wrong in one message, and where the result is."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import whence
import whence.progress
from whence.cli import main
from whence.cli.show import show_agree
from whence.errors import WhenceWarning
from whence.runs.agree import AgreeResult
from whence.task import GroupWeights

FACTORY = """
import torch
import whence

torch.manual_seed(0)
X, Y = torch.randn(12, 2), torch.randn(12, 1)

def build(fail="", learning=False):
    if fail:
        raise OSError(fail)
    task = whence.Task.regression(torch.nn.Linear(2, 1).eval())
    with torch.no_grad():
        task.model.weight.fill_(0.5)
        task.model.bias.fill_(0.1)
    train, queries = whence.Examples((X[:10], Y[:10])), whence.Examples((X[10:], Y[10:]))
    if learning:
        more = whence.Examples((torch.linspace(-1, 1, 10).reshape(5, 2), torch.ones(5, 1)))
        return whence.Setup(task, train, queries, learning_queries=more)
    return task, train, queries
"""
CONFIG = """
name = "tiny"
task.factory = "factory.py:build"
recipe = {lr = 0.05, batch_size = 5, epochs = 2}
gold = {left_out = 4, seeds = 2, engine = "loop"}
score.methods = ["grad_dot", "horizon"]
agree = {metrics = ["pearson"], n_bootstrap = 20}
"""
SLOW = CONFIG.replace("epochs = 2", "epochs = 500").replace("seeds = 2", "seeds = 99")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder with a factory and a TOML file, as working directory; the choice of progress is undone."""
    (tmp_path / "factory.py").write_text(FACTORY)
    (tmp_path / "tiny.toml").write_text(CONFIG)
    (tmp_path / "slow.toml").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(whence.progress, "_asked", None)
    monkeypatch.delenv("WHENCE_DEBUG", raising=False)
    return tmp_path


def whence_process(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "whence", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# At once


@pytest.mark.parametrize(
    "arguments, code, shown",
    [
        (["--help"], 0, "gold"),
        (["gold", "--help"], 0, "--rebuild"),
        (["--version"], 0, whence.__version__),
        (["scoer", "x.toml"], 2, '"score"'),
        (["gold", "--rebuidl"], 2, "Did you mean --rebuild?"),
        (["gold", "absent.toml"], 1, "There is no file or folder absent.toml"),
    ],
)
def test_help_and_typing_errors_answer_at_once(arguments, code, shown):
    best_s = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        process = whence_process(*arguments)
        out, err = process.communicate(timeout=60)
        best_s = min(best_s, time.perf_counter() - started)
    assert process.returncode == code
    assert shown in (out if code == 0 else err)
    assert (err if code == 0 else out) == ""
    assert best_s < 1.0  # about 0.13 s on an idle machine; importing torch alone takes longer than this bound


@pytest.mark.parametrize("arguments", [["--help"], ["gold", "--help"], ["gold", "--rebuidl"], ["gold", "absent.toml"]])
def test_nothing_heavy_is_imported_for_them(arguments):
    heavy = ["torch", "numpy", "pandas", "pyarrow", "whence.runs"]
    script = (
        "import sys; from whence.cli import main; code = main(sys.argv[1:]);"
        f"print('heavy:', sorted(set({heavy}) & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("heavy: []\n")


# The command line itself


@pytest.mark.parametrize(
    "arguments, shown",
    [
        (["scoer"], 'Did you mean "score"'),
        (["gold"], "CONFIG requires an argument"),
        (["gold", "tiny.toml", "--ot", "x"], "Did you mean --out?"),
        (["gold", "tiny.toml", "--ot=x"], "Unknown option --ot. Did you mean --out?"),
        (["agree", "tiny.toml", "--rebuild"], "Known: --out, --quiet, --progress, --debug, --help"),
        (["score", "tiny.toml", "--queit"], "Did you mean --quiet?"),
        (["score", "tiny.toml", "--progress", "rihc"], 'Did you mean "rich"'),
        (["score", "tiny.toml", "other.toml"], "Unexpected arguments: other.toml"),
        (["gold", "tiny.toml", "--no-rebuild"], "Unknown option --no-rebuild"),
    ],
)
def test_usage_errors_name_the_nearest_and_exit_with_2(arguments, shown, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert shown in captured.err
    assert "whence --help" in captured.err
    assert captured.out == ""


def test_without_arguments_the_commands_are_listed(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("demo", "gold", "score", "agree", "weigh", "evaluate", "audit", "report"))


# What a configuration can have wrong


@pytest.mark.parametrize(
    "content, shown",
    [
        (None, "There is no file or folder tniy.toml. Did you mean tiny.toml?"),
        ("name = 'a'\nname =", "tniy.toml: not valid TOML"),
        (CONFIG.replace("lr =", "lrr ="), "Unknown key `lrr` in [config.recipe]. Did you mean `lr`?"),
        (CONFIG.replace("grad_dot", "grad_dto"), "Did you mean 'grad_dot'?"),
        (CONFIG.replace("factory.py", "facotry.py"), "there is no file"),
        (CONFIG.replace("factory.py", "no_such_module"), "cannot import no_such_module"),
        (CONFIG + 'task.options.fial = "no disk"', "takes (fail='', learning=False)"),
    ],
)
@pytest.mark.parametrize("command", ["gold", "score", "agree", "weigh", "evaluate", "audit"])
def test_one_message_and_exit_code_1(command, content, shown, project, capsys):
    if content is not None:
        (project / "tniy.toml").write_text(content)
    assert main([command, "tniy.toml", "--progress", "silent"]) == 1
    captured = capsys.readouterr()
    assert shown in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (project / "runs" / "tiny").exists()


def test_the_error_of_a_factory_names_its_line(project, capsys):
    (project / "own.toml").write_text(CONFIG + 'task.options.fail = "no disk"')
    assert main(["gold", "own.toml", "--quiet"]) == 1
    assert re.search(r"failed: OSError: no disk \(.*factory\.py, line 10\)", capsys.readouterr().err)


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback(how, monkeypatch, capsys):
    if how == "environment":
        monkeypatch.setenv("WHENCE_DEBUG", "1")
    assert main(["gold", "absent.toml", *(["--debug"] if how == "option" else [])]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "There is no file or folder absent.toml" in err.splitlines()[-1]


def test_a_method_that_fails_is_named(project, capsys):
    (project / "hot.toml").write_text(CONFIG.replace("lr = 0.05", "lr = 50"))
    assert main(["score", "hot.toml", "--quiet"]) == 1
    err = capsys.readouterr().err
    assert "This was method 'horizon'; methods scored before it are kept." in err
    assert (project / "runs" / "tiny" / "scores" / "grad_dot" / "manifest.json").is_file()


# A run


def test_a_run_ends_every_command_with_the_place_of_its_result(project, capsys):
    places = {"gold": "runs/tiny/gold", "score": "runs/tiny/scores", "agree": "runs/tiny/summary.json"}
    for command, place in places.items():
        assert main([command, "tiny.toml", "--progress", "json"]) == 0
        captured = capsys.readouterr()
        last = Path(captured.out.splitlines()[-1])
        assert last == Path(place)
        assert (project / last).exists()
        assert all(json.loads(line)["event"] for line in captured.err.splitlines())
    assert main(["agree", "runs/tiny/config.toml", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(Path("runs/tiny/summary.json"))]
    assert captured.err == ""


WEIGHED = CONFIG.replace("epochs = 2}", "epochs = 2}\nweigh.k = 2") + (
    'task.options.learning = true\n[evaluate]\nkept_sets = 4\nengine = "loop"\nn_bootstrap = 10\n'
    "recipe = {lr = 0.1, batch_size = 5, epochs = 2}\n"
)


def test_weigh_evaluate_and_report_print_what_they_found_and_where(project, capsys):
    (project / "weighed.toml").write_text(WEIGHED)
    assert main(["--quiet", "score", "weighed.toml"]) == 0
    shown = {
        "weigh": ("grad_dot (weighed)  parameters  energy  rms", "runs/tiny/weights"),
        "evaluate": ("Paired differences.", "runs/tiny/evaluation/evaluation.json"),
        "report": ("", "runs/tiny/report.html"),
    }
    capsys.readouterr()
    for command, (words, place) in shown.items():
        assert main([command, "weighed.toml", "--progress", "silent"]) == 0
        out = capsys.readouterr().out
        assert words in out
        assert out.splitlines()[-1] == str(Path(place))
        assert (project / place).exists()
    assert main(["report", "weighed.toml", "--method", "horizon", "--method", "grad_dot", "--quiet"]) == 0
    assert main(["report", "weighed.toml", "--method", "grad_dto", "--quiet"]) == 1
    assert "Did you mean 'grad_dot'?" in capsys.readouterr().err


def test_weigh_prints_shares_weights_and_how_they_were_found(project, capsys):
    few_shot = "relative = false\nwithout_hubs = true\nguard = true\nentropy_floor = 1.0\nfew_shot = 5\n[evaluate]"
    text = WEIGHED.replace("weigh.k = 2", "").replace("[evaluate]", f"[weigh]\nk = 2\n{few_shot}")
    (project / "weighed.toml").write_text(text)
    assert main(["weigh", "weighed.toml", "--progress", "silent"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rms = GroupWeights.load("runs/tiny/weights/grad_dot/rms.json").values
    energy = 100 / rms.square() / (1 / rms.square()).sum()
    assert [line.split()[:4] for line in lines[:3]] == [
        ["grad_dot", "(weighed)", "parameters", "energy"],
        ["weight", "66.7", "%", f"{energy[0]:.1f}"],  # 2 of 3 parameters
        ["bias", "33.3", "%", f"{energy[1]:.1f}"],
    ]
    assert lines[0].split()[4:] == ["rms", "learned", "few_shot"]
    assert lines[1].split()[6] == "1.000"  # the floor is uniform
    rest = "\n".join(lines[3:])
    for shown in (
        "contributions in memory",
        "Loss on 4 learning queries as learned, lower is better: uniform -",
        "Loss on 1 held out",
        "Likeness of two of 5 folds: cosine ",
        "Guard: ",
        "Entropy floor 1: 100 % uniform weights.",
        "Mixed with unweighted scores, 50 % of the spread.",
        "Few-shot from 5 kept sets",
        '[score.options.grad_dot] weights = "runs/tiny/weights/grad_dot/learned.json"',
    ):
        assert shown in rest, shown


def test_weigh_with_a_teacher_prints_correlations(project, capsys):
    (project / "weighed.toml").write_text(WEIGHED.replace("weigh.k = 2", 'weigh.teacher = "ekfac"'))
    assert main(["weigh", "weighed.toml", "--progress", "silent"]) == 0
    printed = capsys.readouterr().out
    assert "Made by distilled in " in printed
    learned = GroupWeights.load("runs/tiny/weights/grad_dot/learned.json")
    value = -learned.facts["queries"]["loss"]["uniform"]
    assert (
        f"Correlation with ekfac on 4 learning queries of relative contributions as learned: uniform {value:.4f}"
        in (printed)
    )


def test_weigh_without_learning_queries_says_what_to_return(project, capsys):
    assert main(["--quiet", "weigh", "tiny.toml"]) == 1
    assert "whence.Setup(task, train, queries, learning_queries=...)" in capsys.readouterr().err


def test_report_of_nothing_names_the_commands_that_start_a_run(project, capsys):
    assert main(["--quiet", "report", "tiny.toml"]) == 1
    assert "holds no run yet. Start it with `whence score tiny.toml`" in capsys.readouterr().err
    assert not (project / "runs").exists()


def test_out_and_rebuild_reach_the_run(project, capsys):
    assert main(["--quiet", "gold", "tiny.toml", "--out", "mine"]) == 0
    assert main(["--quiet", "score", "tiny.toml", "--out", "mine"]) == 0
    damaged = project / "mine" / "scores" / "grad_dot" / "top.parquet"
    damaged.write_bytes(b"")
    next((project / "mine" / "gold").glob("seed-*.safetensors")).write_bytes(b"")
    for command in ("gold", "score"):
        assert main(["--quiet", command, "mine"]) == 1
        assert "--rebuild" in capsys.readouterr().err
        assert main(["--quiet", command, "mine", "--rebuild"]) == 0
    assert main(["--quiet", "agree", "mine"]) == 0


def test_the_demo_prints_the_path_of_its_report(monkeypatch, tmp_path, capsys):
    import whence.report.demo as room

    made = lambda out: room.DemoReport(out / "report.html", out / "summary.json", ("grad_dot 0.5",))  # noqa: E731
    monkeypatch.setattr(room, "demo", made)
    assert main(["demo", "--out", "there", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{Path('there/report.html')}\n"
    assert main(["demo"]) == 0
    lines = ["grad_dot 0.5", str(Path("runs/demo/summary.json")), str(Path("runs/demo/report.html"))]
    assert capsys.readouterr().out.splitlines() == lines


def test_warnings_are_one_line_on_stderr(monkeypatch, capsys):
    import whence.runs.gold

    def warn(*args, **options):
        warnings.warn("half of it is constant", WhenceWarning, stacklevel=1)
        raise whence.errors.InputError("stop")

    monkeypatch.setattr(whence.runs.gold, "run_gold", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["gold", "tiny.toml"]) == 1
    assert capsys.readouterr().err == "Warning: half of it is constant\nError: stop\n"


# Ctrl-C


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_ctrl_c_ends_with_130_and_the_same_command_continues(project):
    # Where tests run in the background a shell has them ignore this signal, and so would their children.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = whence_process("gold", "slow.toml", "--progress", "json", **heard)
    assert process.stderr is not None
    for line in process.stderr:
        if '"further training"' in line and '"progress"' in line:
            break
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()  # nothing is left running where the signal was not heard
    assert process.returncode == 130
    assert out == ""
    assert "The same command continues where it stopped: whence gold slow.toml --progress json" in err
    assert "Traceback" not in err
    stored = {path: path.stat().st_mtime_ns for path in (project / "runs/tiny/gold").glob("*.safetensors")}
    assert stored
    again = whence_process("gold", "slow.toml", "--progress", "json")
    assert again.stderr is not None
    starts = (json.loads(line) for line in again.stderr)
    total = next(event["total"] for event in starts if event["stage"] == "further training")
    again.kill()
    again.communicate()
    runs = [int(path.stem.rpartition("-of-")[2]) for path in stored if path.stem != "header"]
    assert total == 99 * 5 - sum(runs)
    assert {path: path.stat().st_mtime_ns for path in stored} == stored


def test_an_interrupt_in_python_is_answered(monkeypatch, capsys):
    import whence.runs.score

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(whence.runs.score, "run_score", interrupt)
    assert main(["score", "tiny.toml", "--out", "a b"]) == 130
    assert capsys.readouterr().err.endswith("whence score tiny.toml --out 'a b'\n")


# Tables


def test_the_table_shows_values_intervals_and_gaps():
    summary = {
        "n_query": 3,
        "n_seeds": 2,
        "n_left_out_sets": 4,
        "confidence": 0.9,
        "points": [1, 20],
        "point_unit": "epochs",
        "agreement": {"pearson": {"grad_dot": {"1": [0.5, 0.25, 0.75], "20": [None, None, None]}}},
        "ceiling": {"pearson": {"1": [0.9, None, None], "20": [1.0, 1.0, 1.0]}},
        "notes": ["one seed"],
    }
    result = AgreeResult(Path("run"), Path("run/agreement.parquet"), Path("run/summary.json"), summary, True)
    assert show_agree(result) == [
        "Agreement with the gold standard: mean over 3 queries, 2 seeds, 4 left-out sets; 90 % intervals.",
        "",
        "pearson at epochs  1                  20",
        "grad_dot           0.50 [0.25, 0.75]  -",
        "ceiling            0.90               1.00 [1.00, 1.00]",
        "",
        "Note: one seed.",
        str(Path("run/agreement.parquet")),
        str(Path("run/summary.json")),
    ]
