"""`whence weigh`: weights of parameter groups, learned on queries that are held out from everything else.

weights/<method>/learned.json, rms.json          weights, with how they were found; few_shot.json where asked for
weights/<method>/contributions.safetensors       of the queries of the run, by group: any weights cost one product
weights/<method>/learned-top.parquet             the strongest examples under the learned weights
weights/<method>/learned.safetensors             all scores under them, where not all contributions are kept
weights/<method>/gradients/                      projected gradients of the train set, where they were needed
weights/few-shot/                                outcomes of training anew for the few-shot weights
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.data import Examples, random_kept_sets
from whence.errors import ConfigError, WhenceError
from whence.gold import reinitialized, retrain
from whence.methods import Inputs, attribute_with
from whence.progress import stage
from whence.runs.config import WEIGHTS, RunConfig, WeighConfig, from_dict, to_dict
from whence.runs.folder import RunFolder
from whence.runs.options import preset_of
from whence.runs.result_files import ResultFiles
from whence.runs.score import call_options, method_settings
from whence.runs.start import Source, Start, opened
from whence.scores import Outcomes, ScoreMatrix, TopK
from whence.studies.weighing import Learning
from whence.task import Channels, Grouping, GroupWeights, Heads, ParameterGroups
from whence.weights import (
    SOLVERS,
    Contributions,
    ContributionStream,
    contributions_with,
    fit_weights,
    gradient_shards,
    norms_with,
    stream_contributions,
)

WEIGHTINGS = ("rms", "learned")
FEW_SHOT = "few_shot"
CONTRIBUTIONS = "contributions.safetensors"
GIB = 2**30
NUMBER = 8  # bytes of a contribution
CODE = 128  # numbers to which the gradient of a group is projected


@dataclass(frozen=True)
class WeighResult:
    """Where the weights are.

    Attributes:
        folder: The run.
        weights: Method -> name of the weighting -> weights.
        computed: Methods weighed now.
    """

    folder: Path
    weights: Mapping[str, Mapping[str, GroupWeights]]
    computed: tuple[str, ...]


def run_weigh(source: Source, out: Source | None = None, *, rebuild: bool = False) -> WeighResult:
    """Learn weights for each method of the settings that has none yet.

    Args:
        source: A TOML file, a run folder, or its `config.toml`.
        out: Folder of the run; see `RunFolder.resolve`.
        rebuild: Compute methods with a damaged file again.
    Raises:
        ConfigError: No method is linear in the weights, the factory gives no learning queries, or something asked for
            needs what is not there or more memory; and as `opened`.
        StoreMismatchError, DamagedShardError: As for `run_score`.
    Cost:
        Contributions of learning queries and queries, see `contributions`; the learning itself takes seconds. With
        few-shot sets one training for each of them and seed, stored and continued.
    """
    with opened(source, out) as folder:
        methods = weighed_methods(folder.run.config)
        learning_of(folder.run.config.weigh)
        begun = folder.build()
        learning = _learning_queries(begun)
        files = {name: weight_files(begun.run, name) for name in methods}
        settings = {name: _settings(begun, name, learning) for name in methods}
        missing = [name for name in methods if not files[name].have(settings[name], rebuild=rebuild)]
        if missing:
            _weigh(
                _Plan.of(begun, learning, missing, rebuild=rebuild), {name: files[name] for name in missing}, settings
            )
            folder.record("weigh")
    weights = {name: read_weights(begun.run, name) for name in methods}
    return WeighResult(begun.run.path, weights, tuple(missing))


def weighed_methods(config: RunConfig) -> tuple[str, ...]:
    """Methods whose parameter groups are weighed.

    Raises:
        ConfigError: None is linear in the weights, or one that was named is not, or is scored with given weights.
    """
    given = [name for name in config.score.methods if WEIGHTS in config.score.options.get(name, {})]
    for name in config.weigh.methods:
        if name in given:
            raise ConfigError(
                f"{name} in [weigh] is scored with the weights of a file, and learned ones are compared with uniform "
                f"ones. Leave `weights` out of [score.options.{name}], or weigh another method."
            )
    linear = tuple(name for name in config.score.methods if preset_of(name).linear_in_w and name not in given)
    wrong = [name for name in config.weigh.methods if name not in linear]
    if wrong or not linear:
        named = f"{', '.join(wrong)} in [weigh]" if wrong else f"of {', '.join(config.score.methods)} none"
        raise ConfigError(
            f"Weights of parameter groups need a method that is linear in the query's gradient; {named} is not "
            f"suitable. Linear in [score]: {', '.join(linear) or 'none; add for instance grad_dot'}."
        )
    chosen = config.weigh.methods or linear[:1]
    if config.weigh.teacher:
        preset_of(config.weigh.teacher)
        if config.weigh.teacher in chosen:
            raise ConfigError(
                f"`teacher` in [weigh] is {config.weigh.teacher}, which is weighed itself: it agrees best with itself "
                "without weights. Name another method, or weigh others: `methods` in [weigh]."
            )
    return chosen


def weight_files(run: RunFolder, method: str) -> ResultFiles:
    """The folder of one method's weights."""
    return ResultFiles(
        run.weights_dir(method), "weights", "whence weigh", "These weights, the evaluation and the report"
    )


