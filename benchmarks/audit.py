"""Does the audit's interval hold: its verdict beside further training of all train examples with other seeds.

python -m benchmarks.audit --case diabetes --minutes 2 --repetitions 10 --out benchmarks/results/audit-diabetes-2.json

Each repetition is an audit with another seed: other left-out examples and other seeds of further training. The check
is one gold standard for all repetitions of a case, because a verdict is about the train set, of which each pilot leaves
out a random sample: it leaves out every train example, or `CHECKED` random ones of a larger set, each alone, with seeds
that no audit has. A repetition whose verdict half had S seeds is compared with

- equal_seeds: the raw interval with the agreement of the scores with S seeds of the check,
- noise_free: the noise-free interval with 3 S seeds, freed of their noise,
- three_times: the interval brought to 3 S seeds with 3 S seeds as they are.

Regret is what the best of all candidates reaches with 3 S seeds beyond the winner. Scores and further training of the
check are kept under `--work`, finished repetitions in the result itself; an interrupted call is repeated as it was.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.unrolled import breast_cancer_model
from whence import (
    Examples,
    Inputs,
    Outcomes,
    Recipe,
    ScoreMatrix,
    Task,
    agreement,
    audit,
    further_train,
    load,
    plant_label_noise,
    train,
)
from whence.evaluation.disattenuated import Disattenuation
from whence.rng import torch_generator
from whence.runs.machine import machine
from whence.storage import write_atomic
from whence.studies.audit import default_candidates
from whence.studies.audit.candidates import CONTROL
from whence.studies.audit.weighting import Weighting
from whence.studies.demo import DIABETES, DIGITS, NOISE, TEST_FRACTION, diabetes_net, digits_net
from whence.studies.spacing import evenly
from whence.task import fingerprint
from whence.training import limited_threads

CHECKED = 400  # train examples that the check leaves out
N_QUERIES = 50
FIRST_SEED = 1_000_000  # those of audit k are 2 MOST_SEEDS k and so on
BREAST_CANCER = Recipe(lr=0.02, batch_size=64, epochs=20)


@dataclass(frozen=True, eq=False)
class Case:
    """A final model, and the further training that an audit of it is about."""

    task: Task
    train: Examples
    queries: Examples
    recipe: Recipe
    learning: Examples


def digits() -> Case:
    """The demo's CNN on digits with wrong labels."""
    split = load("digits", test_fraction=TEST_FRACTION)
    noisy = plant_label_noise(split.train, fraction=NOISE, n_classes=10, seed=0).examples
    return case_of(train(Task.classification(digits_net()), noisy, DIGITS.original), noisy, split.test, DIGITS.further)


def diabetes() -> Case:
    """The demo's perceptron."""
    split = load("diabetes")
    task = train(Task.regression(diabetes_net()), split.train, DIABETES.original)
    return case_of(task, split.train, split.test, DIABETES.further)


def breast_cancer() -> Case:
    """The perceptron of the benchmark of `unrolled`."""
    return case_of(*breast_cancer_model(), BREAST_CANCER)


CASES: dict[str, Callable[[], Case]] = {"digits": digits, "diabetes": diabetes, "breast_cancer": breast_cancer}


def case_of(task: Task, train_set: Examples, test: Examples, recipe: Recipe) -> Case:
    """Queries evenly spaced through the test set; weights are learned from the others."""
    asked = evenly(len(test), N_QUERIES)
    others = sorted(set(range(len(test))) - set(asked))
    return Case(task, train_set, test.subset(asked), recipe, test.subset(others))


def check_outcomes(case: Case, work: Path, n_seeds: int) -> Outcomes:
    """What leaving out each checked example did, with `n_seeds` seeds that are stored one by one."""
    n = len(case.train)
    order = torch.randperm(n, generator=torch_generator(0, "checked")).tolist()
    rows = sorted(order[:CHECKED])
    parts = [
        further_train(
            case.task,
            case.train,
            case.queries,
            case.recipe,
            left_out=rows,
            seeds=[seed],
            engine="stacked",
            store_dir=work / f"check-{seed}",
        ).outcomes("mean")
        for seed in range(FIRST_SEED, FIRST_SEED + n_seeds)
    ]
    return replace(parts[0], effects=torch.cat([part.effects for part in parts]))


