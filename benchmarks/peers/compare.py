"""Runs in subprocesses, kept and not repeated, and what follows from them: medians, ratios, agreement."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Scores = NDArray[Any]  # (n_query, n_train)
Entry = dict[str, Any]
OURS = "ours"
NUMBERS = ("fit_s", "score_s", "cpu_fit_s", "cpu_score_s", "peak_mb")
SIZES = ("n_train", "n_query")
TAIL = 300  # characters of the log that stand for the error of a run which left no result


@dataclass(frozen=True)
class Runner:
    """Starts runs of one problem and keeps their results under `work`.

    Attributes:
        problem_dir: The saved problem.
        work: Folder of results, one of its own for each number of threads.
        threads: Of each run.
        limit_s: Wall seconds after which a run is ended and counts as an error.
        limit_gib: Address space of a run: one that needs more fails alone, and ends no other process.
        retry_errors: Run again what ended in an error.
    """

    problem_dir: Path
    work: Path
    threads: int
    limit_s: float
    limit_gib: float
    retry_errors: bool = False

    def folder(self, tool: str, method: str, repeat: int, n_query: int | None) -> Path:
        """Where one run's result lies."""
        name = method if n_query is None else f"{method}-{n_query}-queries"
        return self.work / tool / name / str(repeat)

    def run(self, tool: str, method: str, repeat: int, n_query: int | None) -> Entry:
        """The result of one run, read where there is one."""
        folder = self.folder(tool, method, repeat, n_query)
        path = folder / "result.json"
        if path.is_file():
            found: Entry = json.loads(path.read_text())
            if found["error"] is None or not self.retry_errors:
                return found
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        error = self._start(tool, method, n_query, folder)
        if error is not None:
            path.write_text(json.dumps({"error": error}))
        result: Entry = json.loads(path.read_text())
        return result

    def _start(self, tool: str, method: str, n_query: int | None, folder: Path) -> str | None:
        """Run and wait; what went wrong, where the run could not say it itself."""
        command = [sys.executable, "-m", "benchmarks.peers.measure"]
        command += ["--problem", str(self.problem_dir), "--tool", tool, "--method", method]
        command += ["--threads", str(self.threads), "--limit-gib", str(self.limit_gib), "--out", str(folder)]
        command += [] if n_query is None else ["--queries", str(n_query)]
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                command, env=environment(self.threads), stdout=log, stderr=log, start_new_session=True
            )
            try:
                process.wait(self.limit_s)
            except subprocess.TimeoutExpired:
                return f"stopped: not finished after {self.limit_s:g} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if (folder / "result.json").is_file():
            return None
        tail = (folder / "log.txt").read_text(errors="replace").strip()[-TAIL:]
        return f"ended with status {process.returncode}: {tail}"


def environment(threads: int) -> dict[str, str]:
    """Variables of a run: every library gets the same number of threads, and none asks the network."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **dict.fromkeys(counts, str(threads)), **offline}


def entry_of(runs: list[Entry], note: str | None = None) -> Entry:
    """Medians over the runs of one method of one tool, with all runs; the first error where one ended in an error."""
    errors = [run["error"] for run in runs if run["error"] is not None]
    entry: Entry = dict.fromkeys(NUMBERS + SIZES)
    if not errors:
        entry |= {key: _median(run[key] for run in runs) for key in NUMBERS}
        entry |= {key: runs[0][key] for key in SIZES}
    entry |= {"error": errors[0] if errors else None, "runs": runs}
    return entry if note is None else {**entry, "note": note}


def _median(values: Iterable[float | None]) -> float | None:
    found = list(values)
    return None if None in found else statistics.median(v for v in found if v is not None)


def total_cpu_seconds(entry: Mapping[str, Any], n_query: int) -> float:
    """CPU seconds to fit and to score `n_query` queries; scoring is taken as proportional to the queries."""
    return float(entry["cpu_fit_s"]) + float(entry["cpu_score_s"]) * n_query / int(entry["n_query"])


def ratio(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> float | None:
    """CPU seconds of the peer over ours, at our number of queries; None where one of them has an error."""
    if ours["error"] is not None or peer["error"] is not None:
        return None
    n_query = int(ours["n_query"])
    own = total_cpu_seconds(ours, n_query)
    return total_cpu_seconds(peer, n_query) / own if own > 0 else None


def agreement(ours: Scores, peer: Scores) -> dict[str, float | int | None]:
    """Correlations of two score matrices over the queries that both have.

    Args:
        ours: (n_query, n_train).
        peer: The same train examples, perhaps the first queries only.
    Returns:
        `pearson`, `spearman` over all pairs, `pearson_by_query`, `spearman_by_query` as means over queries, `n_query`.
        None for scores that are constant or not finite: they have no correlation.
    Raises:
        ValueError: Other train examples.
    """
    if ours.shape[1] != peer.shape[1]:
        raise ValueError(f"scores of {ours.shape[1]} and of {peer.shape[1]} train examples cannot be compared")
    n = min(len(ours), len(peer))
    a, b = ours[:n].astype(np.float64), peer[:n].astype(np.float64)
    ranks = [rankdata(x, axis=1) for x in (a, b)]
    return {
        "pearson": correlation(a.ravel(), b.ravel()),
        "spearman": correlation(rankdata(a), rankdata(b)),
        "pearson_by_query": _mean_correlation(a, b),
        "spearman_by_query": _mean_correlation(*ranks),
        "n_query": n,
    }


def correlation(a: Scores, b: Scores) -> float | None:
    """Pearson correlation of two vectors; None where it is not defined."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    # Scaled first: squares of tiny or huge scores are 0 or infinite.
    a, b = (x / np.abs(x).max() for x in (a, b))
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _mean_correlation(a: Scores, b: Scores) -> float | None:
    each = [correlation(x, y) for x, y in zip(a, b, strict=True)]
    known = [value for value in each if value is not None]
    return statistics.fmean(known) if len(known) == len(each) else None


def by_method(
    ours: Mapping[str, Entry], peers: Mapping[str, Mapping[str, Entry]], compute: Any
) -> dict[str, dict[str, Any]]:
    """{method: {peer: compute(method, peer)}} for the methods of each peer that we list too."""
    return {
        method: {peer: compute(method, peer) for peer, entries in peers.items() if method in entries} for method in ours
    }


def merged(known: Mapping[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A new result with the methods and tools of an earlier one that it lacks.

    Ratios are of runs that took turns: those of a pair of ours and theirs that was not run again stay as they were,
    though seconds of ours that were measured again stand beside them.

    Args:
        known: Earlier result of the same task and threads; None for none.
        new: Wins where both have an entry; so do its settings, versions and machine.
    """
    if known is None:
        return new
    peers = [*known["peers"], *(peer for peer in new["peers"] if peer not in known["peers"])]
    ours = {**known["ours"], **new["ours"]}
    theirs = {peer: {**known["peers"].get(peer, {}), **new["peers"].get(peer, {})} for peer in peers}
    pairs = {
        part: {m: {**known[part].get(m, {}), **new[part].get(m, {})} for m in ours} for part in ("ratio", "agreement")
    }
    return {**new, "ours": ours, "peers": theirs, **pairs}
