"""Finds what is to be tested, so that a new class needs no line in any test."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from ctflow.operators import LinearOperator
from ctflow.registry import find_class, names
from ctflow.volume import Volume


def with_example(kind: str, parent: type) -> dict[str, type]:
    """Every subclass that ctflow defines with an example of its own, once all files of a kind are read."""
    for name in names(kind):
        find_class(kind, name)
    found, todo = {}, [parent]
    while todo:
        children = todo.pop().__subclasses__()
        todo += children
        found |= {
            c.__name__: c for c in children if "example" in vars(c) and c.__module__.startswith("ctflow.")
        }
    return dict(sorted(found.items()))


def dataset_examples() -> dict[str, Callable[[Path], Iterator[Volume]]]:
    """The example of every file of data sets that yields volumes; one that reads files writes them first."""
    modules = {name: import_module(home) for name, home in names("dataset").items()}
    return {name: module.example for name, module in modules.items() if "example" in module.__all__}


DATASETS = dataset_examples()
OPERATORS = with_example("operator", LinearOperator)
