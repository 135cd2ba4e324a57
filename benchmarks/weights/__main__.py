"""Learned weights of parameter groups.

python -m benchmarks.weights --out benchmarks/results/weights.json
python -m benchmarks.weights --bench cifar10 --out benchmarks/results/weights-cifar10.json

Without --bench: solvers against each other, the demo's two problems, synthetic regimes, coverage of intervals. With it:
one model and data set, all its base methods with every weighting, judged by training on kept sets. Trainings are stored
under --work: interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from benchmarks.weights.benches import BENCHES
from benchmarks.weights.driver import ENGINE, run_bench
from benchmarks.weights.fixed import SIZES
from benchmarks.weights.overview import overview
from whence.training import ENGINES


def main(arguments: list[str] | None = None) -> None:
    """Run, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", choices=BENCHES)
    parser.add_argument("--size", choices=SIZES, default="full", help="tiny: seconds, to see that everything runs")
    parser.add_argument("--queries", type=int, help="that judge; default that of the size")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINE, help="of the trainings")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/weights.json or weights-BENCH.json")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-weights"), help="stored trainings")
    given = parser.parse_args(arguments)
    name = "weights.json" if given.bench is None else f"weights-{given.bench}.json"
    out = given.out or Path("benchmarks/results") / name
    if given.bench is None:
        result = overview(given.work)
    else:
        size = SIZES[given.size]
        if given.queries is not None:
            size = replace(size, evaluation_queries=given.queries)
        result = run_bench(BENCHES[given.bench], size, given.work, given.engine)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
