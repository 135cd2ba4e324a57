"""The house stands: imports go down only, and rooms on one floor do not import each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import whence

PACKAGE = Path(whence.__file__).parent

GROUND = ("errors", "checks", "rng", "progress", "batches")
FLOORS = {
    1: GROUND,
    2: ("algebra", "storage"),
    3: ("task", "data", "scores"),
    4: ("gradients", "training", "adapters"),
    5: ("curvature", "gold"),
    6: ("methods",),
    7: ("weights", "evaluation"),
    8: ("studies",),
    9: ("runs",),
    10: ("report",),
    11: ("cli",),
    12: ("__main__",),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
FREE = ("__init__", "testing")  # may import every room; the face and the test problems are imported by none


def room_of(module):
    """The room of a dotted name below `whence`: "whence.task.losses" -> "task"; the face is "__init__"."""
    return [*module.split("."), "__init__"][1]


def module_of(file, package):
    """Dotted name of a file, with `__init__` kept, so that relative imports resolve."""
    return ".".join(["whence", *file.relative_to(package).with_suffix("").parts])


def imported(source, module):
    """(line, dotted name below `whence`) of every import: nested, for type checking, relative, by `import_module`."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            # From the package itself, what is imported is a room or a name of the face.
            names = [f"{base}.{alias.name}" if base == "whence" else base for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            names = [str(node.args[0].value)] if called in ("import_module", "__import__") else []
        yield from ((node.lineno, name) for name in names if (name + ".").startswith("whence."))


def violations(source, module):
    """What is wrong with the imports of one file, in words."""
    room = room_of(module)
    if room in FREE:
        return []
    if room not in FLOOR:
        return [f"{module}: room {room!r} is on no floor; draw it in DESIGN.md and in FLOORS"]
    found = []
    for line, name in imported(source, module):
        other = room_of(name)
        if other == room or (room in GROUND and other in GROUND):
            continue
        if other not in FLOOR:
            found.append(f"{module}:{line} imports {name}, which no room may")
        elif FLOOR[other] >= FLOOR[room]:
            found.append(f"{module}:{line} (floor {FLOOR[room]}) imports {name} (floor {FLOOR[other]})")
    return found


def test_imports_go_down_only():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20  # otherwise this test reads the wrong place
    found = [line for file in files for line in violations(file.read_text("utf-8"), module_of(file, PACKAGE))]
    assert found == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("whence.algebra.cg", "import whence.errors\nfrom whence.checks import look_up\nfrom whence.algebra import x"),
        ("whence.algebra.cg", "from .operators import Dense\nfrom ..errors import InputError\nfrom .. import rng"),
        ("whence.algebra.__init__", "from .operators import Dense\nfrom ..errors import InputError"),
        ("whence.checks", "from whence.errors import InputError\nimport torch"),
        ("whence.cli.main", "from whence.report import page\nfrom whence import runs"),
        ("whence.testing.problems", "from whence.cli import main"),
        ("whence.__init__", "from whence.cli import main"),
        ("whence.task.task", "import whence_elsewhere\nfrom numpy import whence"),
    ],
)
def test_the_checker_lets_good_imports_pass(module, source):
    assert violations(source, module) == []


@pytest.mark.parametrize(
    "module, source, shown",
    [
        ("whence.algebra.cg", "from whence.task import Task", "(floor 2) imports whence.task (floor 3)"),
        ("whence.algebra.cg", "import whence.storage.shards", "imports whence.storage.shards (floor 2)"),
        ("whence.evaluation.lds", "import numpy\n\nfrom whence.weights.solvers import s", "whence.evaluation.lds:3"),
        ("whence.scores", "from whence.data import Examples", "imports whence.data (floor 3)"),
        ("whence.task.task", "def f():\n    from ..gold import plan", "whence.task.task:2"),
        ("whence.task.__init__", "from ..gold import plan", "imports whence.gold"),
        ("whence.task.task", "if TYPE_CHECKING:\n    from whence.scores import S", "imports whence.scores"),
        ("whence.task.task", "from whence import methods", "imports whence.methods (floor 6)"),
        ("whence.task.task", "from .. import methods", "imports whence.methods (floor 6)"),
        ("whence.task.task", "importlib.import_module('whence.cli')", "imports whence.cli"),
        ("whence.rng", "from whence.storage import atomic", "(floor 1) imports whence.storage (floor 2)"),
        ("whence.gold.plan", "from whence.testing import problems", "which no room may"),
        ("whence.gold.plan", "from whence import attribute", "which no room may"),
        ("whence.gold.plan", "import whence", "which no room may"),
        ("whence.gold.plan", "from whence.attic import old", "which no room may"),
        ("whence.attic.old", "", "room 'attic' is on no floor"),
        ("whence.attic", "", "room 'attic' is on no floor"),
    ],
)
def test_the_checker_finds_bad_imports(module, source, shown):
    found = violations(source, module)
    assert len(found) == 1
    assert shown in found[0]


def test_importing_the_face_imports_no_torch():
    script = "import sys, whence; print(sorted({'torch', 'numpy', 'pandas', 'rich'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
