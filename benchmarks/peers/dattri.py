"""dattri: TracIn with one checkpoint, influence functions by CG, LiSSA and Arnoldi, DataInf, EK-FAC and TRAK."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.problems import Method, Pair, Problem, Settings, Steps, example_margins, mean_loss

LIBRARY = "dattri"
NOTES = {
    "grad_dot": "without the random projection that it makes by default",
    "influence_cg": "the true Hessian, a fixed number of iterations; ours is the Gauss-Newton matrix",
    "datainf": "one block for each layer; ours one for each tensor",
    "lissa": "random batches of its own",
    "arnoldi": "the true Hessian, projected on its largest eigenvectors",
    "ekfac": "version 0.3.0 turns gradients by the transposed eigenvectors, so the quantity is another one",
    "trak": "each tool draws its own random projection: two draws of one tool do not agree fully either",
}
ONLY_MODULES = frozenset({"ekfac"})
QUERY_BATCH = 20  # queries at once where a tool holds something for each pair of a query and a train example


def _loss(problem: Problem, add_batch: bool) -> Callable[[Any, Any], Tensor]:
    """The mean loss as a function of parameters and of a batch, or of one example without its batch dimension."""

    def loss(params: Any, data: Any) -> Tensor:
        x, y = (part[None] for part in data) if add_batch else data
        # LiSSA hands over ids and labels as floats.
        x, y = x.to(problem.train[0].dtype), y.to(problem.train[1].dtype)
        return mean_loss(functional_call(problem.model, params, (x,)), y)

    return loss


def _loader(pair: Pair, batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*pair), batch_size=batch_size, shuffle=False)


def _task(problem: Problem, add_batch: bool) -> Any:
    from dattri.task import AttributionTask

    return AttributionTask(_loss(problem, add_batch), problem.model, checkpoints=problem.model.state_dict())


def grad_dot(problem: Problem, settings: Settings, folder: Path) -> Steps:
    """TracIn with one checkpoint of weight 1; all queries in one batch, since each batch takes all train gradients."""
    from dattri.algorithm.tracin import TracInAttributor

    attributor = TracInAttributor(
        _task(problem, add_batch=True), weight_list=torch.ones(1), normalized_grad=False, device="cpu"
    )
    attributor.projector_kwargs = None  # or gradients are projected to 512 dimensions, which it has no option against
    train, queries = _loader(problem.train, settings.batch_size), _loader(problem.queries, len(problem.queries[0]))

    def score(_: Any) -> Tensor:
        with torch.no_grad():  # as its own examples do: or the graph of each gradient is kept
            return attributor.attribute(train, queries).T

    return Steps(lambda: None, score)


def _inner_product(
    build: Callable[[Any, Settings], Any], whole: bool, query_batch: int | None = None, backward: bool = False
) -> Method:
    """Attributors that transform the gradients of the queries.

    Args:
        build: Of a task and settings.
        whole: The train set goes to `cache` as one batch: dattri adds up the inverses of the batches' Hessians, which
            is the influence function only where there is one batch.
        query_batch: Queries at once.
        backward: `cache` needs autograd's own graph; elsewhere graphs would only be kept.
    """

    def steps(problem: Problem, settings: Settings, folder: Path) -> Steps:
        attributor = build(_task(problem, add_batch=False), settings)
        n_train, n_query = len(problem.train[0]), len(problem.queries[0])
        cached = _loader(problem.train, n_train if whole else settings.batch_size)
        train, queries = _loader(problem.train, settings.batch_size), _loader(problem.queries, query_batch or n_query)

        def fit() -> None:
            with torch.set_grad_enabled(backward):
                attributor.cache(cached)

        def score(_: Any) -> Tensor:
            with torch.no_grad():
                return attributor.attribute(train, queries).T

        return Steps(fit, score)

    return steps


def _cg(task: Any, settings: Settings) -> Any:
    from dattri.algorithm.influence_function import IFAttributorCG

    return IFAttributorCG(task, max_iter=settings.cg_iterations, regularization=settings.hessian_damping)


def _lissa(task: Any, settings: Settings) -> Any:
    from dattri.algorithm.influence_function import IFAttributorLiSSA

    # Its damping is added to the curvature after this was divided by the scale.
    return IFAttributorLiSSA(
        task,
        batch_size=settings.batch_size,
        recursion_depth=settings.depth,
        scaling=settings.scale,
        damping=settings.hessian_damping / settings.scale,
    )


def _arnoldi(task: Any, settings: Settings) -> Any:
    from dattri.algorithm.influence_function import IFAttributorArnoldi

    return IFAttributorArnoldi(
        task, proj_dim=settings.rank, max_iter=settings.krylov, regularization=settings.hessian_damping
    )


def _datainf(task: Any, settings: Settings) -> Any:
    from dattri.algorithm.influence_function import IFAttributorDataInf

    return IFAttributorDataInf(task, regularization=settings.damping)


def _ekfac(task: Any, settings: Settings) -> Any:
    from dattri.algorithm.influence_function import IFAttributorEKFAC

    return IFAttributorEKFAC(task, damping=settings.damping)


def trak(problem: Problem, settings: Settings, folder: Path) -> Steps:
    """TRAK with one checkpoint; its task's loss is the margin, as in its own examples."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    if not problem.is_classification:
        raise NotImplementedError("no model output function for language models; the user would have to write one")

    def margin(params: Any, data: Any) -> Tensor:
        x, y = (part[None] for part in data)
        return example_margins(functional_call(problem.model, params, (x,)), y)[0]

    def probability(params: Any, data: Any) -> Tensor:
        return torch.sigmoid(margin(params, data))

    task = AttributionTask(margin, problem.model, checkpoints=problem.model.state_dict())
    projector = {"proj_dim": settings.dim, "device": "cpu"}
    attributor = TRAKAttributor(task, probability, projector_kwargs=projector, device="cpu")
    train, queries = _loader(problem.train, settings.batch_size), _loader(problem.queries, settings.batch_size)

    def fit() -> None:
        with torch.no_grad():
            attributor.cache(train)

    def score(_: Any) -> Tensor:
        with torch.no_grad():
            return attributor.attribute(queries).T

    return Steps(fit, score)


METHODS: dict[str, Method] = {
    "grad_dot": grad_dot,
    "influence_cg": _inner_product(_cg, whole=True, query_batch=QUERY_BATCH),
    "lissa": _inner_product(_lissa, whole=True, query_batch=QUERY_BATCH),
    "arnoldi": _inner_product(_arnoldi, whole=True),
    "datainf": _inner_product(_datainf, whole=False, query_batch=QUERY_BATCH),
    "ekfac": _inner_product(_ekfac, whole=False, backward=True),
    "trak": trak,
}
