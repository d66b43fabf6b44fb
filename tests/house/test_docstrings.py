"""Docstrings say what a caller cannot see: shapes, units, what is raised, where a method comes from."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctflow import errors

ROOT = Path(__file__).resolve().parents[2]
OWN_ERRORS = {name for name, item in vars(errors).items() if isinstance(item, type)}
# A tuple of dimensions, or words for it.
SHAPE = re.compile(
    r"\(\*?\w+,( ?\*?[\w.]+,?)*( ·[^)]*)?\)|\(\*batch|[Ss]hape[ds]? |scalar|same (grid|place|unit)"
)
UNIT = re.compile(
    r"\bmm\b|\bHU\b|1/mm|\brad|network range|dimensionless|\bunits?\b|pixel|voxel|second|photon|keV|\bdB\b"
)
# Parts that handle quantities; linear algebra and the operators' algebra take any unit.
PHYSICAL = {
    "geometry",
    "volume",
    "noise",
    "scan",
    "units",
    "recon",
    "samplers",
    "metrics",
    "dicom",
    "datasets",
    "runs",
}


@dataclass(frozen=True)
class Item:
    """A public class or function: its docstrings and how to find it."""

    place: str
    part: str
    node: ast.ClassDef | ast.FunctionDef
    owner: ast.ClassDef | None

    @property
    def text(self) -> str:
        """The docstring, and that of the class around it, which may speak for its methods."""
        own = ast.get_docstring(self.node) or ""
        return own + "\n" + (ast.get_docstring(self.owner) or "" if self.owner else "")


def documented(name: str) -> bool:
    """Public, or a special method that a caller reaches by calling or making the object."""
    return not name.startswith("_") or name == "__call__"


def items(tree: ast.Module, file: Path) -> Iterator[Item]:
    """Public functions, classes and their methods."""
    part = file.with_suffix("").parts[1 if file.parts[0] == "ctflow" else 0]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and documented(node.name):
            yield Item(f"{file}:{node.name}", part, node, None)
            for member in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(member, ast.FunctionDef) and documented(member.name):
                    yield Item(f"{file}:{node.name}.{member.name}", part, member, node)


def raised(item: Item) -> set[str]:
    """Own errors that the body raises by name; a class answers for its construction."""
    bodies: list[ast.AST] = [item.node]
    if isinstance(item.node, ast.ClassDef):
        made = ("__init__", "__post_init__")
        bodies = [m for m in item.node.body if isinstance(m, ast.FunctionDef) and m.name in made]
    calls = (n.exc for body in bodies for n in ast.walk(body) if isinstance(n, ast.Raise))
    names = {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
    return names & OWN_ERRORS


def annotations(item: Item) -> str:
    """Source of all annotations of a function's parameters and result."""
    if isinstance(item.node, ast.ClassDef):
        return ""
    arguments = item.node.args
    every = [a.annotation for a in (*arguments.args, *arguments.kwonlyargs)] + [item.node.returns]
    return " ".join(ast.unparse(annotation) for annotation in every if annotation is not None)


def complaints(item: Item) -> Iterator[str]:
    """What the docstring fails to say."""
    if not ast.get_docstring(item.node) and item.node.name != "__call__":
        yield f"{item.place} has no docstring"
    # The docstring of a command is its --help; there the exit status stands for the error.
    for name in sorted(raised(item)) if item.part not in ("cli",) else ():
        if "Raises:" not in item.text or name not in item.text:
            yield f"{item.place} raises {name} and has no Raises: section that names it"
    types = annotations(item)
    if re.search(r"\bTensor\b", types) and not SHAPE.search(item.text):
        yield f"{item.place} handles tensors and states no shape"
    if re.search(r"\b(Tensor|Volume)\b", types) and item.part in PHYSICAL and not UNIT.search(item.text):
        yield f"{item.place} handles quantities and states no unit"
    methods = item.part in ("recon", "samplers") and item.node.name == "__call__"
    if methods and "References:" not in item.text:
        yield f"{item.place} is a method without References:"


def all_complaints(source: str, file: Path) -> list[str]:
    """What one file fails to say."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) or file.name == "__main__.py" else [f"{file} has no docstring"]
    return missing + [line for item in items(tree, file) for line in complaints(item)]


def test_docstrings_are_whole():
    folders = ("ctflow", "operators", "datasets")
    files = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [line for file in files for line in all_complaints((ROOT / file).read_text(), file)]
    assert not found, "\n".join(found)


def test_the_checks_can_fail():
    source = '''
class Method:
    """Reconstruct."""

    def __call__(self, y: Tensor) -> Tensor:
        """Do it."""
        raise GeometryError("no")

def bare(): ...
'''
    found = "\n".join(all_complaints(source, Path("ctflow/recon/new.py")))
    wanted = (
        "new.py has no docstring",
        "bare has no docstring",
        "raises GeometryError",
        "no shape",
        "no unit",
    )
    assert all(text in found for text in (*wanted, "without References:"))
