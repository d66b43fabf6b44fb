"""Starting is quick: what takes long to import is imported where it is used."""

import resource
import statistics
import subprocess
import sys
from itertools import pairwise

HEAVY = ("torch", "scipy", "matplotlib", "pydicom", "astra", "skimage")


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def seconds(code: str) -> float:
    """Median processor time of five interpreters, after one that warms the disk."""
    python(code)
    ends = [processor_time()]
    for _ in range(5):
        python(code)
        ends.append(processor_time())
    return statistics.median(after - before for before, after in pairwise(ends))


def processor_time() -> float:
    """Seconds that ended children have computed, however busy the machine was with others."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


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
