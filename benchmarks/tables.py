"""Write docs/results.md from the JSON files under benchmarks/results.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.audit import audit_section
from benchmarks.peers.table import peers_section
from benchmarks.published import PUBLISHED, PUBLISHED_FIGURES, PublishedFigures
from benchmarks.unrolled import init_section
from benchmarks.weights.figures import write_figure
from benchmarks.weights.section import bench_section

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
CASES = {
    "energy": "three final models",
    "energy-five-seeds": "one final model",
    "concrete": "one final model",
    "adult": "stands in for Folktables",
    "adult-some-queries": "fewer queries, with the methods that cost most",
    "adult-one-epoch": "as before, one epoch and more gold seeds",
    "credit_default": "stands in for FICO",
    "credit_default-some-queries": "fewer queries, with the methods that cost most",
    "credit_default-long": "as before, more epochs",
    "energy-adam": "further training by Adam",
    "concrete-adam": "further training by Adam",
    "fashion_mnist": "ResNet-9 of width 8 with group norm on 2,000 pictures; 24 of them left out",
    "sst2": "four-layer encoder, 1,000 sentences; 24 of them left out",
    "sst2-adam": "four-layer encoder, 1,000 sentences; 24 of them left out, further training by AdamW",
    "sst2_minilm": "last layer of a pre-trained MiniLM, 500 sentences; 16 of them left out",
    "sst2_minilm-adam": "last layer of a pre-trained MiniLM, 500 sentences; 16 of them left out, by AdamW",
    "energy-retrained": "training from scratch instead of further training",
}
OURS = ("horizon_ahead", "unrolled")
INTRO = """# Results

Made by `python -m benchmarks.tables` from the JSON files in `benchmarks/results`, which hold every figure, the machine
and the seconds. Do not edit by hand.

