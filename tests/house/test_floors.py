"""The floors of the import graph hold, and one module moves files."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def linted(folder: Path) -> tuple[int, str]:
    """Exit status and output of import-linter on a tree."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=False, capture_output=True, text=True
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_floors_hold():
    status, said = linted(ROOT)
    assert status == 0, said


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The package, with its parts inside, and the contracts."""
    target = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "ctflow", target / "ctflow", symlinks=False)
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("units.py", "def f():\n    import ctflow.cli.app"),
        ("volume.py", "from ctflow import metrics"),
        ("operators/mask.py", "from ctflow.runs.protocol import Protocol"),
        ("samplers/ddnm.py", "from ctflow.geometry import ParallelBeam"),
        ("datasets/synthetic.py", "from ctflow.experiments.study import Study"),
    ],
)
def test_a_planted_violation_is_found(copy, file, source):
    place = copy / "ctflow" / file
    text = place.read_text(encoding="utf-8")
    place.write_text(f"{text}\n\n{source}\n", encoding="utf-8")
    status, said = linted(copy)
    place.write_text(text, encoding="utf-8")
    assert (status, "BROKEN" in said) == (1, True), said


def sources() -> list[Path]:
    """Every Python file that a wheel installs."""
    files = [path for folder in ("ctflow", "operators", "datasets") for path in (ROOT / folder).rglob("*.py")]
    return [path.relative_to(ROOT) for path in files]


def test_nothing_inside_goes_through_the_door():
    # `from ctflow import Radon` is looked up at run time, so the graph does not show where it leads.
    public = set((ROOT / "ctflow" / "__init__.pyi").read_text().split("__all__")[1].split('"')[1::2])
    rooms = {path.stem for path in (ROOT / "ctflow").iterdir()}
    for file in sources():
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "ctflow":
                assert not {alias.name for alias in node.names} & (public - rooms), file


# What only these files may do: name, move and remove files.
WRITERS = {"ctflow/system/files.py", "ctflow/system/workspace.py"}
BANNED = {"rename", "replace", "renames", "mkstemp", "mkdtemp", "rmtree", "rmdir", "unlink", "remove", "move"}
ALLOWED = {
    ("ctflow/system/cache.py", "unlink"),  # the oldest of its own files
    (
        "ctflow/dicom/reading/archive.py",
        "unlink",
    ),  # a damaged member, in the scratch folder that it was unpacked to
    ("ctflow/dicom/pacs/inbox.py", "unlink"),  # what was refused, in a folder that nobody sees yet
    ("ctflow/dicom/reading/codec_process.py", "tempfile"),  # a file without a name
}


def moves(file, source):
    """Calls that name, move or remove files; `text.replace(a, b)` and `replace(record)` are none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            banned = [name for name in names if name in ("tempfile", "shutil.rmtree", "rmtree")]
            yield from (name for name in banned if (file, name) not in ALLOWED)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, getattr(node.func.value, "id", "")
            text = name == "replace" and (len(node.args) == 2 and owner != "os")
            other = name == "remove" and owner != "os"
            if name in BANNED and not text and not other and (file, name) not in ALLOWED:
                yield name


def test_one_module_moves_files():
    files = (file.as_posix() for file in sources())
    found = {file: list(moves(file, (ROOT / file).read_text())) for file in files}
    assert {file: names for file, names in found.items() if names}.keys() == WRITERS


@pytest.mark.parametrize(
    "source",
    ["os.replace(a, b)", "path.rename(b)", "part.replace(b)", "import tempfile", "shutil.move(a, b)"],
)
def test_a_planted_move_is_found(source):
    assert list(moves("ctflow/new.py", source))
