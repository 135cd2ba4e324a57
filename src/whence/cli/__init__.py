"""The command line: parse, call one function, print. Importing it imports nothing heavy."""

from whence.cli.entry import main

__all__ = ["main"]
