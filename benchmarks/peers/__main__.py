"""Our methods beside the existing tools: the same trained model, data, settings and threads.

    python -m benchmarks.peers --task mlp --threads 1 --out benchmarks/results/peers-mlp.json

The tools are installed in an environment of their own (`benchmarks/peers/install.sh`). Each run is a process that
reads the saved problem; ours and the peers' take turns. Interrupted, the same command continues with the runs that are
missing, and a JSON that is there already keeps its other methods and tools. A tool that cannot do a method, or fails,
is listed with its error. A ratio above 1 says that the tool took more CPU seconds than we did.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import problems
from benchmarks.peers.compare import OURS, Entry, Runner, agreement, by_method, entry_of, merged, ratio
from benchmarks.peers.measure import LINEAR, base_method
from whence.runs.machine import machine

PEERS = ("kronfluence", "dattri", "traker", "captum", "pydvl", "sequential_cg", "ours_again")
LIBRARIES = ("torch", "numpy", "scipy", "transformers", "kronfluence", "dattri", "traker", "captum", "pydvl")
# Slow with many queries: run on the first ones only, and scaled in the ratios.
FEWER_QUERIES: dict[tuple[str, str], int] = {
    ("ours", "lissa"): 20,
    ("dattri", "datainf"): 5,
    ("sequential_cg", "influence_cg"): 3,
    ("pydvl", "lissa"): 3,
    ("dattri", "lissa"): 5,
    ("dattri", "influence_cg"): 20,
}


def methods_of(tool: str, covers_all: bool) -> tuple[str, ...]:
    """What a tool can do; a method that leaves out parameters of this model says so in its name."""
    module = importlib.import_module(f"benchmarks.peers.{tool}")
    if covers_all:
        return tuple(module.METHODS)
    return tuple(name + LINEAR if name in module.ONLY_MODULES else name for name in module.METHODS)


def our_methods(peers: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Ours, in the order of our table; restricted ones where a peer has them."""
    asked = {method for methods in peers.values() for method in methods}
    own = methods_of(OURS, covers_all=True)
    return tuple(name for base in own for name in (base, base + LINEAR) if name in asked)


def note_of(tool: str, method: str, covers_all: bool) -> str | None:
    """What is different about this tool's method, if anything is."""
    note = importlib.import_module(f"benchmarks.peers.{tool}").NOTES.get(base_method(method))
    if method.endswith(LINEAR) and not covers_all:
        restricted = "on both sides only the parameters of linear layers that share no weight"
        return restricted if note is None else f"{note}; {restricted}"
    return note


def versions() -> dict[str, str | None]:
    """Installed versions; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def run_all(
    runner: Runner, ours: tuple[str, ...], peers: dict[str, tuple[str, ...]], repeats: int
) -> dict[tuple[str, str], list[Entry]]:
    """All runs of each (tool, method), ours and the peers' in turns; after an error a method is not repeated."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for method in ours:
        tools = [OURS, *(peer for peer, methods in peers.items() if method in methods)]
        for repeat in range(repeats):
            for tool in tools:
                runs = found.setdefault((tool, method), [])
                if any(run["error"] is not None for run in runs):
                    continue
                runs.append(runner.run(tool, method, repeat, FEWER_QUERIES.get((tool, method))))
                print(f"{method:18s} {tool:14s} {repeat}  {_line(runs[-1])}", flush=True)
    return found


def _line(run: Entry) -> str:
    if run["error"] is not None:
        return str(run["error"])
    memory = "?" if run["peak_mb"] is None else f"{run['peak_mb']:.0f}"
    return f"{run['cpu_fit_s']:8.2f} + {run['cpu_score_s']:8.2f} CPU s, {memory} MiB, {run['n_query']} queries"


def result_of(
    runner: Runner,
    runs: dict[tuple[str, str], list[Entry]],
    peers: dict[str, tuple[str, ...]],
    covers_all: bool,
) -> dict[str, Any]:
    """The JSON's part that follows from the runs."""
    entries = {key: entry_of(of_method, note_of(*key, covers_all)) for key, of_method in runs.items()}
    ours = {method: entry for (tool, method), entry in entries.items() if tool == OURS}
    theirs = {p: {m: entry for (tool, m), entry in entries.items() if tool == p} for p in peers}

    def agree(method: str, peer: str) -> Any:
        if ours[method]["error"] is not None or theirs[peer][method]["error"] is not None:
            return None
        return agreement(_scores(runner, OURS, method), _scores(runner, peer, method))

    return {
        "ours": ours,
        "peers": theirs,
        "ratio": by_method(ours, theirs, lambda m, p: ratio(ours[m], theirs[p][m])),
        "agreement": by_method(ours, theirs, agree),
    }


def _scores(runner: Runner, tool: str, method: str) -> Any:
    return np.load(runner.folder(tool, method, 0, FEWER_QUERIES.get((tool, method))) / "scores.npy")


def chosen(all_of: tuple[str, ...], asked: list[str] | None, what: str) -> tuple[str, ...]:
    """Those asked for, in our order; all where none are."""
    unknown = sorted(set(asked or ()) - set(all_of))
    if unknown:
        raise SystemExit(f"Unknown {what} {', '.join(unknown)}; known: {', '.join(all_of)}.")
    return all_of if asked is None else tuple(name for name in all_of if name in asked)


def earlier(out: Path, task: str, threads: int) -> dict[str, Any] | None:
    """What an earlier call wrote there: its other methods and tools are kept. None where there is nothing.

    Raises:
        SystemExit: It is of another task or number of threads.
    """
    if not out.exists():
        return None
    found: dict[str, Any] = json.loads(out.read_text())
    if (found["task"], found["threads"]) != (task, threads):
        raise SystemExit(f"{out} is of {found['task']} with {found['threads']} threads: choose another --out.")
    return found


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tuple(problems.PROBLEMS), required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", help="default: all that a peer has too")
    parser.add_argument("--peers", nargs="+", help=f"default: {' '.join(PEERS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit-s", type=float, default=900.0, help="wall seconds of one run")
    parser.add_argument("--limit-gib", type=float, default=10.0, help="address space of one run")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/peers"), help="finished runs are kept here")
    parser.add_argument("--retry-errors", action="store_true", help="run again what ended in an error")
    args = parser.parse_args()
    known = earlier(args.out, args.task, args.threads)
    torch.set_num_threads(args.threads)
    problem_dir = args.work / args.task / "problem"
    problems.build(args.task, problem_dir)
    problem = problems.read(problem_dir)
    peers = {peer: methods_of(peer, problem.covers_all) for peer in chosen(PEERS, args.peers, "peers")}
    ours = chosen(our_methods(peers), args.methods, "methods")
    work = args.work / args.task / f"{args.threads}-threads"
    runner = Runner(problem_dir, work, args.threads, args.limit_s, args.limit_gib, args.retry_errors)
    runs = run_all(runner, ours, peers, args.repeats)
    result = {
        "task": args.task,
        "threads": args.threads,
        "repeats": args.repeats,
        "n_params": sum(p.numel() for p in problem.model.parameters()),
        "settings": vars(problems.Settings.of(problem)),
        **result_of(runner, runs, peers, problem.covers_all),
        "versions": versions(),
        "machine": machine(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(merged(known, result), indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
