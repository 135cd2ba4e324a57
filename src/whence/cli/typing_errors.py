"""What is wrong with a command line, in one sentence."""

from __future__ import annotations

import difflib

from cyclopts import CycloptsError, UnknownOptionError, UnusedCliTokensError

from whence.cli.app import COMMON_OPTIONS


def explain(error: CycloptsError) -> str:
    """The message; an unknown option gets the nearest of the command's own and the common ones, and all of them."""
    if isinstance(error, UnusedCliTokensError):
        return f"Unexpected arguments: {' '.join(error.unused_tokens or [])}. Options begin with `--`."
    if not isinstance(error, UnknownOptionError):
        return str(error)
    given = (error.token.keyword or error.token.value).partition("=")[0]
    own = [name for argument in error.argument_collection for name in argument.names if name.startswith("--")]
    known = list(dict.fromkeys([*own, *COMMON_OPTIONS]))
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"Unknown option {given}.{hint} Known: {', '.join(known)}."