def read_weights(run: RunFolder, method: str) -> dict[str, GroupWeights]:
    """Weightings of one method by name, after checking every byte.

    Raises:
        StoreError, DamagedShardError: As `ResultFiles.checked`.
    """
    paths = {path.stem: path for path in weight_files(run, method).checked() if path.suffix == ".json"}
    return {name: GroupWeights.load(paths[name]) for name in (*WEIGHTINGS, FEW_SHOT) if name in paths}


def read_contributions(run: RunFolder, method: str) -> Contributions:
    """Contributions of the queries of the run, the first ones where not all fitted; errors as `read_weights`."""
    weight_files(run, method).checked()
    return Contributions.load(run.weights_dir(method) / CONTRIBUTIONS)


def read_weighted_scores(run: RunFolder, method: str) -> dict[str, ScoreMatrix]:
    """Scores of all queries under each weighting; errors as `read_weights`."""
    whole = {path.stem: path for path in weight_files(run, method).checked() if path.suffix == ".safetensors"}
    weights = read_weights(run, method)
    if set(weights) <= set(whole):
        return {name: ScoreMatrix.load(whole[name]) for name in weights}
    parts = read_contributions(run, method)
    return {name: parts.scores(own) for name, own in weights.items()}


def learning_of(config: WeighConfig) -> Learning:
    """How weights are learned, with the options of the solver checked.

    Raises:
        ConfigError: The solver has no such option, or it is of another type.
    """
    solve = SOLVERS[config.solver]
    hints = typing.get_type_hints(solve)
    own = [p for p in inspect.signature(solve).parameters.values() if p.kind is p.KEYWORD_ONLY]
    kinds = [(p.name, hints[p.name], dataclasses.field(default=p.default)) for p in own]
    from_dict(dataclasses.make_dataclass("Options", kinds), config.options, "weigh.options")
    names = {field.name for field in dataclasses.fields(Learning)}
    return Learning(**{name: getattr(config, name) for name in names})


def _learning_queries(begun: Start) -> Examples:
    if begun.setup.learning_queries is None:
        raise ConfigError(
            f"Weights are learned on queries that are neither in the train set nor among the queries, and the factory "
            f"{begun.run.config.task.factory!r} gives none. Let it return "
            "`whence.Setup(task, train, queries, learning_queries=...)`."
        )
    return begun.setup.learning_queries


def _settings(begun: Start, method: str, learning: Examples) -> dict[str, Any]:
    config = begun.run.config
    chosen = {name: value for name, value in to_dict(config.weigh).items() if name != "methods"}
    training = {name: to_dict(config.evaluate).get(name) for name in ("recipe", "share", "seeds", "first_seed")}
    trained = {"few_shot_training": training} if config.weigh.few_shot else {}
    teacher = {"teacher": method_settings(begun, config.weigh.teacher)} if config.weigh.teacher else {}
    facts = {"weigh": chosen, "learning_queries": learning.fingerprint}
    return {**method_settings(begun, method), **facts, **trained, **teacher}


