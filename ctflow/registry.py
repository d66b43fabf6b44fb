"""Names in files become calls: `{name = "ms-flow", iterations = 40}` is `MSFlow(iterations=40)`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ctflow.errors import ProtocolError

# A kind is one module that holds all its classes, or packages that hold one public class per file.
_KINDS = {
    "geometry": ["ctflow.geometry"],
    "noise": ["ctflow.noise"],
    "operator": ["ctflow.operators"],
    "method": ["ctflow.recon", "ctflow.samplers"],
    "prior": ["ctflow.priors"],
    "dataset": ["ctflow.datasets"],
}


def names(kind: str) -> dict[str, str]:
    """Every name of a kind and the module that defines it: {"ms-flow": "ctflow.samplers.ms_flow"}."""
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


def find(kind: str, name: str) -> Any:
    """The class or function behind a name, or behind a dotted path "package.module:Name".

    Raises:
        ProtocolError: nothing has that name; the nearest names are offered.
    """
    if ":" in name:
        path, attribute = name.split(":", 1)
        try:
            return getattr(import_module(path), attribute)
        except (ImportError, AttributeError) as error:
            raise ProtocolError(f"{kind} '{name}' cannot be imported: {error}") from error
    known = names(kind)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(known))}"
        raise ProtocolError(f"no {kind} is named '{name}'; {hint}")
    module = import_module(known[name])
    by_name = {_kebab(public): public for public in module.__all__}
    return getattr(module, by_name.get(name, module.__all__[0]))


def build(kind: str, table: Mapping[str, Any]) -> Any:
    """Call what the table names with the rest of the table.

    Args:
        kind: "geometry", "noise", "operator", "method", "prior" or "dataset".
        table: `name` and keyword arguments.

    Raises:
        ProtocolError: no name, an unknown name, or a keyword that the call does not accept.
    """
    if "name" not in table:
        raise ProtocolError(f'the {kind} table has no name; write {kind} = {{ name = "...", ... }}')
    call = find(kind, table["name"])
    arguments = {key: value for key, value in table.items() if key != "name"}
    accepted = [name for name in inspect.signature(call).parameters if name != "self"]
    for key in arguments:
        if key not in accepted:
            near = difflib.get_close_matches(key, accepted, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it accepts {', '.join(accepted)}"
            raise ProtocolError(f"{kind} '{table['name']}' has no keyword '{key}'; {hint}")
    try:
        return call(**arguments)
    except TypeError as error:
        raise ProtocolError(f"{kind} '{table['name']}': {error}; it accepts {', '.join(accepted)}") from error