The published recipe of final-model-only attribution (Wei et al. 2025, arXiv:2412.03906): a trained network is trained
further without each of 100 evenly spaced train examples (fewer where it is said), the common movement is removed, and
each method's scores are compared with what happened, per query. All methods but `horizon`, `horizon_ahead` and
`unrolled`, which follow further training, know the final model only (`tracin` its checkpoints too); they have their
published damping, and nothing was tuned on a gold standard. Only the gold standard is centered, so the cosine of a
perfect method stays a little below 1. `adult` and `credit_default` stand in for Folktables and FICO.
"""


def row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def agreement_table(result: dict[str, Any], kind: str, title: str) -> list[str]:
    """Methods x points, of the means over final models."""
    head = row([title, *(f"{p} epochs" if p > 1 else "1 epoch" for p in result["points"])])
    lines = [head, row(["---"] * (1 + len(result["points"])))]
    for method, values in result[kind].items():
        lines.append(row([f"`{method}`", *(f"{v:.3f}" for v in values)]))
    return [*lines, ""]


def seeds_table(result: dict[str, Any]) -> list[str]:
    """Agreement with the average of so many seeds, at its best point."""
    curves = result.get("seeds_curve", {})
    if not curves:
        return []
    counts = list(next(iter(curves.values())))
    lines = [row(["cosine at the best point", *(f"{k} seed{'s' * (k != '1')}" for k in counts)])]
    lines.append(row(["---"] * (1 + len(counts))))
    for method, curve in curves.items():
        lines.append(row([f"`{method}`", *(f"{curve[k]:.3f}" for k in counts)]))
    return [*lines, ""]


def leads(result: dict[str, Any]) -> list[str]:
    """How far our methods are above the best published one, by Pearson."""
    found = result["pearson"]
    published = [found[name] for name in PUBLISHED if name in found]
    lines = []
    for name in (name for name in OURS if name in found):
        best = [max(column) for column in zip(*published, strict=True)]
        gaps = ", ".join(f"{ours - other:+.4f}" for ours, other in zip(found[name], best, strict=True))
        lines.append(f"- `{name}` above the best published method, Pearson at each amount: {gaps}.")
    return [*lines, ""] if lines else []


def refusals(result: dict[str, Any]) -> list[str]:
    """What cannot be computed here, in the first words of the error."""
    reasons = [f"- `{name}`: {text.partition('. ')[0]}." for name, text in result.get("refused", {}).items()]
    return ["Not computed:", "", *reasons, ""] if reasons else []


def published_table(result: dict[str, Any], figures: PublishedFigures) -> list[str]:
    """Our cosines beside the published ones, which come from 100 seeds and another final model."""
    points = figures.points
    lines = [
        f"Cosines beside the published figures for {figures.dataset} (100 gold seeds, another final model), and the "
        "band that a repetition is expected in:",
        "",
        row(["", *(cell for p in points for cell in (f"published, {p}", f"ours, {p}", f"band, {p}"))]),
        row(["---"] * (1 + 3 * len(points))),
    ]
    for name, values in figures.cosines.items():
        if name not in result["cosine"]:
            continue
        cells = []
        for p, value in zip(points, values, strict=True):
            ours = result["cosine"][name][result["points"].index(p)]
            band = figures.bands.get((name, p))
            cells += [f"{value:.3f}", f"{ours:.3f}", "" if band is None else f"{band[0]:g} to {band[1]:g}"]
        lines.append(row([f"`{name}`", *cells]))
    likeness = result.get("datainf_like_grad_dot")
    told = "" if likeness is None else f"Mean cosine of the scores of `datainf` and `grad_dot`: {likeness:.3f}."
    return [*lines, "", *([told, ""] if told else [])]


def per_model(result: dict[str, Any]) -> list[str]:
    """What the mean over final models hides."""
    lines = [
        row(["final model", "train loss", "method (cosine)", *(str(p) for p in result["points"])]),
        row(["---"] * (3 + len(result["points"]))),
    ]
    for model in result["models"]:
        for method in ("grad_dot", "influence_gn", "horizon", "horizon_ahead"):
            figures = [f"{v:.3f}" for v in model["cosine"][method]]
            lines.append(row([str(model["init_seed"]), f"{model['train_loss']:.6f}", f"`{method}`", *figures]))
    return [*lines, ""]


def case_section(name: str, remark: str, result: dict[str, Any]) -> list[str]:
    """Agreement on one data set, with one kind of truth."""
    n_models = len(result.get("models", [0]))
    trust = result["reliability"]
    queries = "" if result.get("queries") is None else f"the first {result['queries']} queries, "
    lines = [
        f"## {name}",
        "",
        f"{remark[0].upper()}{remark[1:]}. {result['seeds']} gold seed(s), {queries}{n_models} final model(s); mean "
        f"train loss {result['train_loss']:.6f}, test loss {result['test_loss']:.4f}. "
        + ("" if trust is None else f"Reliability of the gold standard: {', '.join(f'{r:.2f}' for r in trust)}. ")
        + f"{_machine(result)}",
        "",
    ]
    for kind, title in TABLES.items():
        if result.get(kind):
            lines += agreement_table(result, kind, title)
    lines += [*seeds_table(result), *leads(result), *refusals(result)]
    figures = PUBLISHED_FIGURES.get(name)
    if figures is not None and set(figures.points) <= set(result["points"]):
        lines += published_table(result, figures)
    return lines + (per_model(result) if n_models > 1 else [])


TABLES = {
    "pearson": "Pearson",
    "cosine": "cosine",
    "spearman": "Spearman",
    "cosine_full": "cosine, run on all data subtracted (eq. 17)",
}


def speed_section(result: dict[str, Any]) -> list[str]:
    """Time of one further-training run on Energy."""
    ms = result["ms_per_epoch"] | {f"ours, {k}": v for k, v in result["ms_per_epoch_two_cores"].items()}
    return [
        "## Speed of further training, UCI Energy",
        "",
        f"{_machine(result)} {result['runs']} runs of {result['epochs']} epochs, medians of three, one thread unless "
        "said; the three loops give the same measures before they are timed.",
        "",
        row(["", "ms per run and epoch"]),
        row(["---", "---"]),
        *(row([name.replace("_", " "), f"{value:.2f}"]) for name, value in ms.items()),
        "",
        f"DataLoader loop over ours {result['loop_ratio']:.1f}, plain loop in memory over ours "
        f"{result['inmemory_ratio']:.2f}, one core over two {result['two_core_ratio']:.2f}; "
        f"{100 * result['share_of_matmul_peak']:.0f} % of the measured matmul peak "
        f"({result['matmul_peak_gflops_one_thread']:.0f} Gflop/s).",
        "",
    ]


def probe_section(files: list[Path]) -> list[str]:
    """What the probe chose, and what was fastest at length."""
    lines = [
        "## The probe's choice of engine",
        "",
        "All engines timed again for at least three seconds each.",
        "",
        row(["threads", "model", "chosen", "its time over the fastest", "microseconds per run and step"]),
        row(["---"] * 5),
    ]
    for path in files:
        result = json.loads(path.read_text())
        for name, found in result.items():
            if isinstance(found, dict) and "chosen" in found:
                times = ", ".join(f"{engine} {us:.0f}" for engine, us in found["us_per_run_and_step"].items())
                chosen = found["chosen"]
                what = chosen["engine"] if chosen["engine"] == chosen["inner"] else f"processes of {chosen['inner']}"
                cells = [str(result["threads"]), name, what, f"{found['chosen_over_fastest']:.2f}", times]
                lines.append(row(cells))
    return [*lines, ""]


def weights_section(result: dict[str, Any]) -> list[str]:
    """Learned weights of parameter groups: solvers, retraining, regimes, coverage of the intervals."""
    return [
        "## Learned weights of parameter groups",
        "",
        f"Li et al. (2026), arXiv:2506.05647; k = {result['k']}. {_machine(result)} `python -m benchmarks.weights`.",
        "",
        *_solver_table(result["solvers"]),
        *[line for name, found in result["retraining"].items() for line in _retraining_table(name, found)],
        *_regime_table(result["regimes"]),
        *_coverage_lines(result["lds_coverage"]),
    ]


def _solver_table(solvers: dict[str, Any]) -> list[str]:
    head = ["contributions", "queries x train x groups", "uniform", "rms", "closed form", "AdamW", "gap", "seconds"]
    lines = [
        "Loss on the learning queries (lower is better; `gap`: AdamW above the closed form), and median CPU seconds "
        "of 5 runs in turn in one process: closed form / AdamW with norms from scores, as published / from Gram "
        "matrices; in brackets how many times faster the closed form is.",
        "",
        row(head),
        row(["---"] * len(head)),
    ]
    for name, found in solvers.items():
        loss, seconds, faster = found["loss"], found["seconds"], found["closed_form_faster"]
        figures = [f"{loss[way]:.4f}" for way in ("uniform", "rms", "closed_form", "adamw_scores")]
        times = [f"{seconds[way]:.3f}" for way in ("closed_form", "adamw_scores", "adamw_gram")]
        ratio = f"({faster['adamw_scores']:.0f}x, {faster['adamw_gram']:.0f}x)"
        gap = f"{found['gap_percent']['adamw_scores']:.3f} %"
        shape = " x ".join(map(str, found["shape"]))
        lines.append(row([name, shape, *figures, gap, f"{' / '.join(times)} {ratio}"]))
    return [*lines, ""]


def _retraining_table(name: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"### {name}: linear datamodeling scores",
        "",
        f"{found['kept_sets']} kept sets of half the data x {found['seeds']} seeds, {found['queries']} queries; "
        f"weights learned on {found['learning_queries']} others. Ceiling {_limits(found['ceiling'])}. "
        "Differences are paired.",
        "",
        row(["scores", "LDS", "minus uniform weights", "minus rms weights"]),
        row(["---"] * 4),
    ]
    for label, limits in found["lds"].items():
        method = label.partition(", ")[0]
        gaps = (found["differences"].get(f"{label} - {other}") for other in (method, f"{method}, rms"))
        cells = ["" if gap is None else _limits(gap, sign="+") for gap in gaps]
        lines.append(row([f"`{label}`", _limits(limits), *cells]))
    return [*lines, ""]


def _regime_table(regimes: dict[str, dict[str, float]]) -> list[str]:
    ways = list(next(iter(regimes.values())))
    return [
        "### Where the objective is right, and where it is not",
        "",
        "Synthetic contributions (1,000 train examples, 40 queries, 24 groups, 5 seeds): correlation of the weighted "
        "scores with the true influence.",
        "",
        row(["regime", *ways]),
        row(["---"] * (1 + len(ways))),
        *(row([name, *(f"{found[way]:.3f}" for way in ways)]) for name, found in regimes.items()),
        "",
    ]


def _coverage_lines(found: dict[str, Any]) -> list[str]:
    shares = [f"{100 * v['covered']:.1f} % ({k})" for k, v in found.items() if isinstance(v, dict)]
    return [
        f"The 95 % interval of `lds` covered its limit over infinitely many kept sets in {', '.join(shares)} of "
        f"{found['repeats']} simulations with {found['kept_sets']} kept sets and {found['queries']} queries.",
        "",
    ]


def unrolled_section(result: dict[str, Any]) -> list[str]:
    """Cost of unrolled scores beside leaving every example out, by size, and agreement with other optimizers."""
    points = list(next(iter(result["optimizers"].values())))
    by_size = result["by_size"]
    return [
        "## Unrolled further training",
        "",
        f"CPU seconds of one thread, medians of three, one process. {_machine(result)} "
        "`python -m benchmarks.unrolled`.",
        "",
        row(["data set", "epochs", "train x queries", "`unrolled`, all examples", "leaving each out once", "ratio"]),
        row(["---"] * 6),
        *(
            row(
                [
                    name,
                    str(found["epochs"]),
                    f"{found['n_train']} x {found['n_query']}",
                    f"{found['unrolled_s']:.1f}",
                    f"{found['leaving_out_all_s']:.0f}",
                    f"{found['ratio']:.1f}",
                ]
            )
            for name, found in result["cost"].items()
        ),
        "",
        f"Adult, {by_size['steps']} steps of 128: with {_sizes(by_size['by_n_train'], 'train examples')}; with "
        f"{_sizes(by_size['by_n_query'], 'queries')}.",
        "",
        "Agreement (Pearson) with further training of a breast-cancer network by other optimizers, after so many "
        "epochs:",
        "",
        row(["further training", *points]),
        row(["---"] * (1 + len(points))),
        *(row([name, *(_limits(found[p]) for p in points)]) for name, found in result["optimizers"].items()),
        "",
    ]


def projections_section(result: dict[str, Any]) -> list[str]:
    """What a projection costs by kind, and how far it moves inner products."""
    lines = [
        f"## Projections to {result['dim']} dimensions",
        "",
        f"{_machine(result)} CPU seconds of one thread for all rows, and the error of the Gram matrix of "
        f"{result['gram_rows']} rows (Frobenius, of the exact one).",
        "",
        row(["case", "rows", *(f"{kind}: s" for kind in _kinds(result)), *(f"{k}: error" for k in _errors(result))]),
        row(["---"] * (2 + len(_kinds(result)) + len(_errors(result)))),
    ]
    for name, case in result["cases"].items():
        seconds = [f"{case['seconds'][kind]['all_rows_s']:.2f}" for kind in _kinds(result)]
        errors = [f"{case['gram_error'][kind]:.3f}" for kind in _errors(result)]
        lines.append(row([name, str(case["n_rows"]), *seconds, *errors]))
    return [*lines, ""]


def _kinds(result: dict[str, Any]) -> list[str]:
    return list(next(iter(result["cases"].values()))["seconds"])


def _errors(result: dict[str, Any]) -> list[str]:
    return list(next(iter(result["cases"].values()))["gram_error"])


def _sizes(found: dict[str, float], what: str) -> str:
    return ", ".join(f"{n}: {seconds:.1f} s" for n, seconds in found.items()) + f" ({what}: seconds)"


def _limits(limits: list[float], sign: str = "") -> str:
    value, low, high = (f"{v:{sign}.3f}" for v in limits)
    return f"{value} ({low} to {high})"


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}."


def main() -> None:
    """Read, write."""
    lines = [INTRO]
    for name, remark in CASES.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            lines += case_section(name, remark, json.loads(path.read_text()))
    speed = RESULTS / "energy-speed.json"
    if speed.is_file():
        lines += speed_section(json.loads(speed.read_text()))
    probes = sorted(RESULTS.glob("probe-*.json"))
    if probes:
        lines += probe_section(probes)
    weights = RESULTS / "weights.json"
    if weights.is_file():
        lines += weights_section(json.loads(weights.read_text()))
    for path in sorted(RESULTS.glob("weights-*.json")):
        bench = json.loads(path.read_text())
        lines += bench_section(bench)
        write_figure(bench, PAGE.parent)
    unrolled = RESULTS / "unrolled.json"
    if unrolled.is_file():
        found = json.loads(unrolled.read_text())
        lines += unrolled_section(found)
        lines += init_section(found) if "from_start" in found else []
    for path in sorted(RESULTS.glob("peers-*.json")):
        lines += peers_section(path.stem.removeprefix("peers-"), json.loads(path.read_text()))
    audits = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("audit-*.json"))]
    lines += audit_section([found for found in audits if "summary" in found]) if audits else []
    projections = RESULTS / "projections.json"
    if projections.is_file():
        lines += projections_section(json.loads(projections.read_text()))
    PAGE.write_text("\n".join(lines).rstrip() + "\n")
    print(PAGE)


if __name__ == "__main__":
    main()
