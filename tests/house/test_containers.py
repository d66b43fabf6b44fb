"""The two recipes for containers fit the package and each other; no test builds an image of them."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".ci" / "containers"
DOCKER, APPTAINER = ((FOLDER / name).read_text(encoding="utf-8") for name in ("Dockerfile", "ctflow.def"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLS = re.findall(r"^(?:RUN| +) ?(pip .+)$", DOCKER, re.MULTILINE)


def instructions(name: str) -> list[str]:
    """What stands behind an instruction of the Dockerfile, each time."""
    return re.findall(rf"^{name} (.+)$", DOCKER, re.MULTILINE)


def section(name: str) -> list[str]:
    """Lines of a section of the definition, without comments."""
    body = re.search(rf"^%{name}\n((?: .*\n|\n)+)", APPTAINER, re.MULTILINE)[1]
    return [line.strip() for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_both_start_from_a_python_that_the_package_supports():
    (image,) = instructions("FROM")
    assert f"From: {image}\n" in APPTAINER
    python = re.fullmatch(r"python:(3\.\d+)-slim", image)[1]
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    # The one on which the merge check runs with the releases of the constraints.
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert f'python: "{python}", resolution: locked' in workflow


def test_both_install_the_same_by_the_constraints():
    assert section("post") == INSTALLS
    assert all(" -c /opt/constraints.txt " in line for line in INSTALLS)
    torch, wheel = INSTALLS
    assert torch.endswith("--extra-index-url https://download.pytorch.org/whl/cpu torch")
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    pattern, extras = re.search(r'"\$\(echo (\S+)\)\[(.+)\]"$', wheel).groups()
    assert pattern == f"/opt/dist/{PROJECT['name']}-*.whl"
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys() - {
        "dev",
        "test",
        "docs",
        "conformance",
    }


def test_what_is_copied_exists_or_is_built():
    copied = [line.split() for line in instructions("COPY")]
    assert [[source, target.rstrip("/")] for source, target in copied] == [
        ["constraints.txt", "/opt"],
        ["dist", "/opt/dist"],
    ]
    assert [line.split()[0] for line in section("files")] == [source for source, _ in copied]
    assert (ROOT / "constraints.txt").is_file()
    kept = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert kept == ["*", "!constraints.txt", "!dist/*.whl"]


def test_both_run_the_command_and_docker_not_as_root():
    assert json.loads(instructions("ENTRYPOINT")[0]) == [*PROJECT["scripts"]] == ["ctflow"]
    (user,) = instructions("USER")
    assert user != "root"
    assert f" {user}\nUSER {user}\n" in DOCKER  # made before it is taken
    assert section("runscript") == ['exec ctflow "$@"']


@pytest.mark.parametrize("line", [*INSTALLS, *section("runscript"), *section("test")])
def test_lines_are_read_by_a_shell(line):
    subprocess.run(["sh", "-n", "-c", line], check=True)
