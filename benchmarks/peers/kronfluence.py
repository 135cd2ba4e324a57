"""kronfluence: EK-FAC, K-FAC and Grad-Dot of linear layers and convolutions.

Its modules are `nn.Linear` and `nn.Conv2d`, so the `Conv1D` layers of GPT-2 are turned into `nn.Linear` first, as its
own examples do; that is not timed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.peers.problems import Method, Problem, Settings, Steps, example_losses

LIBRARY = "kronfluence"
NOTES: dict[str, str] = {
    "ekfac_linear": "counts padded positions too; where we count them, scores are equal to 1.0000",
}


def _linear_twin(model: nn.Module) -> nn.Module:
    """A copy in which each `Conv1D` of transformers is an `nn.Linear` with the transposed weight."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D":
            n_in, n_out = module.weight.shape
            linear = nn.Linear(n_in, n_out)
            linear.weight.data = module.weight.data.T.contiguous()
            linear.bias.data = module.bias.data.clone()
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, linear)
    return model.eval()


def _task(problem: Problem) -> Any:
    from kronfluence.task import Task

    class SummedLoss(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            if sample:
                raise NotImplementedError("the empirical Fisher matrix needs no sampled labels")
            return example_losses(model(batch[0]), batch[1]).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return list(problem.modules)

    return SummedLoss()


def _method(strategy: str) -> Method:
    def steps(problem: Problem, settings: Settings, folder: Path) -> Steps:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments

        task = _task(problem)
        model = prepare_model(_linear_twin(problem.model), task)
        analyzer = Analyzer("peers", model, task, cpu=True, disable_tqdm=True, output_dir=str(folder))
        train, queries = TensorDataset(*problem.train), TensorDataset(*problem.queries)
        factors = FactorArguments(strategy=strategy, use_empirical_fisher=True)
        scores = ScoreArguments(damping_factor=settings.damping)

        def fit() -> None:
            analyzer.fit_all_factors(
                "factors",
                train,
                per_device_batch_size=settings.batch_size,
                factor_args=factors,
                overwrite_output_dir=True,
            )

        def score(_: Any) -> Tensor:
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                query_dataset=queries,
                train_dataset=train,
                per_device_query_batch_size=len(queries),
                per_device_train_batch_size=settings.batch_size,
                score_args=scores,
                overwrite_output_dir=True,
            )
            return torch.as_tensor(analyzer.load_pairwise_scores("scores")["all_modules"])

        return Steps(fit, score)

    return steps


METHODS: dict[str, Method] = {
    "grad_dot": _method("identity"),
    "ekfac": _method("ekfac"),
    "kfac": _method("kfac"),
}
ONLY_MODULES = frozenset(METHODS)
