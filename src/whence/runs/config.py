"""The configuration of a run: frozen dataclasses, read from TOML and written back with every default filled in."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from whence.checks import look_up, require_count, require_positive
from whence.errors import ConfigError, InputError
from whence.evaluation.bootstrap import check_settings
from whence.evaluation.correlation import METRICS
from whence.task.factory import import_factory as import_factory
from whence.task.factory import split_factory
from whence.training.recipe import Recipe

C = TypeVar("C")

FILE_OPTIONS = ("checkpoints",)  # of methods: lists of files
WEIGHTS = "weights"  # of every method that is linear in the weights: a file
RecipeConfig = Recipe  # the table [recipe] has the recipe's own names and defaults


@dataclass(frozen=True)
class TaskConfig:
    """Where task and data come from.

    Args:
        factory: "package.module:name" or "path/to/file.py:name", a callable that returns (task, train, queries).
        options: Its keyword arguments.
    """

    factory: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        split_factory(self.factory)


@dataclass(frozen=True)
class GoldConfig:
    """What the gold standard leaves out, and how often it trains on.

    Args:
        left_out: Number of train examples left out, one at a time.
        left_out_choice: Evenly spaced through the train set, or at random.
        left_out_indices: These positions instead; `left_out` and `left_out_choice` are then unused.
        seeds: Number of seeds.
        first_seed: Seeds are first_seed, first_seed + 1, ...
        points: Amounts of training at which to measure, in the recipe's unit; none means only its end.
        engine: How runs are executed; "auto" probes.
        adjustment: What outcomes are centred by: their mean over left-out sets, or the run on all data.
    """

    left_out: int = 100
    left_out_choice: Literal["even", "random"] = "even"
    left_out_indices: tuple[int, ...] = ()
    seeds: int = 5
    first_seed: int = 0
    points: tuple[int, ...] = ()
    engine: Literal["auto", "stacked", "loop", "processes"] = "auto"
    adjustment: Literal["mean", "full"] = "mean"

    def __post_init__(self) -> None:
        require_count(self.left_out, "left_out")
        require_count(self.seeds, "seeds")
        require_count(self.first_seed, "first_seed", minimum=0)
        _require_distinct(self.left_out_indices, "left_out_indices", minimum=0)
        _require_distinct(self.points, "points", minimum=1)


@dataclass(frozen=True)
class ScoreConfig:
    """Which methods score the train set, and how many examples their tables show.

    Args:
        methods: Their names.
        options: Keyword arguments of a method, by its name. A list of `checkpoints` holds paths of state dicts
            (`.safetensors`, `.pt`), from the folder of the TOML file:

                [score]
                methods = ["tracin", "trak"]

                [score.options.tracin]
                checkpoints = ["checkpoints/epoch_1.pt", "checkpoints/epoch_5.pt"]
                learning_rates = [0.1, 0.01]  # one for each checkpoint, or one number for all

                [score.options.trak]
                checkpoints = ["seeds/0.safetensors", "seeds/1.safetensors"]

            `weights` is the path of weights of parameter groups, as `whence weigh` writes them:

                [score.options.grad_dot]
                weights = "runs/other/weights/grad_dot/learned.json"
        top: Rows for each query.
    """

    methods: tuple[str, ...] = ("grad_dot",)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    top: int = 10

    def __post_init__(self) -> None:
        require_count(self.top, "top")
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise InputError(f"`methods` must name at least one method, each once; got {list(self.methods)}.")
        for name in self.options:
            look_up(dict.fromkeys(self.methods), name, "method in `options` (it must be one of `methods`)")


@dataclass(frozen=True)
class AgreeConfig:
    """How scores are compared with the gold standard.

    Args:
        metrics: Correlations over the left-out sets of a query.
        n_bootstrap: Replicates for the intervals.
        confidence: Coverage the intervals aim at.
    """

    metrics: tuple[str, ...] = ("cosine", "pearson", "spearman")
    n_bootstrap: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in self.metrics:
            look_up(METRICS, name, "metric")
        check_settings(self.n_bootstrap, self.confidence)


# Settings of [weigh] that have no meaning beside a teacher.
OF_THE_OBJECTIVE = ("solver", "options", "k", "center", "normalise", "two_sided", "without_hubs", "guard")


@dataclass(frozen=True)
class WeighConfig:
    """How weights of parameter groups are learned.

    Args:
        methods: Whose; none means the first method of [score] that is linear in the weights.
        groups: How parameters are grouped; "head" reads the number of attention heads from the model, "channel" takes
            output channels together.
        channels: How many of them, for "channel".
        solver: "nnls" (closed form), "adamw" (as published), "cross_fitted" or "one_factor"; "rms" and "uniform" learn
            nothing.
        options: Of the solver.
        teacher: Name of another method, such as "ekfac", whose scores for the learning queries are followed in the
            place of the objective and its solver; with its options of [score.options] where [score] has it too. Empty:
            none.
        k: Train examples per query that count as signal.
        center: Measure the scores of each learning query from their mean.
        normalise: What is learned on: groups of equal root mean square, or the raw contributions.
        two_sided: The k train examples with the lowest scores count as signal too.
        holdout: Share of the learning queries that the loss is checked on.
        relative: Learn on contributions of train gradients of norm 1: what the losses of train examples have in common
            is no signal of any group.
        without_hubs: Take from each train example what it contributes to all learning queries alike.
        guard: Take uniform or RMS weights where these have the lower loss on the queries held out.
        entropy_floor: Least entropy of the weights, between 0 (no floor) and 1 (uniform).
        unweighted_share: Of unweighted scores, that the weighted ones are mixed with, between 0 (none) and 1.
        folds: Parts of the learning queries that are left out in turn, to see how stable the weights are; 0 leaves
            that out.
        few_shot: Kept sets, at least 5, on which the model is trained anew as in [evaluate], with seeds of their own:
            a further weighting is fitted to what happens to the learning queries. 0 trains nothing.
        memory_gib: What contributions may take. Those of the learning queries are streamed where they need more, and
            those of the queries kept for as many as fit.
    """

    methods: tuple[str, ...] = ()
    groups: Literal["tensor", "module", "block", "depth_and_function", "head", "channel"] = "tensor"
    channels: int = 16
    solver: Literal["nnls", "adamw", "cross_fitted", "one_factor", "rms", "uniform"] = "nnls"
    options: dict[str, Any] = field(default_factory=dict)
    teacher: str = ""
    k: int = 10
    center: bool = True
    normalise: Literal["rms", "none"] = "rms"
    two_sided: bool = False
    holdout: float = 0.2
    relative: bool = True
    without_hubs: bool = False
    guard: bool = False
    entropy_floor: float = 0.0
    unweighted_share: float = 0.5
    folds: int = 5
    few_shot: int = 0
    memory_gib: float = 2.0

    def __post_init__(self) -> None:
        require_count(self.channels, "channels")
        require_count(self.k, "k")
        require_count(self.folds, "folds", minimum=0)
        require_positive(self.memory_gib, "memory_gib")
        if not 0 <= self.holdout < 1:
            raise InputError(f"`holdout` must be a share in [0, 1); got {self.holdout!r}.")
        if self.guard and self.holdout == 0:
            raise InputError("`guard` compares losses on queries held out, and `holdout` is 0. Give it 0.2, say.")
        if not 0 <= self.entropy_floor <= 1:
            raise InputError(f"`entropy_floor` must be in [0, 1], where 1 means uniform; got {self.entropy_floor!r}.")
        if not 0 <= self.unweighted_share <= 1:
            raise InputError(f"`unweighted_share` must be in [0, 1]; got {self.unweighted_share!r}.")
        if self.few_shot != 0:
            require_count(self.few_shot, "few_shot", minimum=5)
        if self.teacher:
            self._require_no_objective()

    def _require_no_objective(self) -> None:
        default = WeighConfig()
        given = [name for name in OF_THE_OBJECTIVE if getattr(self, name) != getattr(default, name)]
        if given:
            raise InputError(
                f"`teacher` is followed in the place of the objective, and {', '.join(f'`{n}`' for n in given)} would "
                "change nothing. Leave out one or the other."
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """How scores are judged by training anew on parts of the data.

    Args:
        recipe: The original training, from the initialisation; without it there are no linear datamodeling scores.
        kept_sets: Random sets of train examples.
        share: Of the train set in each.
        seeds: Trainings on each set.
        first_seed: Seeds are first_seed, first_seed + 1, ...; the first also draws the sets.
        engine: How trainings are executed; "auto" probes.
        n_bootstrap: Replicates for the intervals.
        confidence: Coverage the intervals aim at.
    """

    recipe: Recipe | None = None
    kept_sets: int = 32
    share: float = 0.5
    seeds: int = 2
    first_seed: int = 0
    engine: Literal["auto", "stacked", "loop", "processes"] = "auto"
    n_bootstrap: int = 500
    confidence: float = 0.95

    def __post_init__(self) -> None:
        require_count(self.kept_sets, "kept_sets", minimum=3)
        require_count(self.seeds, "seeds")
        require_count(self.first_seed, "first_seed", minimum=0)
        if not 0 < self.share < 1:
            raise InputError(f"`share` must lie between 0 and 1; got {self.share!r}.")
        check_settings(self.n_bootstrap, self.confidence)


@dataclass(frozen=True)
class AuditConfig:
    """How methods are compared before one is trusted.

    Args:
        seconds: Time budget.
        metric: Correlation over the left-out examples of a query.
        confidence: Coverage the intervals aim at.
        seed: Of the choice of left-out examples.
    """

    seconds: float = 120.0
    metric: str = "pearson"
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self.seconds, "seconds")
        look_up(METRICS, self.metric, "metric")
        require_count(self.seed, "seed", minimum=0)
        check_settings(1, self.confidence)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run; `load_config` reads it, a run folder keeps it."""

    name: str
    task: TaskConfig
    recipe: Recipe
    gold: GoldConfig = field(default_factory=GoldConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    agree: AgreeConfig = field(default_factory=AgreeConfig)
    weigh: WeighConfig = field(default_factory=WeighConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("`name` must not be empty: reports are headed by it.")
        if self.gold.points:
            self.recipe.check_points(self.gold.points)
        for name in self.weigh.methods:
            look_up(dict.fromkeys(self.score.methods), name, "method in [weigh] (it must be one of [score])")


def _require_distinct(values: tuple[int, ...], name: str, *, minimum: int) -> None:
    for value in values:
        require_count(value, f"every one of {name}", minimum=minimum)
    if len(set(values)) != len(values):
        raise InputError(f"`{name}` must not repeat a number; got {list(values)}.")


def load_config(path: Path | str) -> RunConfig:
    """The configuration in a TOML file, or in the `config.toml` of a run folder.

    A `factory` in a file, and the `checkpoints` of methods, are looked for beside the TOML file, and kept as absolute
    paths, so that a copy of the configuration elsewhere means the same.

    Raises:
        ConfigError: See `load_toml`.
    """
    path = Path(path)
    file = path / "config.toml" if path.is_dir() else path
    return with_absolute_paths(load_toml(file, RunConfig), file.resolve().parent)


def with_absolute_paths(config: RunConfig, base: Path) -> RunConfig:
    """The same configuration with paths made absolute from `base`: of a `file.py:name` factory, and of checkpoints."""
    task = dataclasses.replace(config.task, factory=_absolute_factory(config.task.factory, base))
    options = {method: _absolute_files(given, base) for method, given in config.score.options.items()}
    return dataclasses.replace(config, task=task, score=dataclasses.replace(config.score, options=options))


def _absolute_factory(factory: str, base: Path) -> str:
    module, name = split_factory(factory)
    return f"{(base / module).resolve()}:{name}" if module.endswith(".py") else factory


def _absolute_files(options: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Paths made absolute; what is no list of them is left for the method's own check."""
    found = dict(options)
    for name in FILE_OPTIONS:
        if isinstance(found.get(name), list):
            found[name] = [str((base / one).resolve()) if isinstance(one, str) else one for one in found[name]]
    if isinstance(found.get(WEIGHTS), str):
        found[WEIGHTS] = str((base / found[WEIGHTS]).resolve())
    return found


# Dataclasses and TOML


def load_toml(path: Path | str, cls: type[C]) -> C:
    """Read a dataclass from a TOML file.

    Raises:
        ConfigError: Unreadable, bad syntax (with its line), or see `from_dict`; the message begins with the path.
    """
    try:
        data = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: not UTF-8 text at line {line}. Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from error
    try:
        return from_dict(cls, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def dump_toml(obj: Any) -> str:
    """A dataclass as TOML that `load_toml` reads back to an equal one, with every default written out.

    Raises:
        ConfigError: A value has no place in TOML; its key is named.
    """
    data = to_dict(obj)
    try:
        return tomli_w.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"This configuration has a value that TOML cannot hold: {error}.") from error


def to_dict(obj: Any) -> dict[str, Any]:
    """A dataclass as nested dicts and lists. Fields that are None, where that is the default, are left out.

    Raises:
        ConfigError: None elsewhere, which TOML cannot hold.
    """
    out = {}
    for entry in dataclasses.fields(obj):
        value = getattr(obj, entry.name)
        if not (value is None and entry.default is None):
            out[entry.name] = _plain(value, f"{type(obj).__name__}.{entry.name}")
    return out


def _plain(value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{where}[{k}]") for k, inner in enumerate(value)]
    if value is None:
        raise ConfigError(f"`{where}` is None, which TOML cannot hold. Leave it out, or give it a value.")
    return value


def from_dict(cls: type[C], data: Mapping[str, Any], where: str = "config") -> C:
    """Build a dataclass, and those nested in it, from dicts as TOML gives them.

    Args:
        cls: A dataclass whose fields are numbers, text, bool, Literal, tuples, lists, dicts, dataclasses, or any of
            them or None.
        data: Values by field name.
        where: Name of this table in messages.
    Raises:
        ConfigError: An unknown key (the nearest is named), a missing key, a wrong type, or a value the class refuses.
    """
    fields = {entry.name: entry for entry in dataclasses.fields(cls) if entry.init}  # type: ignore[arg-type]
    _refuse_unknown(data, fields, where)
    missing = [name for name, entry in fields.items() if name not in data and _is_required(entry)]
    if missing:
        raise ConfigError(f"[{where}] lacks {_listing(missing)}. Add it; known keys: {_listing(fields)}.")
    hints = typing.get_type_hints(cls)
    values = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise ConfigError(f"[{where}] {error}") from error


def _refuse_unknown(data: Mapping[str, Any], fields: Iterable[str], where: str) -> None:
    for key in data:
        if key not in fields:
            raise ConfigError(f"Unknown key `{key}` in [{where}].{_nearest(key, fields)} Known: {_listing(fields)}.")


def _is_required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _nearest(name: object, known: Iterable[object]) -> str:
    near = difflib.get_close_matches(str(name), [str(one) for one in known], n=1, cutoff=0.5)
    return f" Did you mean `{near[0]}`?" if near else ""


def _listing(names: Iterable[object]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind` (a type hint), or the error that says what was expected there."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _wrong(where, f"a table [{where}]", value)
        return from_dict(typing.cast(type, kind), value, where)
    origin = typing.get_origin(kind) or kind
    for origins, converter in _CONVERTERS:
        if origin in origins:
            return converter(kind, value, where)
    return _scalar(kind, value, where)


def _literal(kind: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(kind)
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    raise ConfigError(f"`{where}` must be one of {_listing(choices)}; got {value!r}.{_nearest(value, choices)}")


def _union(kind: Any, value: Any, where: str) -> Any:
    if value is None and type(None) in typing.get_args(kind):
        return None
    choices = [choice for choice in typing.get_args(kind) if choice is not type(None)]
    for choice in choices[:-1]:
        try:
            return _convert(choice, value, where)
        except ConfigError:
            continue
    return _convert(choices[-1], value, where)


def _sequence(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    maker, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if maker is tuple and inner and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise ConfigError(f"`{where}` must have {len(inner)} entries; got {len(value)}: {value!r}.")
        kinds = list(inner)
    else:
        kinds = [inner[0] if inner else Any] * len(value)
    return maker(_convert(one, v, f"{where}[{k}]") for k, (one, v) in enumerate(zip(kinds, value, strict=True)))


def _mapping(kind: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, f"a table [{where}]", value)
    inner = (typing.get_args(kind) or (str, Any))[1]
    return {key: _convert(inner, one, f"{where}.{key}") for key, one in value.items()}


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(where, _KINDS.get(kind, kind.__name__), value)
    return value


def _wrong(where: str, expected: str, value: Any) -> ConfigError:
    found = "a table" if isinstance(value, Mapping) else f"{_KINDS.get(type(value), type(value).__name__)}, {value!r}"
    return ConfigError(f"`{where}` must be {expected}; got {found}.")


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text in quotes",
    list: "a list",
}
_CONVERTERS: list[tuple[tuple[Any, ...], Callable[[Any, Any, str], Any]]] = [
    ((Literal,), _literal),
    ((typing.Union, types.UnionType), _union),
    ((tuple, list), _sequence),
    ((dict, Mapping), _mapping),
]
