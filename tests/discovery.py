"""Finds what is to be tested, so that a new class needs no line in any test."""

from ctflow.operators import LinearOperator
from ctflow.registry import find, names


def with_example(kind: str, parent: type) -> dict[str, type]:
    """Every subclass that ctflow defines with an example of its own, once all files of a kind are read."""
    for name in names(kind):
        find(kind, name)
    found, todo = {}, [parent]
    while todo:
        children = todo.pop().__subclasses__()
        todo += children
        found |= {
            c.__name__: c for c in children if "example" in vars(c) and c.__module__.startswith("ctflow.")
        }
    return dict(sorted(found.items()))


OPERATORS = with_example("operator", LinearOperator)
