"""The examples in docstrings print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path for folder in ("ctflow", "operators", "datasets") for path in sorted((ROOT / folder).rglob("*.py"))
]
HOLDING = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in FILES
    if ">>> " in path.read_text(encoding="utf-8")
}


@pytest.mark.parametrize("name", HOLDING)
def test_examples_print_what_they_say(name):
    home = name if name.startswith("ctflow.") else f"ctflow.{name}"
    found = doctest.testmod(import_module(home))
    assert found.attempted > 0
    assert found.failed == 0
