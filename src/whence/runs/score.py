"""`whence score`: the scores of a run's methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import WhenceError
from whence.methods import Inputs, attribute_with
from whence.progress import stage
from whence.runs.config import RunConfig, to_dict
from whence.runs.options import file_facts, given_weights, method_options, preset_of
from whence.runs.score_files import ScoreFiles, Scores
from whence.runs.start import Source, Start, opened


@dataclass(frozen=True)
class ScoreResult:
    """Where the scores are.

    Attributes:
        folder: The run.
        stores: Folder of each method, in the order of the settings.
        computed: Methods scored now.
        kept: Methods whose scores were there already.
    """

    folder: Path
    stores: Mapping[str, Path]
    computed: tuple[str, ...]
    kept: tuple[str, ...]


def run_score(source: Source, out: Source | None = None, *, rebuild: bool = False) -> ScoreResult:
    """Score the train set with each method of the settings that has no scores yet.

    Args:
        source: A TOML file, a run folder, or its `config.toml`.
        out: Folder of the run; see `RunFolder.resolve`.
        rebuild: Compute methods with a damaged file again.
    Raises:
        ConfigError, StoreMismatchError: See `opened` and `Opened.build`.
        DamagedShardError: A stored file is damaged, and `rebuild` is False.
    Cost:
        See the methods; curvature and query gradients are computed once for all of them.
    """
    with opened(source, out) as folder:
        begun = folder.build()
        methods = begun.run.config.score.methods
        asked = {name: method_settings(begun, name) | _weights_settings(begun, name) for name in methods}
        files = {name: ScoreFiles(begun.run.scores_dir(name)) for name in methods}
        missing = [name for name in methods if not files[name].files.have(asked[name], rebuild=rebuild)]
        if missing:
            _score(begun, {name: files[name] for name in missing}, asked)
            folder.record("score")
    return ScoreResult(
        folder=begun.run.path,
        stores={name: files[name].dir for name in methods},
        computed=tuple(missing),
        kept=tuple(name for name in methods if name not in missing),
    )


def _score(begun: Start, missing: Mapping[str, ScoreFiles], settings: Mapping[str, Mapping[str, Any]]) -> None:
    config = begun.run.config
    inputs = Inputs(begun.task, begun.train, begun.queries)
    with stage("scoring", total=len(missing), unit="method") as done:
        for name, files in missing.items():
            try:
                files.write(score_with(inputs, config, name), settings[name], config.score.top)
            except WhenceError as error:
                error.add_note(f"This was method {name!r}; methods scored before it are kept.")
                raise
            done.advance()


def score_with(inputs: Inputs, config: RunConfig, method: str) -> Scores:
    """The scores of one method; for each amount of further training where it follows that."""
    options, at = call_options(config, method)
    weights = given_weights(method, config.score.options.get(method, {}))
    return attribute_with(inputs, method, at=at, weights=weights, **options)


def call_options(config: RunConfig, method: str) -> tuple[dict[str, Any], tuple[int, ...] | None]:
    """Keyword arguments of a method, without weights, and the amounts of training it is asked for.

    The latter are None where it follows none.
    """
    options = method_options(method, config.score.options.get(method, {}))
    if not preset_of(method).by_amount:
        return options, None
    return {"recipe": config.recipe, **options}, amounts(config)


def amounts(config: RunConfig) -> tuple[int, ...]:
    """Where the gold standard is measured: its points, or the end of the recipe."""
    return config.recipe.check_points(config.gold.points or [config.recipe.amount])


def _weights_settings(begun: Start, method: str) -> dict[str, Any]:
    """What decides the numbers where weights are given: what their file holds, wherever it lies."""
    weights = given_weights(method, begun.run.config.score.options.get(method, {}))
    return {} if weights is None else {"weights": weights.by_name()}


def method_settings(begun: Start, method: str) -> dict[str, Any]:
    """What decides the numbers of one method without weights, as JSON.

    Raises:
        ConfigError: A checkpoint cannot be read.
    """
    config = begun.run.config
    options = method_options(method, config.score.options.get(method, {}))
    plain = {n: to_dict(v) if dataclasses.is_dataclass(v) else v for n, v in options.items()}
    settings = {"method": method, "options": plain, "top": config.score.top, **begun.facts}
    settings |= file_facts(method, options)
    if preset_of(method).by_amount:
        settings |= {"recipe": dataclasses.asdict(config.recipe), "at": amounts(config)}
    return settings
