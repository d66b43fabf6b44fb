"""The blocks of README.md and of the documentation run as they stand, in a folder that holds one toy series.

`$ ctflow ...` in a console block and every python block are run here, page by page; console lines without `$`
are read here; sh and py blocks need a PACS, a shell or another program, and are only looked at. Cells of
tutorials are run when the pages are built.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import ctflow
from ctflow.cli import main
from ctflow.datasets.synthetic import write_toy_series
from ctflow.registry import names

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
LANGUAGES = {"", "console", "python", "py", "sh", "toml", "ini", "{toctree}", "{code-cell} ipython3"}
LANGUAGES |= {"{eval-rst}", "{glossary}", "{include} ../CONTRIBUTING.md", "{include} ../CHANGELOG.md"}
LANGUAGES |= {"{include} ../../ctflow/priors/ct-256.md"}


def blocks(page: str, language: str) -> list[str]:
    """The bodies of all blocks of a page in one language."""
    found = re.findall(r"^```([^\n`]*)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def lines(page: str) -> list[str]:
    """Lines of the console blocks of a page."""
    return [line for body in blocks(page, "console") for line in body.splitlines()]


PROMPTED = {page: [line[2:] for line in lines(page) if line.startswith("$ ")] for page in PAGES}  # run here
PLAIN = [line for page in PAGES for line in lines(page) if not line.startswith("$ ")]  # read here


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """study/CT-thorax: two slices of 32² voxels; and the own protocol of the command line's page."""
    path = tmp_path_factory.mktemp("docs")
    write_toy_series(path / "study" / "CT-thorax", slices=2, size=32)
    (protocol,) = blocks("docs/reference/protocols.md", "toml")
    (path / "knee.toml").write_text(protocol, encoding="utf-8")
    return path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run_in_order(page, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "study").symlink_to(folder / "study")
    monkeypatch.chdir(tmp_path)
    for logger in ("mlflow", "torch.utils.tensorboard"):  # installed or not
        monkeypatch.setitem(sys.modules, logger, MagicMock())
    namespace: dict[str, object] = {}
    for body in blocks(page, "python"):
        exec(compile(body, page, "exec"), namespace)
    if page == "docs/start.md":
        assert "MS-Flow" in capsys.readouterr().out
        assert len(list((tmp_path / "out").glob("*.dcm"))) == 2


@pytest.mark.parametrize("page", [page for page, commands in PROMPTED.items() if commands])
def test_ctflow_commands_run_in_order(page, folder, tmp_path, monkeypatch, capsys):
    for place in folder.iterdir():
        (tmp_path / place.name).symlink_to(place)
    monkeypatch.chdir(tmp_path)
    assert all(command.startswith("ctflow ") for command in PROMPTED[page])
    statuses = {command: main(shlex.split(command)[1:]) for command in PROMPTED[page]}
    assert {command: status for command, status in statuses.items() if status != 0} == {}


def test_plain_commands_are_those_of_the_makefile():
    dry = subprocess.run(
        ["make", "-nB", "PYTHON=python3", "RESOLUTION=locked", "demo", "test"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    made = dry.stdout.replace(" --quiet", "").splitlines()
    plain = [line for line in PLAIN if not line.startswith(("make ", "ctflow ", "torchrun "))]
    assert len(plain) == 5
    assert [line for line in plain if line not in made] == []


def test_make_targets_and_training_options_exist(capsys):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in PLAIN if line.startswith("make ")]
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    written = [
        shlex.split(line, comments=True) for line in PLAIN if line.startswith(("ctflow ", "torchrun "))
    ]
    commands = [words[words.index("ctflow") + 1 :] for words in written]
    assert {words[0] for words in commands} == {"train", "bench"}
    for words in commands:
        assert words[0] == "bench" or (ROOT / words[1]).is_file()
        assert main([words[0], "--help"]) == 0
        offered = capsys.readouterr().out
        assert [word for word in words if word.startswith("-") and word not in offered] == []


def test_tables_name_every_protocol_and_method():
    tables = PAGES["docs/reference/methods.md"] + PAGES["docs/reference/protocols.md"]
    rows = "\n".join(line for line in tables.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`([\w-]+)`", rows))
    assert {path.stem for path in (ROOT / "protocols").glob("*.toml")} <= named
    assert names("method").keys() <= named


def test_every_public_name_has_its_page():
    (ROOT / "docs" / "reference" / "api.md").stat()
    page = PAGES["docs/reference/api.md"]
    listed = re.findall(r"^   (\w+)$", page, re.MULTILINE)
    rooms = set(re.findall(r"`ctflow\.(\w+)`", page))
    assert len(listed) == len(set(listed))
    assert set(listed) | rooms == set(ctflow.__all__)


def test_blocks_are_of_a_language_that_somebody_runs_or_reads():
    found = {name for page in PAGES.values() for name in re.findall(r"^```([^\n`]+)$", page, re.MULTILINE)}
    assert found - LANGUAGES == set()


def test_cells_fail_where_their_commands_fail():
    """IPython goes on after a `!command` that has failed, and a page with its refusal would be built."""
    cells = [cell for page in PAGES for cell in blocks(page, "{code-cell} ipython3")]
    assert cells
    assert [cell for cell in cells if re.search(r"^\s*!", cell, re.MULTILINE)] == []
    assert all(cell.startswith("%%bash -e\n") for cell in cells if "%%" in cell)


def test_readme_is_about_a_page():
    assert len(PAGES["README.md"].split()) < 800
