"""The examples in docstrings print what they say, and every public name has one."""

import ast
import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import ctflow

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path for folder in ("ctflow", "operators", "datasets") for path in sorted((ROOT / folder).rglob("*.py"))
]
WITHOUT = {
    "from_tomosipo": "takes objects of a package that is in no package index",
    "to_tomosipo": "gives objects of a package that is in no package index",
}
"""Public names that have no example, and why."""


def examples() -> Iterator[tuple[str, doctest.DocTest]]:
    """Every docstring with an example, by its place; read, so that no decorator hides one."""
    for path in FILES:
        module = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text, line = ast.get_docstring(node) or "", getattr(node, "lineno", 1)
                place = f"{module}:{getattr(node, 'name', '')}"
                # An example imports what it needs, as its readers must: it knows nothing of its module.
                found = doctest.DocTestParser().get_doctest(text, {}, place, str(path), line)
                if found.examples:
                    yield place, found


EXAMPLES = dict(examples())


@pytest.mark.parametrize("place", EXAMPLES)
def test_examples_print_what_they_say(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(EXAMPLES[place], out=said.append, clear_globs=False).failed == 0, "".join(said)


@pytest.mark.parametrize("name", ctflow.__all__)
def test_every_public_name_has_an_example(name):
    item = inspect.unwrap(getattr(ctflow, name))
    if not inspect.ismodule(item):
        assert (">>> " in (item.__doc__ or "")) is (name not in WITHOUT)
