"""Dependencies: every one has its reason in CONTRIBUTING, a lower bound and a place in the lock."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.house.test_floors import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = ("test", "dev")  # nothing of a user's


def requirements(lines: list[str]) -> list[Requirement]:
    """Those that are packages of others."""
    return [found for found in map(Requirement, lines) if found.name != "ctflow"]


def test_every_dependency_has_its_reason():
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\w-]+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    told = {package: what for package, what, _ in rows if package != "package"}
    wanted = dict.fromkeys(found.name for found in requirements(PROJECT["dependencies"]))
    for extra, lines in EXTRAS.items():
        if extra not in FOR_DEVELOPERS:
            new = [found.name for found in requirements(lines) if found.name not in wanted]
            wanted |= dict.fromkeys(new, extra)
    assert told.keys() == wanted.keys()
    for package, extra in wanted.items():
        assert extra is None or f"extra `{extra}`" in told[package], package


@pytest.mark.parametrize("group", ["dependencies", *EXTRAS])
def test_every_dependency_has_a_lower_bound_and_no_upper_one(group):
    for found in requirements(PROJECT[group] if group == "dependencies" else EXTRAS[group]):
        assert [bound.operator for bound in found.specifier] == [">="], found


def test_the_lock_holds_every_dependency_and_no_address():
    lock = (ROOT / "constraints.txt").read_text()
    pinned = set(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))
    everything = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    assert {found.name.lower() for found in requirements(everything)} <= pinned
    assert not re.search(r"://|^-|@", lock, re.MULTILINE)


def test_the_lock_is_within_the_bounds():
    lock = (ROOT / "constraints.txt").read_text()
    everything = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    for found in requirements(everything):
        for release in re.findall(rf"^{re.escape(found.name.lower())}==(\S+)", lock, re.MULTILINE):
            assert found.specifier.contains(release, prereleases=True), (found, release)
