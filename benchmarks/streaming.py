"""Weights learned from gradients on disk: seconds and memory at 500 queries x 50,000 train examples x 256 groups.

    python -m benchmarks.streaming --threads 2 --work runs/benchmarks/streaming --out benchmarks/results/streaming.json

The codes are synthetic: 128 numbers a group in float16, 3.3 GB in all. A train example has one latent vector that all
groups see, each with its own gain and its own noise, and some groups with noise alone. Writing them is not timed. What
the products of matrices took of the processor is set beside what a large product attains on the same machine. The same
weights are learned from contributions in memory on a part that fits there, to show that they agree.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.rng import torch_generator
from whence.runs.machine import machine
from whence.task import ParameterGroups
from whence.weights import Contributions, GradientShards, learn_weights
from whence.weights.sums import CHUNK

N_QUERY, N_TRAIN, N_GROUPS, DIM = 500, 50_000, 256, 128
SMALL = 2048  # train examples of the comparison
SMALL_QUERIES = 40


def groups() -> ParameterGroups:
    """One tensor a group."""
    names = tuple(f"layer {j}" for j in range(N_GROUPS))
    return ParameterGroups(names, tuple(range(N_GROUPS)), (DIM,) * N_GROUPS, names)


def codes(part: slice, side: str) -> Tensor:
    """(b, groups x dim) of some examples."""
    generator = torch_generator(0, "streaming", side, part.start)
    n = part.stop - part.start
    # Heavy tails, or no example would be anything to a query that others are not.
    latent = torch.randn(n, DIM, generator=generator) * torch.randn(n, 1, generator=generator).abs().pow(1.5)
    gains = torch.linspace(0, 1, N_GROUPS).roll(N_GROUPS // 3)[:, None]
    noise = torch.randn(n, N_GROUPS, DIM, generator=generator)
    sizes = torch.logspace(-1, 1, N_GROUPS)[torch.randperm(N_GROUPS, generator=torch_generator(0, "sizes"))][:, None]
    return ((gains * latent[:, None] + noise) * sizes).flatten(1)


def write_shards(dir: Path, n_train: int) -> None:
    """In a process of its own, whose memory does not count."""
    made_by = {"benchmark": "streaming", "n_train": n_train}
    shards = GradientShards.create(
        dir, groups=groups(), dims=[DIM] * N_GROUPS, train_ids=list(range(n_train)), made_by=made_by
    )
    for part in shards.missing():
        shards.write(part, codes(part, "train"))
    shards.finish()


def learned(dir: Path, n_query: int) -> dict[str, Any]:
    """Weights from the shards, with seconds and the highest resident memory of this process so far."""
    shards = GradientShards.open(dir)
    queries = codes(slice(0, n_query), "queries")
    start, cpu = time.perf_counter(), time.process_time()
    weights = learn_weights(shards.stream(queries, list(range(n_query))), "nnls", k=10)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "facts": dict(weights.facts),
        "weights": weights.values.tolist(),
    }


def flops(passes: int) -> float:
    """Of the products alone: contributions in every pass, and in the first of them the Gram matrices.

    A pass begins again after its first part, which is left out here, as is the search for strong examples.
    """
    contributions = 2.0 * N_QUERY * N_TRAIN * N_GROUPS * DIM
    blocks = [(N_GROUPS - start) * min(CHUNK, N_GROUPS - start) for start in range(0, N_GROUPS, CHUNK)]
    return passes * contributions + 2.0 * N_QUERY * N_TRAIN * sum(blocks)


def attainable() -> float:
    """Floating-point operations of a large product of matrices in a second of processor time, the best of five."""
    n, best = 2048, 0.0
    a = torch.randn(n, n, generator=torch_generator(0, "attainable"))
    for _ in range(5):
        start = time.process_time()
        a @ a
        best = max(best, 2.0 * n**3 / (time.process_time() - start))
    return best


def agreement(dir: Path) -> dict[str, Any]:
    """Streamed weights beside those of contributions in memory."""
    shards = GradientShards.open(dir)
    stream = shards.stream(codes(slice(0, SMALL_QUERIES), "queries"), list(range(SMALL_QUERIES)))
    found: Contributions = stream.collect()
    streamed, dense = learn_weights(stream, "nnls", k=10), learn_weights(found, "nnls", k=10)
    gap = (streamed.values - dense.values).abs().max() / dense.values.abs().max()
    return {"shape": list(stream.shape), "largest_gap": float(gap), "passes": streamed.facts["passes"]}


def main() -> None:
    """Write, learn, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/streaming"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    whole, small = args.work / "whole", args.work / "small"
    context = multiprocessing.get_context("spawn")
    for dir, n_train in ((whole, N_TRAIN), (small, SMALL)):
        writer = context.Process(target=write_shards, args=(dir, n_train))
        writer.start()
        writer.join()
        if writer.exitcode != 0:
            raise SystemExit(f"Writing {dir} failed.")
    best = attainable()
    shape = {"n_query": N_QUERY, "n_train": N_TRAIN, "n_groups": N_GROUPS, "dims": N_GROUPS * DIM}
    result = {**shape, "threads": args.threads, **learned(whole, N_QUERY), "in_memory": agreement(small)}
    spent = flops(result["facts"]["passes"]) / result["cpu_seconds"]
    result |= {"gflops_per_cpu_second": spent / 1e9, "attainable_gflops_per_cpu_second": best / 1e9}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**result, "machine": machine()}, indent=1) + "\n")
    shown = ("seconds", "cpu_seconds", "peak_gib", "in_memory", *(key for key in result if key.endswith("cpu_second")))
    print(json.dumps({key: result[key] for key in shown}))


if __name__ == "__main__":
    main()
