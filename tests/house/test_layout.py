"""The layout: operators/, datasets/ and protocols/ beside ctflow/ are inside it once installed."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAPPED = ("operators", "datasets", "protocols")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The sdist of this tree, and the wheel that is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return {"sdist": next(out.glob("*.tar.gz")), "wheel": next(out.glob("*.whl"))}


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The wheel, unpacked outside the checkout."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(built["wheel"]).extractall(folder)
    return folder


def tree(*folders: str) -> set[str]:
    """Files of the checkout, relative to its root."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    kept = (path.relative_to(ROOT).as_posix() for path in paths if path.parent.name != "__pycache__")
    return {name for name in kept if not name.endswith(".checkpoint")}


def python(code: str, cwd: Path, path: Path | None = None) -> str:
    """What a fresh interpreter prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_wheel_holds_the_tree_and_nothing_else(built):
    names = {name for name in zipfile.ZipFile(built["wheel"]).namelist() if ".dist-info/" not in name}
    mapped = {f"ctflow/{name}" for name in tree(*MAPPED)}
    assert names == tree("ctflow") | mapped
    packaged = {
        "py.typed",
        "runs/report.html.j2",
        "runs/viewer.html.j2",
        "runs/viewer.js",
        "protocols/sparse-view-60.toml",
        "priors/ct-256.safetensors",
    }
    assert {f"ctflow/{name}" for name in packaged} <= names


def test_sdist_holds_all_that_a_checkout_needs(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    top = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "NOTICE", "Makefile", "constraints.txt"}
    top |= {"SECURITY.md", "CITATION.cff", "docs/conf.py", "docs/index.md", "docs/_static/methods.png"}
    assert not any("_build" in name for name in names)
    assert tree("ctflow", *MAPPED, "tests") | top | {"pyproject.toml"} <= names


def test_licence_travels_with_the_wheel(built):
    names = zipfile.ZipFile(built["wheel"]).namelist()
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_no_init_where_other_packages_have_the_name():
    # With it, `import datasets` from the root would find this folder and not Hugging Face's package.
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert not (ROOT / "protocols" / "__init__.py").exists()


def test_checkout_imports_from_its_root():
    code = "import ctflow.operators as o, ctflow.registry as r; print(o.__file__); r.names('dataset')"
    assert python(code, ROOT) == str(ROOT / "ctflow" / "operators" / "__init__.py")


def test_wheel_imports_outside_the_checkout(installed, tmp_path):
    code = "import ctflow.operators as o; print(o.__file__)"
    assert python(code, tmp_path, installed) == str(installed / "ctflow" / "operators" / "__init__.py")


def test_the_wheel_is_the_same_code_as_the_checkout(installed, tmp_path):
    code = "from ctflow.system.version import source_sha256; print(source_sha256())"
    assert python(code, tmp_path, installed) == python(code, ROOT)


def test_the_wheel_knows_its_release(built, installed, tmp_path):
    """By the name of its file; it lies where it was put, so that nothing says that it may be stale."""
    code = "from ctflow.system.version import is_checkout, release; print(release(), is_checkout())"
    assert python(code, tmp_path, installed) == f"{built['wheel'].name.split('-')[1]} False"


def test_protocols_are_read_from_the_wheel(installed, tmp_path):
    code = "from ctflow.runs.protocol import Protocol, texts; "
    code += "[Protocol.load(name).validate() for name in texts()]; print(len(texts()))"
    assert int(python(code, tmp_path, installed)) == len(list((ROOT / "protocols").glob("*.toml")))


def test_every_public_name_is_there_in_the_wheel(installed, tmp_path):
    code = "import ctflow; [getattr(ctflow, name) for name in ctflow.__all__]; print(ctflow.__path__)"
    assert python(code, tmp_path, installed) == str([str(installed / "ctflow")])


def test_no_file_is_longer_than_four_screens():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("ctflow", "operators", "datasets", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 340} == {}


def test_the_viewer_of_the_reports_stays_small():
    """All JavaScript there is, in lines of the house's length."""
    scripts = [path.read_text(encoding="utf-8") for path in (ROOT / "ctflow").rglob("*.js")]
    lines = [line for script in scripts for line in script.splitlines()]
    assert 0 < len(lines) <= 400
    assert [line for line in lines if len(line) > 110] == []
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "ctflow").rglob("*.html.j2")]
    found = [script for page in pages for script in re.findall(r"<script>(.*?)</script>", page, re.S)]
    data = "const CASES = {{ shown | tojson }};"
    files = ["runs/viewer.js", "runs/figure.js"]
    assert [text.strip() for text in found] == [data, *(f'{{% include "{file}" %}}' for file in files)]
