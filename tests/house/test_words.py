"""One word for each thing: the glossary's words are used in docstrings, and their synonyms are not."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Words\n")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", TEXT, re.MULTILINE)[1:]  # behind the heading
GLOSSARY = {word: [] if synonyms == "–" else synonyms.split(", ") for word, synonyms in ROWS}


def docstrings() -> dict[str, str]:
    """Every docstring in lower case, on one line, by file and line."""
    found = {}
    for folder in ("ctflow", "operators", "datasets"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    text = ast.get_docstring(node) or ""
                    place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                    found[place] = " ".join(text.lower().replace("_", " ").split())
    return found


DOCSTRINGS = docstrings()


def places(word: str) -> list[str]:
    """Where a word, or its plural, occurs."""
    pattern = re.compile(rf"\b{re.escape(word.lower())}(s|es)?\b")
    return [place for place, text in DOCSTRINGS.items() if pattern.search(text)]


@pytest.mark.parametrize("word", GLOSSARY)
def test_a_word_of_the_glossary_is_used_and_its_synonyms_are_not(word):
    assert places(word), f"no docstring uses '{word}'; use it, or take it out of the glossary"
    assert {synonym: places(synonym) for synonym in GLOSSARY[word] if places(synonym)} == {}


def test_the_glossary_has_its_words_and_the_check_can_fail():
    assert len(GLOSSARY) >= 20
    assert places("tensor")
    assert not places("quaternionic")
