"""Names in files become calls: `{name = "ms-flow", states = 36}` is `MSFlow(states=36)`.

A file is data and chooses among classes that are installed: those of ctflow, and the entry points
"ctflow.geometry", "ctflow.noise", "ctflow.operator" and "ctflow.method" of installed packages. Any other
class, "package.module:Name", is imported only inside `importing(True)`, which a file cannot request.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Protocol, runtime_checkable

from ctflow.errors import ProtocolError, suggestion
from ctflow.tables import ANYTHING, Table, kinds_of, require_kind, shown, value_of

Call = dict[str, object]
"""A table of a file: the `name` of a class or function, and its keyword arguments."""

# A kind is one module with all its classes, or packages with one public class per file.
_KINDS = {
    "geometry": ["ctflow.geometry"],
    "noise": ["ctflow.noise"],
    "scanner": ["ctflow.scanner"],
    "operator": ["ctflow.operators"],
    "method": ["ctflow.recon", "ctflow.samplers"],
    "prior": ["ctflow.priors"],
    "dataset": ["ctflow.datasets"],
}


# What an external class must be: a subclass of the first, with the other attributes.
_REQUIRED = {
    "geometry": ("ctflow.geometry:Beam",),
    "noise": ("builtins:object", "sample", "precision"),
    "operator": ("ctflow.operators:LinearOperator",),
    "method": ("builtins:object", "needs_prior", "cost", "paper"),
}

_importing = ContextVar("importing", default=False)


@contextmanager
def importing(allowed: bool) -> Iterator[None]:
    """Allow, or forbid, files to name classes of any module inside a block; forbidden by default."""
    token = _importing.set(allowed)
    try:
        yield
    finally:
        _importing.reset(token)


def imports_allowed() -> bool:
    """Whether files may name classes of any module at present."""
    return _importing.get()


def names(kind: str) -> dict[str, str]:
    """All names of a kind and their definitions: {"tv": "ctflow.recon.tv", "mine": "package.module:Mine"}."""
    return {point.name: point.value for point in entry_points(group=f"ctflow.{kind}")} | _packaged(kind)


def _packaged(kind: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for home in _KINDS[kind]:
        module = import_module(home)
        if hasattr(module, "__path__"):
            files = [info.name for info in iter_modules(module.__path__) if not info.name.startswith("_")]
            found |= {name.replace("_", "-"): f"{home}.{name}" for name in files}
        else:
            found |= {_kebab(name): home for name in module.__all__}
    return found


def _kebab(name: str) -> str:
    return "".join("-" + c.lower() if c.isupper() else c for c in name).lstrip("-")


def find_class(kind: str, name: str) -> Callable[..., object]:
    """Find the class or function of a name; inside `importing(True)` also of "package.module:Name".

    Raises:
        ProtocolError: the name is unknown (the nearest one is suggested), may not be imported, or is not of
            the kind.
    """
    known = _packaged(kind)
    if name in known:
        module = import_module(known[name])
        by_name = {_kebab(public): public for public in module.__all__}
        found: Callable[..., object] = getattr(module, by_name.get(name, module.__all__[0]))
        return found
    points = list(entry_points(group=f"ctflow.{kind}", name=name)) if kind in _REQUIRED else []
    if len(points) > 1:
        raise ProtocolError(f"{len(points)} installed packages name a {kind} '{name}'; uninstall all but one")
    if not points and (":" not in name or kind not in _REQUIRED):
        raise ProtocolError(f"no {kind} is named '{name}'; {suggestion(name, names(kind))}")
    if not points and not imports_allowed():
        raise ProtocolError(
            f"a {kind} comes from ctflow or from an installed package (entry point 'ctflow.{kind}'), and "
            f"'{name}' would import whatever the file names; if you trust the file and that module, "
            "give --allow-imports"
        )
    return _loaded(kind, points[0] if points else EntryPoint(name, name, f"ctflow.{kind}"))


def _loaded(kind: str, point: EntryPoint) -> type:
    try:
        found = point.load()
    except Exception as error:  # a module may raise anything when it is imported
        raise ProtocolError(
            f"{kind} '{point.name}' cannot be imported: {error}; correct its module"
        ) from error
    path, *parts = _REQUIRED[kind]
    parent = EntryPoint("", path, "").load()
    if not (isinstance(found, type) and issubclass(found, parent) and all(hasattr(found, p) for p in parts)):
        needed = (
            f"a subclass of {parent.__name__}" if parent is not object else f"a class with {', '.join(parts)}"
        )
        raise ProtocolError(f"a {kind} is {needed} and '{point.name}' is none; see CONTRIBUTING.md for one")
    return found


def build(kind: str, table: Mapping[str, object]) -> object:
    """Call the class or function that a table names with the rest of the table.

    Args:
        kind: "geometry", "noise", "scanner", "operator", "method", "prior" or "dataset".
        table: `name` and keyword arguments; that of a method may hold `refine`, a table of what `refinement`
            accepts, which goes on with the method's image. The key "refine.noise" reaches into it.

    Raises:
        ProtocolError: the name is missing or unknown, a keyword is not accepted, or a value is not of the
            kind with which its parameter is annotated, or the call refuses it.
    """
    if "name" not in table:
        raise ProtocolError(f'the {kind} table has no name; write {kind} = {{ name = "...", ... }}')
    name = table["name"]
    if not isinstance(name, str):
        raise ProtocolError(f"the name of a {kind} must be a text and is {shown(name)}; put it in quotes")
    table = nested(table)
    if kind == "method" and "refine" in table:
        return _refined(table)
    try:
        return _called(kind, name, {key: value for key, value in table.items() if key != "name"})
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"{kind} '{name}': {error}") from error


def _called(kind: str, name: str, arguments: Call) -> object:
    call = find_class(kind, name)
    accepted = [parameter for parameter in inspect.signature(call).parameters if parameter != "self"]
    kinds = kinds_of(call)
    for key, value in arguments.items():
        if key not in accepted:
            hint = suggestion(key, accepted)
            raise ProtocolError(f"{kind} '{name}' has no keyword '{key}'; {hint}")
        require_kind(value, kinds.get(key, ANYTHING), f"{kind} '{name}': {key}", depth=1)
    try:
        return call(**arguments)
    except TypeError as error:
        raise ProtocolError(f"{kind} '{name}': {error}; it accepts {', '.join(accepted)}") from error


def nested(table: Mapping[str, object]) -> Call:
    """The table with keys like "refine.noise", which a search gives, put into the tables that they name.

    Raises:
        ProtocolError: what such a key names is no table.
    """
    found = {key: value for key, value in table.items() if "." not in key}
    for key in (key for key in table if "." in key):
        head, _, rest = key.partition(".")
        require_kind(found.get(head, {}), Table(closed=False), f"'{head}', which '{key}' names,")
        found[head] = {**value_of(found, head, {}), rest: table[key]}
    return found


@runtime_checkable
class _Refinement(Protocol):
    def after(self, method: object) -> object: ...


def _refined(table: Call) -> object:
    where = f"method '{table['name']}': refine"
    refine = table.pop("refine")
    require_kind(refine, Table(closed=False), where)
    assert isinstance(refine, dict)
    if "name" in refine:
        raise ProtocolError(f"{where} has no keyword 'name', it is always a refinement; take the name out")
    refinement = build("method", {"name": "refinement", **refine})
    assert isinstance(refinement, _Refinement)
    return refinement.after(build("method", table))
