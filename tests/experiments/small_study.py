"""A study of seconds, and how tests run it and read what it leaves."""

import json
import os
from pathlib import Path

from ctflow.experiments import Study, run_study
from tests.experiments.test_study import PROTOCOL

SMALL = """# Small.
protocols = ["tiny.toml"]
cases = [{ phantoms = [0, 1, 2], size = 32, slices = 1 }]
[methods.fbp]
[methods.sirt]
iterations = 2
"""
TUNED = (
    SMALL.replace(
        "[methods.fbp]",
        "tuning = { trials = 3 }\nsplit = { validation = ['phantom-0'], test = ['phantom-1', 'phantom-2'] }\n"
        "[methods.fbp]",
    )
    + "tune = { iterations = [1, 2, 30] }\n"
)


def written(folder: Path, text: str) -> Study:
    """A study file beside its protocol."""
    (folder / "tiny.toml").write_text(PROTOCOL)
    (folder / "small.toml").write_text(text)
    return Study.load(folder / "small.toml")


def run_quietly(study: Study, out: Path, **options) -> None:
    """What a child process does."""
    os.environ["OMP_NUM_THREADS"] = "1"
    run_study(study, out, resume=True, **options)


def lines(out: Path) -> list[dict]:
    """The manifest, every line of it."""
    text = (out / "manifest.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def figures(out: Path) -> dict[str, float]:
    """RMSE by unit, to the last bit."""
    records = (json.loads(path.read_text()) for path in (out / "units").glob("*/unit.json"))
    return {record["unit"]: record["figures"] and record["figures"]["rmse_hu"] for record in records}
