"""The layers: a file imports its own layer and smaller ones only, and one module moves files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ctflow

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    name: number
    for number, names in enumerate(
        [
            "errors units tables registry tally state peers devices randomness version",
            "interruption workspace files",
            "geometry volume linalg noise cache scan plausibility",
            "operators priors",
            "problem",
            "recon samplers solving rebinning consistency",
            "metrics evidence dicom nifti nifti_header datasets rawdata testing",
            "protocol page report output training",
            "pipeline job measured doctor",
            "studies benchmarks",
            "cli commands terminal __main__",
        ],
        start=1,
    )
    for name in names.split()
}
# What a layer could reach by its number and must not: samplers see a problem and a prior, nothing else.
DENIED = {
    "operators": {"priors", "noise"},
    "priors": {"operators"},
    "samplers": {"operators", "geometry"},
}
# Libraries that one place alone may import.
HOMES = {
    "pydicom": "ctflow/dicom/",
    "astra": "operators/_astra.py",
    "tomosipo": "operators/_tomosipo.py",
    "ctflow": "",
}


def part_of(file: Path) -> str:
    """ "ctflow/dicom/write.py" and "operators/radon.py" belong to "dicom" and "operators"."""
    steps = file.with_suffix("").parts
    return steps[1] if steps[0] == "ctflow" else steps[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports cannot cross from ctflow/ to operators/"
            if node.module == "ctflow":
                names = [alias.name for alias in node.names if alias.name != "__version__"]
                yield from (f"ctflow.{ctflow._HOME.get(name, name)}" for name in names)
            else:
                yield str(node.module)


def violations(file: Path, source: str) -> list[str]:
    """What the file at this path, relative to the root, must not import."""
    part, found = part_of(file), []
    for name in imported(ast.parse(source)):
        top, _, rest = name.partition(".")
        if top in ("operators", "datasets"):
            found.append(f"{file}: {name} is a second copy of ctflow.{name}")
        if not file.as_posix().startswith(HOMES.get(top, "")):
            found.append(f"{file}: {top} belongs to {HOMES[top]}")
        other = rest.split(".")[0]
        if top == "ctflow" and other and not allowed(part, other):
            found.append(f"{file}: {part} must not import {other}")
    return found


def allowed(part: str, other: str) -> bool:
    """Whether `part` may import `other`; a part without a layer may be imported by nothing."""
    return LAYERS.get(other, 99) <= LAYERS[part] and other not in DENIED.get(part, ())


def sources() -> list[Path]:
    """Every Python file that a wheel installs, but for the package's own list of names."""
    files = [path for folder in ("ctflow", "operators", "datasets") for path in (ROOT / folder).rglob("*.py")]
    return [path.relative_to(ROOT) for path in files if path != ROOT / "ctflow" / "__init__.py"]


def test_every_file_keeps_to_its_layer():
    assert len(sources()) > 30  # the search has found the tree
    assert {part_of(file) for file in sources()} <= set(LAYERS)
    found = [line for file in sources() for line in violations(file, (ROOT / file).read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ctflow/geometry.py", "from ctflow.problem import simulate"),
        ("ctflow/units.py", "def f():\n    import ctflow.cli"),
        ("ctflow/volume.py", "from ctflow import metrics"),
        ("ctflow/noise.py", "from ctflow import Radon"),
        ("operators/motion.py", "from ctflow.noise import Gaussian"),
        ("ctflow/priors/new.py", "from ctflow.operators import Blur"),
        ("ctflow/samplers/new.py", "from ctflow.geometry import ParallelBeam"),
        ("ctflow/pipeline.py", "import pydicom.uid"),
        ("operators/radon.py", "import astra"),
        ("ctflow/recon/fbp.py", "from operators.radon import Radon"),
    ],
)
def test_a_planted_violation_is_found(file, source):
    assert len(violations(Path(file), source)) >= 1


# What only these files may do: name, move and remove files.
WRITERS = {"ctflow/files.py", "ctflow/workspace.py"}
BANNED = {"rename", "replace", "renames", "mkstemp", "mkdtemp", "rmtree", "rmdir", "unlink", "remove", "move"}
ALLOWED = {
    ("ctflow/cache.py", "unlink"),  # the oldest of its own files
    ("ctflow/dicom/archive.py", "unlink"),  # a damaged member, in the scratch folder that it was unpacked to
    ("ctflow/dicom/pacs/inbox.py", "unlink"),  # what was refused, in a folder that nobody sees yet
    ("ctflow/dicom/codec_process.py", "tempfile"),  # a file without a name
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
