"""What the comparison with other tools computes from its runs; no tool is needed, nor run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmarks.peers import __main__ as command
from benchmarks.peers import compare, measure
from benchmarks.peers.compare import OURS, Entry, Runner, agreement, by_method, correlation, entry_of, merged, ratio
from benchmarks.peers.table import peers_section
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

ROUNDING = 1e-12  # sums of some hundred float64 terms of one size


def run_of(fit: float = 1.0, score: float = 2.0, n_query: int = 10, **other: Any) -> Entry:
    """One run without an error; CPU seconds are twice the wall's."""
    run: Entry = {"fit_s": fit, "score_s": score, "cpu_fit_s": 2 * fit, "cpu_score_s": 2 * score}
    return {**run, "peak_mb": 5.0, "n_train": 7, "n_query": n_query, "error": None, **other}


def scores(n_query: int = 4, n_train: int = 30, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n_query, n_train))


def test_entry_takes_medians_and_keeps_all_runs() -> None:
    runs = [run_of(fit=f, score=s, peak_mb=p) for f, s, p in ((1.0, 9.0, 3.0), (5.0, 2.0, 1.0), (2.0, 4.0, 8.0))]
    entry = entry_of(runs, "a note")
    assert (entry["fit_s"], entry["score_s"], entry["cpu_fit_s"], entry["cpu_score_s"]) == (2.0, 4.0, 4.0, 8.0)
    assert (entry["peak_mb"], entry["n_train"], entry["n_query"], entry["error"]) == (3.0, 7, 10, None)
    assert entry["runs"] == runs
    assert entry["note"] == "a note"


def test_entry_of_an_error_has_its_text_and_no_numbers() -> None:
    entry = entry_of([run_of(), {"error": "ImportError: no module"}])
    assert entry["error"] == "ImportError: no module"
    assert all(entry[key] is None for key in compare.NUMBERS + compare.SIZES)
    assert len(entry["runs"]) == 2
    assert "note" not in entry


def test_unknown_memory_stays_unknown() -> None:
    assert entry_of([run_of(peak_mb=None), run_of()])["peak_mb"] is None


def test_ratio_is_of_cpu_seconds_at_our_number_of_queries() -> None:
    ours = entry_of([run_of(fit=1.0, score=3.0, n_query=10)])  # 8 CPU seconds
    peer = entry_of([run_of(fit=4.0, score=2.0, n_query=5)])  # 8 to fit, 4 for 5 queries: 16 for 10
    assert ratio(ours, peer) == pytest.approx(16 / 8)
    assert ratio(peer, ours) == pytest.approx((2 + 3) / (8 + 4))


def test_no_ratio_with_an_error_on_either_side() -> None:
    good, bad = entry_of([run_of()]), entry_of([{"error": "x"}])
    assert ratio(good, bad) is None
    assert ratio(bad, good) is None


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_agreement_is_that_of_scipy(seed: int) -> None:
    a, b = scores(seed=seed), scores(seed=seed + 5000) + scores(seed=seed)
    found = agreement(a, b)
    assert found["pearson"] == pytest.approx(pearsonr(a.ravel(), b.ravel())[0], abs=ROUNDING)
    assert found["spearman"] == pytest.approx(spearmanr(a.ravel(), b.ravel())[0], abs=ROUNDING)
    by_query = [pearsonr(x, y)[0] for x, y in zip(a, b, strict=True)]
    assert found["pearson_by_query"] == pytest.approx(np.mean(by_query), abs=ROUNDING)
    by_query = [spearmanr(x, y)[0] for x, y in zip(a, b, strict=True)]
    assert found["spearman_by_query"] == pytest.approx(np.mean(by_query), abs=ROUNDING)


def test_agreement_of_fewer_queries_is_over_the_first_ones() -> None:
    a = scores(n_query=4)
    found = agreement(a, -3.0 * a[:2])
    assert found["n_query"] == 2
    assert found["pearson"] == pytest.approx(-1.0, abs=ROUNDING)
    assert found["spearman_by_query"] == pytest.approx(-1.0, abs=ROUNDING)


