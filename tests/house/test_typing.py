"""What a user's type checker knows of ctflow: the door has types, and what is wrong is refused."""

import ast
import re
from pathlib import Path
from types import ModuleType

import pytest
from mypy import api

import ctflow

TESTS = Path(__file__).parent
ANY_SHAPE = "tuple[Any, ...]"  # of a NumPy array
UNTYPED = {
    *("ForeignPrior", "LatentPrior", "wrap", "from_tomosipo", "to_tomosipo"),  # objects of other libraries
    *("from_astra", "to_astra"),  # ASTRA's dictionaries
    "FlowPrior",  # tables of files, checked where they are read
}
"""Names in whose signature a part may have no type."""
TYPED = (
    *("errors.py", "registry.py", "search_space.py", "tables.py", "solving.py"),
    *("recon", "samplers", "evidence", "runs", "experiments", "training", "testing", "cli"),
)
"""Rooms in which every value has a type."""


def sources(room: str) -> list[Path]:
    """The Python files of a room, which may be a file itself."""
    home = Path(ctflow.__file__).parent
    return [home / room] if room.endswith(".py") else sorted((home / room).rglob("*.py"))


@pytest.mark.parametrize("room", TYPED)
def test_a_typed_room_has_no_any(room):
    files = sources(room)
    named = [
        f"{file.name}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id == "Any")
        or (isinstance(node, ast.Attribute) and node.attr == "Any")
        or (isinstance(node, ast.ImportFrom) and "Any" in (name.name for name in node.names))
    ]
    assert files
    assert named == []


def public() -> list[str]:
    """Every name that `ctflow` offers, and those that its rooms list."""
    rooms = {name: getattr(ctflow, name) for name in dir(ctflow)}
    inside = ((room, m) for room, m in rooms.items() if isinstance(m, ModuleType))
    return [*rooms, *(f"{room}.{name}" for room, m in inside for name in getattr(m, "__all__", []))]


@pytest.mark.slow
def test_a_type_checker_knows_the_door_and_refuses_what_is_wrong(tmp_path):
    names = public()
    revealing = tmp_path / "revealing.py"
    revealing.write_text("import ctflow\n" + "".join(f"reveal_type(ctflow.{name})\n" for name in names))
    options = ["--strict", "--cache-dir", str(tmp_path / "cache")]
    config = ["--config-file", str(TESTS.parents[1] / "pyproject.toml")]
    said, _, failed = api.run([*options, *config, str(TESTS / "typed_usage.py"), str(revealing)])

    told = dict(re.findall(r'revealing\.py:(\d+): note: Revealed type is "(.*)"', said))
    types = {name: told.get(str(line), "nothing") for line, name in enumerate(names, start=2)}
    errors = [line for line in said.splitlines() if ": error: " in line]
    assert (failed, errors) == (0, [])
    assert [name for name, type_ in types.items() if type_ in ("nothing", "Any")] == []
    bare = {name for name, type_ in types.items() if re.search(r"\bAny\b", type_.replace(ANY_SHAPE, ""))}
    assert {name.rpartition(".")[2] for name in bare} <= UNTYPED
