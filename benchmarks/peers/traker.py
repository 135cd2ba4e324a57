"""traker: TRAK with one checkpoint, in single precision, with the projector it takes on a CPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.problems import Method, Problem, Settings, Steps, batches

LIBRARY = "traker"
NOTES = {"trak": "each tool draws its own random projection: two draws of one tool do not agree fully either"}
ONLY_MODULES: frozenset[str] = frozenset()


def trak(problem: Problem, settings: Settings, folder: Path) -> Steps:
    """Features of the train set, then scores of the margin of each query."""
    from trak import TRAKer

    if not problem.is_classification:
        raise NotImplementedError("no model output function for language models; the user would have to write one")
    n_train, n_query = len(problem.train[0]), len(problem.queries[0])
    state = problem.model.state_dict()
    traker = TRAKer(
        problem.model,
        "image_classification",  # the margin of one label: fits any classifier of one input tensor
        n_train,
        save_dir=str(folder),
        device="cpu",
        proj_dim=settings.dim,
        use_half_precision=False,
        logging_level=logging.ERROR,
    )

    def fit() -> None:
        traker.load_checkpoint(state, model_id=0)
        for batch in batches(problem.train, settings.batch_size):
            traker.featurize(batch=batch, num_samples=len(batch[0]))
        traker.finalize_features()

    def score(_: Any) -> Tensor:
        traker.start_scoring_checkpoint("queries", state, 0, n_query)
        for batch in batches(problem.queries, settings.batch_size):
            traker.score(batch=batch, num_samples=len(batch[0]))
        return torch.as_tensor(traker.finalize_scores("queries")).T.float()

    return Steps(fit, score)


METHODS: dict[str, Method] = {"trak": trak}
