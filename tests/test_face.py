"""The package's face: every name is there, and importing it loads nothing heavy."""

import subprocess
import sys

import pytest

import whence


def test_every_public_name_loads():
    for name in whence.__all__:
        assert getattr(whence, name) is not None
    assert set(whence.__all__) <= set(dir(whence))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="further_train"):
        whence.further_trian  # noqa: B018


def test_importing_loads_no_torch():
    code = "import sys, whence; print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
