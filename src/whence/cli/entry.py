"""`main`: what a command line ends in, whatever happens: an exit code and one clear message.

0    done
1    refused or failed, with the message of a `WhenceError`
2    the command line itself cannot be understood; the nearest command or option is named
130  Ctrl-C; the same command continues
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

from cyclopts import CycloptsError

from whence.cli.app import app
from whence.cli.typing_errors import explain
from whence.errors import WhenceError

DEBUG = "WHENCE_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: Without the program's name; those of the process where it is None.
    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["whence", *given])
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app.meta(given, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _say(f"{explain(error)}\nSee `whence --help`.")
        return 2
    except WhenceError as error:
        if _debug(given):
            traceback.print_exc()
        _say("\n".join([f"Error: {error}", *getattr(error, "__notes__", [])]))
        return 1
    except KeyboardInterrupt:
        _say(f"\nStopped. The same command continues where it stopped: {command}")
        return 130
    return 0


def _debug(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get(DEBUG, "") not in ("", "0")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line; where in the code a warning arose helps nobody on a command line."""
    _say(f"Warning: {message}")