def test_agreement_does_not_depend_on_a_tiny_or_huge_scale() -> None:
    a, b = scores(), scores(seed=1)
    assert agreement(1e-200 * a, 1e200 * b)["pearson"] == pytest.approx(correlation(a.ravel(), b.ravel()), abs=ROUNDING)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_constant_or_infinite_scores_have_no_correlation(value: float) -> None:
    a, b = scores(), scores(seed=1)
    b[0] = value
    found = agreement(a, b)
    assert found["pearson_by_query"] is None
    assert (found["pearson"] is None) == (not np.isfinite(value))
    json.dumps(found, allow_nan=False)


def test_scores_of_other_train_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="of 30 and of 20 train examples"):
        agreement(scores(), scores(n_train=20))


def test_by_method_lists_the_peers_that_have_the_method() -> None:
    peers = {"one": {"a": {}, "b": {}}, "two": {"b": {}}}
    found = by_method({"a": {}, "b": {}}, peers, lambda method, peer: method + peer)
    assert found == {"a": {"one": "aone"}, "b": {"one": "bone", "two": "btwo"}}


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "problem", tmp_path / "work", threads=1, limit_s=60.0, limit_gib=8.0)


def keep(runner: Runner, tool: str, method: str, run: Entry, values: Any = None) -> None:
    """A run as if it had been made."""
    folder = runner.folder(tool, method, 0, None)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(run))
    if values is not None:
        np.save(folder / "scores.npy", values)


def test_kept_runs_are_not_run_again(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(runner, OURS, "grad_dot", run_of())
    keep(runner, "peer", "grad_dot", {"error": "x"})

    def refuse(*args: Any) -> None:
        raise AssertionError("was run again")

    monkeypatch.setattr(Runner, "_start", refuse)
    assert runner.run(OURS, "grad_dot", 0, None) == run_of()
    assert runner.run("peer", "grad_dot", 0, None) == {"error": "x"}


def test_errors_are_run_again_when_asked(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(runner, "peer", "grad_dot", {"error": "x"})
    monkeypatch.setattr(Runner, "_start", lambda *args: "another error")
    again = Runner(runner.problem_dir, runner.work, 1, 60.0, 8.0, retry_errors=True)
    assert again.run("peer", "grad_dot", 0, None) == {"error": "another error"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import time; time.sleep(60)", "stopped: not finished after 1 s"),
        ("import sys; print('out of luck'); sys.exit(3)", "ended with status 3: out of luck"),
    ],
)
def test_a_run_that_hangs_or_dies_is_an_error(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: start([sys.executable, "-c", script], **options)
    )
    limited = Runner(runner.problem_dir, runner.work, 1, limit_s=1.0 if "sleep" in script else 60.0, limit_gib=8.0)
    assert limited.run("peer", "grad_dot", 0, None) == {"error": said}


def test_a_tool_that_raises_is_listed_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["measure", "--problem", str(tmp_path), "--tool", "no_such_tool", "--method", "ekfac", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "out")])
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    measure.main()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(found) == {"error"}
    assert "no_such_tool" in found["error"]


def test_error_text_is_class_and_first_line() -> None:
    assert measure.error_text(ValueError("one\ntwo")) == "ValueError: one"
    assert measure.error_text(MemoryError()) == "MemoryError"


def test_every_run_gets_the_same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    found = compare.environment(2)
    assert {found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"2"}


def test_our_methods_are_those_that_a_peer_has() -> None:
    found = command.our_methods({"one": ("grad_dot", "ekfac_linear"), "two": ("ekfac",)})
    assert found == ("grad_dot", "ekfac", "ekfac_linear")


def test_turns_alternate_and_stop_after_an_error(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, int]] = []

    def run(self: Runner, tool: str, method: str, repeat: int, n_query: int | None) -> Entry:
        order.append((tool, repeat))
        return {"error": "x"} if tool == "two" else run_of()

    monkeypatch.setattr(Runner, "run", run)
    found = command.run_all(runner, ("grad_dot",), {"one": ("grad_dot",), "two": ("grad_dot",), "three": ()}, 2)
    assert order == [(OURS, 0), ("one", 0), ("two", 0), (OURS, 1), ("one", 1)]
    assert {key: len(runs) for key, runs in found.items()} == {
        (OURS, "grad_dot"): 2,
        ("one", "grad_dot"): 2,
        ("two", "grad_dot"): 1,
    }