def all_scores(case: Case, work: Path) -> dict[str, ScoreMatrix]:
    """Scores of every candidate at the end of the recipe, as each audit of the case computes them."""
    inputs, at = Inputs(case.task, case.train, case.queries), (case.recipe.amount,)
    weighting = Weighting(inputs, case.recipe, at, case.learning)
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for candidate in default_candidates(case.recipe):
        path = work / f"{candidate.label.replace(' ', '_')}.safetensors"
        if not path.is_file():
            scores = candidate.scores(inputs, case.recipe, at, weighting.of(candidate))
            (scores if isinstance(scores, ScoreMatrix) else scores[at[0]]).save(path)
        found[candidate.label] = ScoreMatrix.load(path)
    return found


def repetition(case: Case, seconds: float, number: int, scores: dict[str, ScoreMatrix]) -> dict[str, Any]:
    """What an audit says, without its check."""
    started = time.perf_counter()
    found = audit(
        case.task, case.train, case.queries, case.recipe, seconds=seconds, learning=case.learning, seed=number
    )
    spent = time.perf_counter() - started
    outcomes, winner = found.gold["verdict"].outcomes("mean"), found.winner.label
    resampled = Disattenuation.of(outcomes, share=len(outcomes.left_out) / len(case.train), seed=number)
    row = resampled.agreement(scores[winner], n_seeds=3 * found.n_seeds).iloc[0]
    skipped = found.table.loc[found.table["note"] != "", ["candidate", "note"]]
    return {
        "seed": number,
        "budget_s": seconds,
        "seconds": spent,
        "left_out": len(outcomes.left_out),
        "n_seeds": found.n_seeds,
        "first_gold_seed": min(found.gold["choice"].seeds),
        "winner": winner,
        "equal_seeds": list(found.verdict()),
        "noise_free": list(found.noise_free()),
        "three_times": [float(row[name]) for name in ("value", "low", "high")],
        "width": {"equal_seeds": width(found.verdict()), "noise_free": width(found.noise_free())},
        "skipped": dict(zip(skipped["candidate"], skipped["note"], strict=True)),
    }


def width(figures: Sequence[float]) -> float:
    """Of value, low, high."""
    return figures[2] - figures[1]


def checked(one: dict[str, Any], outcomes: Outcomes, scores: dict[str, ScoreMatrix]) -> dict[str, Any]:
    """What the check says to a repetition."""
    n_seeds, own = one["n_seeds"], scores[one["winner"]]
    thrice = of_seeds(outcomes, 3 * n_seeds)
    values = {
        "equal_seeds": plain(own, of_seeds(outcomes, n_seeds)),
        "noise_free": float(Disattenuation.of(thrice, n_bootstrap=1).agreement(own, n_seeds=math.inf)["value"].iloc[0]),
        "three_times": plain(own, thrice),
    }
    each = {label: plain(matrix, thrice) for label, matrix in scores.items() if label != CONTROL}
    best = max((label for label in each if not math.isnan(each[label])), key=each.__getitem__)
    return {
        "n_seeds": 3 * n_seeds,
        "values": values,
        "covered": {name: bool(one[name][1] <= value <= one[name][2]) for name, value in values.items()},
        "best": best,
        "regret": each[best] - values["three_times"],
    }


def of_seeds(outcomes: Outcomes, n_seeds: int) -> Outcomes:
    """The first seeds only."""
    return replace(outcomes, effects=outcomes.effects[:n_seeds])


def plain(scores: ScoreMatrix, outcomes: Outcomes) -> float:
    """Mean Pearson correlation."""
    return agreement(scores, outcomes, metrics=["pearson"], n_bootstrap=1).to_dict("pearson")[scores.method][
        outcomes.points[0]
    ][0]