def _weigh(plan: _Plan, missing: Mapping[str, ResultFiles], settings: Mapping[str, Mapping[str, Any]]) -> None:
    config = plan.begun.run.config
    outcomes = _few_shot_outcomes(plan) if config.weigh.few_shot else None
    with stage("weighing", total=len(missing), unit="method") as done:
        for method, files in missing.items():
            try:
                weightings = _learn(plan, method, outcomes)
                parts = _contributions(plan, method, plan.asked)
                whole = {} if len(parts.query_ids) == len(plan.begun.queries) else _weighted(plan, method, weightings)
            except WhenceError as error:
                error.add_note(f"This was method {method!r}; methods weighed before it are kept.")
                raise
            files.write(settings[method], _Writer(weightings, parts, whole, config.score.top))
            done.advance()


@dataclass(frozen=True, eq=False)
class _Plan:
    """What all methods share, and what fits into memory.

    Attributes:
        begun: The run.
        learning: Queries to learn from.
        groups: Of the parameters.
        asked: Inputs with as many of the queries of the run as have contributions that fit.
        routes: How the contributions of the learning queries of a method are had: a key of `ROUTES`.
        rebuild: Train again what is damaged.
    """

    begun: Start
    learning: Examples
    groups: ParameterGroups
    asked: Inputs
    routes: Mapping[str, str]
    rebuild: bool

    @classmethod
    def of(cls, begun: Start, learning: Examples, methods: Iterable[str], *, rebuild: bool) -> _Plan:
        """Sizes compared, before any long work.

        Raises:
            ConfigError: Too much for the memory, or few-shot weights where nothing can be trained.
        """
        config = begun.run.config
        groups = ParameterGroups.of(begun.task.layout, _grouping(begun))
        one = len(begun.train) * len(groups) * NUMBER
        few = max(1, int(config.weigh.memory_gib * GIB) // one)
        asked = begun.queries if few >= len(begun.queries) else begun.queries.subset(range(few))
        routes = {name: _route(begun, len(learning), groups, name) for name in methods}
        if config.weigh.few_shot and config.evaluate.recipe is None:
            raise ConfigError(
                "`few_shot` in [weigh] trains anew, and no original training is given: add [evaluate.recipe]."
            )
        return cls(begun, learning, groups, Inputs(begun.task, begun.train, asked), routes, rebuild)

    @cached_property
    def teacher(self) -> ScoreMatrix | None:
        """Its scores for the learning queries, where one is followed: computed once for all methods."""
        name = self.begun.run.config.weigh.teacher
        if not name:
            return None
        found = attribute_with(self.asked.with_queries(self.learning), name, **_options(self.begun.run.config, name))
        assert isinstance(found, ScoreMatrix)  # at one amount of training
        return found

    def norms(self, method: str) -> Tensor:
        """(n_train,) norms of what a method takes products of: train gradients, at its checkpoints where it has any."""
        options = _options(self.begun.run.config, method)
        return norms_with(self.asked, options) if "checkpoints" in options else self._norms

    @cached_property
    def _norms(self) -> Tensor:
        """At the final model: one pass for all methods, where the first one asks."""
        return norms_with(self.asked, {})


def _grouping(begun: Start) -> str | Grouping:
    chosen = begun.run.config.weigh
    if chosen.groups == "head":
        return Heads.of(begun.task.model)
    return Channels(chosen.channels) if chosen.groups == "channel" else chosen.groups


ROUTES = {
    "memory": "in memory",
    "stream": "streamed",
    "shards": f"streamed, gradients projected to {CODE} numbers a group",
}


def _route(begun: Start, n_learning: int, groups: ParameterGroups, method: str) -> str:
    """In memory where that fits; else streamed, from projected gradients where those of the queries do not fit."""
    chosen = begun.run.config.weigh
    allowed, each = chosen.memory_gib * GIB, n_learning * len(groups) * NUMBER
    needed = each * len(begun.train)
    if needed <= allowed:
        return "memory"
    if chosen.few_shot:
        raise ConfigError(
            f"`few_shot` in [weigh] needs contributions in memory, and those of {method} take {needed / GIB:.3g} GiB "
            f"of the {chosen.memory_gib:g} that `memory_gib` allows. Raise it, or take coarser groups or fewer "
            "learning queries."
        )
    if each * begun.task.layout.n_params <= allowed:
        return "stream"
    if method == "grad_dot":
        return "shards"
    gradients = each * begun.task.layout.n_params
    raise ConfigError(
        f"The contributions of {method} to {n_learning} learning queries take {needed / GIB:.3g} GiB, and their "
        f"gradients by group {gradients / GIB:.3g}, of the {chosen.memory_gib:g} that `memory_gib` in [weigh] allows. "
        "Raise it, take coarser groups or fewer learning queries, or weigh grad_dot, whose gradients can be projected."
    )


def _learn(plan: _Plan, method: str, outcomes: Outcomes | None) -> dict[str, GroupWeights]:
    """All weightings of one method."""
    teacher = plan.teacher  # before the long work: it may refuse the model
    found = _learning_contributions(plan, method)
    how = learning_of(plan.begun.run.config.weigh)
    weightings = how.weights(found, plan.norms(method) if how.relative else None, teacher)
    if outcomes is not None:
        assert isinstance(found, Contributions)  # `_route` has refused others
        weightings[FEW_SHOT] = fit_weights(found, outcomes, towards=weightings["learned"])
    facts: dict[str, Any] = {"contributions": ROUTES[plan.routes[method]]}
    shared = plan.begun.setup.shared_rows()
    if any(shared.values()):
        facts["learning_queries_equal_to_rows_of"] = shared
    return {name: replace(own, facts={**own.facts, **facts}) for name, own in weightings.items()}


def _learning_contributions(plan: _Plan, method: str) -> Contributions | ContributionStream:
    begun, route = plan.begun, plan.routes[method]
    if route == "memory":
        return _contributions(plan, method, plan.asked.with_queries(plan.learning))
    if route == "stream":
        options = _options(begun.run.config, method)
        return stream_contributions(begun.task, begun.train, plan.learning, method, groups=plan.groups, **options)
    dir = begun.run.weights_dir(method) / "gradients"
    shards = gradient_shards(begun.task, begun.train, dir, groups=plan.groups, dim=CODE)
    return shards.contributions(begun.task, plan.learning)


def _contributions(plan: _Plan, method: str, inputs: Inputs) -> Contributions:
    return contributions_with(inputs, method, groups=plan.groups, **_options(plan.begun.run.config, method))


def _weighted(plan: _Plan, method: str, weightings: Mapping[str, GroupWeights]) -> dict[str, ScoreMatrix]:
    """Scores of all queries."""
    inputs, options = plan.asked.with_queries(plan.begun.queries), _options(plan.begun.run.config, method)
    found = {name: attribute_with(inputs, method, weights=own, **options) for name, own in weightings.items()}
    return {name: matrix for name, matrix in found.items() if isinstance(matrix, ScoreMatrix)}


def _options(config: RunConfig, method: str) -> dict[str, Any]:
    """Of a method, at the last amount of training where it follows that."""
    options, amounts = call_options(config, method)
    return options if amounts is None else {**options, "at": amounts[-1]}


def _few_shot_outcomes(plan: _Plan) -> Outcomes:
    """What training on kept sets does to the learning queries; other sets and seeds than those of the evaluation."""
    begun, config = plan.begun, plan.begun.run.config
    chosen = config.evaluate
    assert chosen.recipe is not None  # `_Plan.of` has refused that
    first = chosen.first_seed + chosen.seeds
    return retrain(
        begun.task,
        begun.train,
        plan.learning,
        chosen.recipe,
        kept=random_kept_sets(len(begun.train), config.weigh.few_shot, share=chosen.share, seed=first),
        seeds=range(first, first + chosen.seeds),
        initialize=begun.setup.initialize or reinitialized(begun.task),
        engine=chosen.engine,
        store_dir=begun.run.path / "weights" / "few-shot",
        rebuild=plan.rebuild,
    ).outcomes()


@dataclass(frozen=True, eq=False)
class _Writer:
    """Writes everything that is kept of one method; `whole` are the scores that `parts` do not tell."""

    weightings: Mapping[str, GroupWeights]
    parts: Contributions
    whole: Mapping[str, ScoreMatrix]
    top: int

    def __call__(self, dir: Path) -> list[Path]:
        paths = [self.parts.save(dir / CONTRIBUTIONS, overwrite=True)]
        for name, weights in self.weightings.items():
            paths.append(weights.save(dir / f"{name}.json", overwrite=True))
            scores = self.whole[name] if self.whole else self.parts.scores(weights)
            if self.whole:
                paths.append(scores.save(dir / f"{name}.safetensors", overwrite=True))
            best = TopK.from_blocks(scores.blocks(), self.top)
            paths.append(best.to_parquet(dir / f"{name}-top.parquet", overwrite=True))
        return paths
