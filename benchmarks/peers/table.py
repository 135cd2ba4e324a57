"""The section of docs/results.md about other tools."""

from __future__ import annotations

from typing import Any

Entries = dict[str, dict[str, Any]]


def peers_section(task: str, result: dict[str, Any]) -> list[str]:
    """Seconds, ratios and agreement of one task, a row for each method and tool."""
    lines = [
        f"## Beside other tools: {task}",
        "",
        f"CPU seconds of fit and score on {result['threads']} thread(s), medians of {_runs(result)} runs, same "
        "model, data and threads, runs of ours and theirs in turn. Ratio: their seconds over ours for as many queries. "
        "Agreement: Pearson of their scores with ours over all pairs; 1 says that the same quantity is compared.",
        "",
        "| method | tool | fit | score | queries | peak MiB | ratio | agreement | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, ours in result["ours"].items():
        lines.append(_row(method, "whence", ours, None, None))
        for peer, entries in result["peers"].items():
            if method in entries:
                ratio = result["ratio"].get(method, {}).get(peer)
                agreement = (result["agreement"].get(method, {}).get(peer) or {}).get("pearson")
                lines.append(_row(method, peer, entries[method], ratio, agreement))
    return [*lines, ""]


def _runs(result: dict[str, Any]) -> str:
    """How many runs there are of a method of a tool, "3 to 5" where that differs."""
    entries = [result["ours"], *result["peers"].values()]
    counts = {len(entry["runs"]) for tool in entries for entry in tool.values() if entry["error"] is None}
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "no"


def _row(method: str, tool: str, entry: dict[str, Any], ratio: float | None, agreement: float | None) -> str:
    if entry["error"] is not None:
        return f"| `{method}` | {tool} | | | | | | | {entry['error'].splitlines()[0][:120]} |"
    cells = [
        f"{entry['cpu_fit_s']:.2f}",
        f"{entry['cpu_score_s']:.2f}",
        str(entry["n_query"]),
        "" if entry["peak_mb"] is None else f"{entry['peak_mb']:.0f}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if agreement is None else f"{agreement:.4f}",
        entry.get("note") or "",
    ]
    return f"| `{method}` | {tool} | {' | '.join(cells)} |"
