"""The commands. Everything heavy is imported inside them, so that help and typing errors answer at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter

from whence.cli.show import (
    Lines,
    show_agree,
    show_audit,
    show_demo,
    show_evaluate,
    show_gold,
    show_report,
    show_score,
    show_weigh,
)
from whence.cli.source import check_source

COMMON_OPTIONS = ("--quiet", "--progress", "--debug", "--help")
Config = Annotated[Path, Parameter(help="A TOML file, a run folder, or its config.toml.")]
Out = Annotated[Path | None, Parameter(help="Folder of the run. Default: the run folder named, else runs/<name> here.")]
Rebuild = Annotated[bool, Parameter(show_default=False, help="Compute again what is damaged; the rest is kept.")]


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("whence")
    except metadata.PackageNotFoundError:  # run from a folder
        return "unknown"


app = App(
    name="whence",
    help="Which training examples made this model do that, and how far can the answer be trusted?",
    version=_version,
    help_format="plaintext",
    default_parameter=Parameter(negative=""),
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app.meta.group_parameters = Group("Options of every command")
app.meta.suppress_keyboard_interrupt = False  # `main` answers it


@app.command(sort_key=1)
def demo(*, out: Annotated[Path, Parameter(help="Folder for the report.")] = Path("runs/demo")) -> Lines:
    """Embedded real data, a picture-rich report, in about two minutes."""
    from whence.report.demo import demo as run_demo

    return show_demo(run_demo(out))


@app.command(sort_key=2)
def gold(config: Config, /, *, out: Out = None, rebuild: Rebuild = False) -> Lines:
    """Train the final model further without examples, and keep what happens to the queries."""
    check_source(config)
    from whence.runs.gold import run_gold

    return show_gold(run_gold(config, out, rebuild=rebuild))


@app.command(sort_key=3)
def score(config: Config, /, *, out: Out = None, rebuild: Rebuild = False) -> Lines:
    """Score every train example for every query, with each method of the configuration."""
    check_source(config)
    from whence.runs.score import run_score

    return show_score(run_score(config, out, rebuild=rebuild))


@app.command(sort_key=4)
def agree(config: Config, /, *, out: Out = None) -> Lines:
    """Compare scores with the gold standard: how far can each method be trusted?"""
    check_source(config)
    from whence.runs.agree import run_agree

    return show_agree(run_agree(config, out))


@app.command(sort_key=5)
def weigh(config: Config, /, *, out: Out = None, rebuild: Rebuild = False) -> Lines:
    """Learn which parameter groups to believe, from held-out queries and without labels."""
    check_source(config)
    from whence.runs.weigh import run_weigh

    return show_weigh(run_weigh(config, out, rebuild=rebuild))


@app.command(sort_key=6)
def evaluate(config: Config, /, *, out: Out = None, rebuild: Rebuild = False) -> Lines:
    """Judge scores by training anew on parts of the data (LDS), and by the wrong labels they find."""
    check_source(config)
    from whence.runs.evaluate import run_evaluate

    return show_evaluate(run_evaluate(config, out, rebuild=rebuild))


@app.command(sort_key=7)
def audit(config: Config, /, *, out: Out = None) -> Lines:
    """Try all methods on a small gold standard: which one to trust on this model, and how far?"""
    check_source(config)
    from whence.runs.audit import run_audit

    return show_audit(run_audit(config, out))


@app.command(sort_key=8)
def report(
    config: Config,
    /,
    *,
    out: Out = None,
    method: Annotated[
        list[str] | None,
        Parameter(help="Method to show; may be repeated. Default: the one that agrees best with the gold standard."),
    ] = None,
) -> Lines:
    """Write the report of a run from whatever its folder holds."""
    check_source(config)
    from whence.report.run import run_report

    return show_report(run_report(config, out, methods=method or ()))


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    quiet: Annotated[
        bool, Parameter(show_default=False, help="Print only where the result is, and no progress.")
    ] = False,
    progress: Annotated[
        Literal["auto", "rich", "json", "silent"],
        Parameter(
            show_default=False,
            help="On stderr: bars, JSON lines or nothing. auto: bars on a terminal, else JSON lines.",
        ),
    ] = "auto",
    debug: Annotated[
        bool, Parameter(show_default=False, help="Show the traceback of an error; so does WHENCE_DEBUG=1.")
    ] = False,
) -> None:
    """Run the command in `tokens`; `debug` is read by `main`, which shows the error."""
    from whence.progress import set_reporter

    set_reporter("silent" if quiet else progress)
    lines = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    for line in lines[-1:] if quiet else lines or []:
        print(line)