def test_shape_of_the_json(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    a = scores()
    keep(runner, OURS, "grad_dot", run_of(), a)
    keep(runner, "one", "grad_dot", run_of(score=5.0), 2 * a)
    runs = {
        (OURS, "grad_dot"): [run_of()],
        ("one", "grad_dot"): [run_of(score=5.0)],
        ("two", "grad_dot"): [{"error": "ImportError: x"}],
    }
    modules = dict.fromkeys((OURS, "one", "two"), SimpleNamespace(NOTES={"grad_dot": "differs"}))
    monkeypatch.setattr(command.importlib, "import_module", lambda name: modules[name.rpartition(".")[2]])
    found = command.result_of(runner, runs, {"one": ("grad_dot",), "two": ("grad_dot",)}, covers_all=True)
    assert set(found) == {"ours", "peers", "ratio", "agreement"}
    assert found["ratio"] == {"grad_dot": {"one": pytest.approx(2.0), "two": None}}
    assert found["agreement"]["grad_dot"]["one"]["pearson"] == pytest.approx(1.0, abs=ROUNDING)
    assert found["agreement"]["grad_dot"]["two"] is None
    assert found["peers"]["two"]["grad_dot"]["error"] == "ImportError: x"
    assert found["peers"]["one"]["grad_dot"]["note"] == "differs"
    json.dumps(found, allow_nan=False)


def result_with(ours: dict[str, float], peers: dict[str, dict[str, float]], **more: Any) -> dict[str, Any]:
    """A result with one run of so many seconds of each method."""
    entries = {m: entry_of([run_of(score=s)]) for m, s in ours.items()}
    theirs = {p: {m: entry_of([run_of(score=s)]) for m, s in of.items()} for p, of in peers.items()}
    agree = {m: {p: {"pearson": s} for p, of in peers.items() for n, s in of.items() if n == m} for m in ours}
    ratios = {m: {p: seconds["pearson"] / ours[m] for p, seconds in of.items()} for m, of in agree.items()}
    return {"task": "mlp", "threads": 1, "ours": entries, "peers": theirs, "ratio": ratios, "agreement": agree, **more}


def test_a_later_call_keeps_other_methods_and_tools() -> None:
    known = result_with({"a": 2.0, "b": 4.0}, {"one": {"a": 6.0, "b": 8.0}, "two": {"a": 10.0}}, machine="old")
    new = result_with({"a": 1.0}, {"one": {"a": 7.0}, "three": {"a": 9.0}}, machine="new")
    found = merged(known, new)
    # 10 / 2 stays: "two" was not run beside our new seconds.
    assert found["ratio"] == {"a": {"one": 7.0, "two": 5.0, "three": 9.0}, "b": {"one": 2.0}}
    assert found["ours"] == {"a": entry_of([run_of(score=1.0)]), "b": entry_of([run_of(score=4.0)])}
    assert found["peers"]["two"]["a"] == entry_of([run_of(score=10.0)])
    assert found["agreement"]["a"] == {"one": {"pearson": 7.0}, "two": {"pearson": 10.0}, "three": {"pearson": 9.0}}
    assert found["machine"] == "new"
    assert merged(None, new) is new


def test_results_of_another_task_are_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert command.earlier(out, "mlp", 1) is None
    out.write_text(json.dumps(result_with({}, {})))
    assert command.earlier(out, "mlp", 1) == result_with({}, {})
    for task, threads in (("cnn", 1), ("mlp", 2)):
        with pytest.raises(SystemExit, match="is of mlp with 1 threads"):
            command.earlier(out, task, threads)


def test_the_table_says_how_many_runs_there_are() -> None:
    result = result_with({"a": 1.0}, {"one": {"a": 2.0}})
    assert "medians of 1 runs" in "".join(peers_section("mlp", result))
    result["ours"]["a"] = entry_of([run_of()] * 5)
    result["peers"]["one"]["b"] = {"error": "no", "runs": []}
    assert "medians of 1 to 5 runs" in "".join(peers_section("mlp", result))


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"Unknown peers five; known: one, two\."):
        command.chosen(("one", "two"), ["two", "five"], "peers")
    assert command.chosen(("one", "two", "three"), ["three", "one"], "peers") == ("one", "three")
    assert command.chosen(("one", "two"), None, "peers") == ("one", "two")