def summary(repetitions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and extremes over the repetitions."""
    widths = {name: [one["width"][name] for one in repetitions] for name in ("equal_seeds", "noise_free")}
    names = ("equal_seeds", "noise_free", "three_times")
    return {
        "repetitions": len(repetitions),
        "covered": {name: sum(one["check"]["covered"][name] for one in repetitions) for name in names},
        "widest": {name: max(found) for name, found in widths.items()},
        "median_width": {name: statistics.median(found) for name, found in widths.items()},
        "longest_s": max(one["seconds"] for one in repetitions),
        "largest_regret": max(one["check"]["regret"] for one in repetitions),
        "winners": dict(Counter(one["winner"] for one in repetitions)),
    }


def audit_section(results: Sequence[dict[str, Any]]) -> list[str]:
    """Coverage, width, seconds and regret of finished repetitions, a line for each case and budget."""
    ways = ("equal_seeds", "noise_free", "three_times")
    head = ["case", "minutes", "longest", "median width", "widest", *(f"covered: {w.replace('_', ' ')}" for w in ways)]
    lines = [
        "## The audit's intervals",
        "",
        "Repeated audits with other left-out examples and seeds; each verdict beside further training without every "
        "train example (400 random ones of a larger set) with seeds that no audit has. `equal seeds`: the raw interval "
        "and a check of as many seeds; `noise free`: the noise-free interval and a check of three times the seeds, "
        "freed of their noise; `three times`: the interval brought to three times the seeds, and their check as it is. "
        "Widths are those of the raw interval. Regret: the best candidate minus the winner, by the check. "
        "`python -m benchmarks.audit`.",
        "",
        "| " + " | ".join([*head, "largest regret", "winners"]) + " |",
        "|" + " --- |" * (len(head) + 2),
    ]
    for result in results:
        found, settings = result["summary"], result["settings"]
        n = found["repetitions"]
        cells = [
            settings["case"],
            f"{settings['minutes']:g}",
            f"{found['longest_s']:.0f} s",
            f"{found['median_width']['equal_seeds']:.3f}",
            f"{found['widest']['equal_seeds']:.3f}",
            *(f"{found['covered'][way]} of {n}" for way in ways),
            f"{found['largest_regret']:.3f}",
            ", ".join(f"{name} ({count})" for name, count in found["winners"].items()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def write(path: Path, found: dict[str, Any]) -> None:
    """Replace the result as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())


def begun(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Repetitions that an interrupted call has left; of other settings none may be there."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    if found["settings"] != settings:
        raise SystemExit(f"{path} is of {found['settings']}; {settings} was asked for. Give another --out.")
    repetitions: list[dict[str, Any]] = found["repetitions"]
    return repetitions


def main() -> None:
    """Parse, audit, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), required=True)
    parser.add_argument("--minutes", type=float, required=True, help="budget of each audit")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/audit"), help="what repetitions share")
    args = parser.parse_args()
    settings = {"case": args.case, "minutes": args.minutes}
    repetitions = begun(args.out, settings)
    with limited_threads(1):
        case = CASES[args.case]()
        place = args.work / f"{args.case}-{fingerprint(case.task.model)[:12]}"
        scores = all_scores(case, place / "scores")
        for number in range(len(repetitions), args.repetitions):
            repetitions.append(repetition(case, 60 * args.minutes, number, scores))
            print(repetitions[-1], flush=True)
            write(args.out, {"settings": settings, "repetitions": repetitions, "machine": machine()})
        outcomes = check_outcomes(case, place, 3 * max(one["n_seeds"] for one in repetitions))
        for one in repetitions:
            one["check"] = checked(one, outcomes, scores)
        facts = {"checked": len(outcomes.left_out), "n_train": len(case.train), "queries": len(case.queries)}
        result = {"settings": settings, **facts, "summary": summary(repetitions)}
        write(args.out, {**result, "repetitions": repetitions, "machine": machine()})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
