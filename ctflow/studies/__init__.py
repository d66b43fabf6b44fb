"""Studies: cases × protocols × methods from one TOML file, on one machine or many, stopped and resumed."""

from importlib import import_module
from typing import Any

# Loaded on first use: reading a study file needs no torch.
_HOME = {"Study": "study", "run_study": "run", "run_one": "run"}
__all__ = ["Study", "run_one", "run_study"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ctflow.studies' has no attribute '{name}'")
    return getattr(import_module(f"ctflow.studies.{_HOME[name]}"), name)
