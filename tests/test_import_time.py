"""Starting is quick: what takes long to import is imported where it is used."""

import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "scipy", "matplotlib", "pydicom", "astra", "skimage")


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def seconds(code: str) -> float:
    """Median wall time of five interpreters, after one that warms the disk."""
    python(code)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        python(code)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages are loaded after the code."""
    return set(python(f"import sys\n{code}\nprint(*sys.modules, file=sys.stdout)").split()) & set(HEAVY)


def test_import_is_quick():
    # 0.3 s is what a person does not notice; the bare interpreter's start is not ours.
    assert seconds("import ctflow") - seconds("") < 0.3


def test_import_loads_nothing_heavy():
    assert loaded_by("import ctflow") == set()


def test_help_loads_nothing_heavy():
    assert loaded_by("from ctflow.cli import main\nassert main(['--help']) == 0") == set()


def test_listing_protocols_loads_nothing_heavy():
    assert loaded_by("from ctflow.cli import main\nassert main(['protocols']) == 0") == set()


def test_the_check_can_fail():
    assert "torch" in loaded_by("import ctflow.volume")
