"""A newcomer finds the tests of a room by its name."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OTHERS = {"house", "conformance"}  # laws of the repository, and peers' own tests on our operators
UNTESTED_HERE = {"protocols"}  # TOML, which the tests of `runs` read


def rooms(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))}


def test_every_room_of_the_code_has_its_tests_and_every_room_of_tests_its_code():
    code = rooms(ROOT / "ctflow") | {"operators", "datasets"}
    assert rooms(ROOT / "tests") - OTHERS == code - UNTESTED_HERE
