"""`whence weigh`: weights of parameter groups, learned on queries that are held out from everything else.

weights/<method>/learned.json, rms.json          weights, with how they were found
weights/<method>/contributions.safetensors       of the queries of the run, by group: any weights cost one product
weights/<method>/learned-top.parquet             the strongest examples under the learned weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.data import Examples
from whence.errors import ConfigError, WhenceError
from whence.methods import Inputs
from whence.progress import stage
from whence.runs.config import RunConfig, to_dict
from whence.runs.folder import RunFolder
from whence.runs.options import preset_of
from whence.runs.result_files import ResultFiles
from whence.runs.score import call_options, method_settings
from whence.runs.start import Source, Start, opened
from whence.scores import TopK
from whence.task import GroupWeights, Heads
from whence.weights import Contributions, contributions_with, learn_weights

WEIGHTINGS = ("rms", "learned")
CONTRIBUTIONS = "contributions.safetensors"


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
        ConfigError: No method is linear in the weights, or the factory gives no learning queries; and as `opened`.
        StoreMismatchError, DamagedShardError: As for `run_score`.
    Cost:
        Contributions of learning queries and queries, see `contributions`; the learning itself takes seconds.
    """
    with opened(source, out) as folder:
        methods = weighed_methods(folder.run.config)
        begun = folder.build()
        learning = _learning_queries(begun)
        files = {name: weight_files(begun.run, name) for name in methods}
        settings = {name: _settings(begun, name, learning) for name in methods}
        missing = [name for name in methods if not files[name].have(settings[name], rebuild=rebuild)]
        if missing:
            _weigh(begun, learning, {name: files[name] for name in missing}, settings)
            folder.record("weigh")
    weights = {name: read_weights(begun.run, name) for name in methods}
    return WeighResult(begun.run.path, weights, tuple(missing))


def weighed_methods(config: RunConfig) -> tuple[str, ...]:
    """Methods whose parameter groups are weighed.

    Raises:
        ConfigError: None is linear in the weights, or one that was named is not.
    """
    linear = tuple(name for name in config.score.methods if preset_of(name).linear_in_w)
    wrong = [name for name in config.weigh.methods if name not in linear]
    if wrong or not linear:
        named = f"{', '.join(wrong)} in [weigh]" if wrong else f"of {', '.join(config.score.methods)} none"
        raise ConfigError(
            f"Weights of parameter groups need a method that is linear in the query's gradient; {named} is not "
            f"suitable. Linear in [score]: {', '.join(linear) or 'none; add for instance grad_dot'}."
        )
    return config.weigh.methods or linear[:1]


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
    return {name: GroupWeights.load(paths[name]) for name in WEIGHTINGS}


def read_contributions(run: RunFolder, method: str) -> Contributions:
    """Contributions of the queries of the run; errors as `read_weights`."""
    weight_files(run, method).checked()
    return Contributions.load(run.weights_dir(method) / CONTRIBUTIONS)


def _learning_queries(begun: Start) -> Examples:
    if begun.setup.learning_queries is None:
        raise ConfigError(
            f"Weights are learned on queries that are neither in the train set nor among the queries, and the factory "
            f"{begun.run.config.task.factory!r} gives none. Let it return "
            "`whence.Setup(task, train, queries, learning_queries=...)`."
        )
    return begun.setup.learning_queries


def _settings(begun: Start, method: str, learning: Examples) -> dict[str, Any]:
    chosen = {name: value for name, value in to_dict(begun.run.config.weigh).items() if name != "methods"}
    return {**method_settings(begun, method), "weigh": chosen, "learning_queries": learning.fingerprint}


def _weigh(
    begun: Start, learning: Examples, missing: Mapping[str, ResultFiles], settings: Mapping[str, Mapping[str, Any]]
) -> None:
    asked = Inputs(begun.task, begun.train, begun.queries)
    learned_from = asked.with_queries(learning)
    shared = begun.setup.shared_rows()
    with stage("weighing", total=len(missing), unit="method") as done:
        for method, files in missing.items():
            try:
                weightings = _learn(begun.run.config, method, learned_from, shared)
                parts = _contributions(begun.run.config, method, asked)
            except WhenceError as error:
                error.add_note(f"This was method {method!r}; methods weighed before it are kept.")
                raise
            files.write(settings[method], _Writer(weightings, parts, begun.run.config.score.top))
            done.advance()


def _learn(config: RunConfig, method: str, inputs: Inputs, shared: Mapping[str, int]) -> dict[str, GroupWeights]:
    found = _contributions(config, method, inputs)
    chosen = config.weigh
    options: dict[str, Any] = {
        "k": chosen.k,
        "center": chosen.center,
        "normalise": chosen.normalise,
        "holdout": chosen.holdout,
    }
    weightings = {
        "rms": learn_weights(found, "rms", **options),
        "learned": learn_weights(found, chosen.solver, **options),
    }
    if not any(shared.values()):
        return weightings
    note = {"learning_queries_equal_to_rows_of": dict(shared)}
    return {
        name: GroupWeights(w.values, w.groups, w.name, w.method, {**w.facts, **note}) for name, w in weightings.items()
    }


def _contributions(config: RunConfig, method: str, inputs: Inputs) -> Contributions:
    options, amounts = call_options(config, method)
    at = {} if amounts is None else {"at": amounts[-1]}
    groups = Heads.of(inputs.task.model) if config.weigh.groups == "head" else config.weigh.groups
    return contributions_with(inputs, method, groups=groups, **at, **options)


@dataclass(frozen=True, eq=False)
class _Writer:
    """Writes everything that is kept of one method."""

    weightings: Mapping[str, GroupWeights]
    parts: Contributions
    top: int

    def __call__(self, dir: Path) -> list[Path]:
        paths = [self.parts.save(dir / CONTRIBUTIONS, overwrite=True)]
        for name, weights in self.weightings.items():
            paths.append(weights.save(dir / f"{name}.json", overwrite=True))
            best = TopK.from_blocks(self.parts.scores(weights).blocks(), self.top)
            paths.append(best.to_parquet(dir / f"{name}-top.parquet", overwrite=True))
        return paths
