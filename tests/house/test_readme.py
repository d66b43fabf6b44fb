"""The README's blocks run as they stand, in an empty folder that holds one toy series."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ctflow.cli import main
from ctflow.datasets.synthetic import write_toy_series
from ctflow.registry import names

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The bodies of all blocks in one language."""
    return [body for found, body in BLOCKS if found == language]


LINES = [line for body in blocks("console") for line in body.splitlines()]
PROMPTED = [line[2:] for line in LINES if line.startswith("$ ")]  # run here
PLAIN = [line for line in LINES if not line.startswith("$ ")]  # set up, test or train: read here


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """study/CT-thorax: two slices of 32² voxels; and the README's own protocol."""
    path = tmp_path_factory.mktemp("readme")
    write_toy_series(path / "study" / "CT-thorax", slices=2, size=32)
    (protocol,) = blocks("toml")
    (path / "knee.toml").write_text(protocol, encoding="utf-8")
    return path


def test_python_blocks_run_in_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {}
    for body in blocks("python"):
        exec(compile(body, "README.md", "exec"), namespace)
    assert "MS-Flow" in capsys.readouterr().out
    assert len(list((folder / "out").glob("*.dcm"))) == 2


def test_ctflow_commands_run_in_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert len(PROMPTED) > 8
    assert all(command.startswith("ctflow ") for command in PROMPTED)
    statuses = {command: main(shlex.split(command)[1:]) for command in PROMPTED}
    assert {command: status for command, status in statuses.items() if status != 0} == {}


def test_plain_commands_are_those_of_the_makefile():
    dry = subprocess.run(
        ["make", "-nB", "demo", "test"], cwd=ROOT, check=True, capture_output=True, text=True
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
    lines = [shlex.split(line, comments=True) for line in PLAIN if line.startswith(("ctflow ", "torchrun "))]
    commands = [words[words.index("ctflow") + 1 :] for words in lines]
    assert {words[0] for words in commands} == {"train", "bench"}
    for words in commands:
        assert words[0] == "bench" or (ROOT / words[1]).is_file()
        assert main([words[0], "--help"]) == 0
        offered = capsys.readouterr().out
        assert [word for word in words if word.startswith("-") and word not in offered] == []


def test_tables_name_every_protocol_and_method():
    rows = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`([\w-]+)`", rows))
    assert {path.stem for path in (ROOT / "protocols").glob("*.toml")} <= named
    assert names("method").keys() <= named


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [link for link in targets if not link.startswith("https://") and not (ROOT / link).exists()] == []
