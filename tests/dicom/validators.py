"""What the validators of dicom3tools say of written files."""

from __future__ import annotations

import shutil
import subprocess

import pydicom
import pytest


def validate(written):
    """Errors that dciodvfy and dcentvfy report; an exit status of 0 alone does not mean none."""
    for tool in ("dciodvfy", "dcentvfy"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} (Debian package dicom3tools) is not installed")
    runs = [["dciodvfy", str(file)] for file in written] + [["dcentvfy", *map(str, written)]]
    errors = []
    for run in runs:
        done = subprocess.run(run, capture_output=True, text=True, errors="replace", check=False)
        errors += [line for line in done.stderr.splitlines() if line.startswith("Error")]
        errors += [f"{run[0]} returned {done.returncode}"] if done.returncode else []
    return errors


def tags(file):
    """The header of a file."""
    return pydicom.dcmread(file)
