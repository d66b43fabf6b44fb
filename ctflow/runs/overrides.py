"""Changes of a protocol's tables by texts, "method.iterations=80"."""

from __future__ import annotations

import re
from collections.abc import Collection

from ctflow.errors import ProtocolError, suggestion
from ctflow.tables import parse_toml, shown


def put(tables: object, change: str, known: Collection[str]) -> None:
    """Put a value into tables.

    Args:
        tables: a protocol's; changed in place.
        change: "method.iterations=80", "beside.tv.weight=0.1"; the value is TOML, a bare word is a string.
        known: names that the first step may have.

    Raises:
        ProtocolError: the change is not key=value, or its path leads nowhere.
    """
    key, equals, value = change.partition("=")
    if not equals:
        raise ProtocolError(f"'{change}' is not an override; write table.keyword=value")
    path, found = key.strip().split("."), _value(value.strip())
    require_known(path[0], known, f"override '{change}' names an unknown table '{path[0]}'")
    for step in path[:-1]:
        tables = _entry(tables, step, change)
    if not isinstance(tables, dict):
        raise ProtocolError(f"override '{change}' leads nowhere; write table.keyword=value")
    tables[path[-1]] = found


def require_known(name: str, known: Collection[str], problem: str) -> None:
    """Refuse a name that is not known, and offer the nearest.

    Raises:
        ProtocolError: the problem in words, and the suggestion.
    """
    if name not in known:
        raise ProtocolError(f"{problem}; {suggestion(name, known)}")


def _entry(tables: object, step: str, change: str) -> object:
    if isinstance(tables, list):
        tables = {str(table.get("name")): table for table in tables}
        require_known(step, tables, f"override '{change}' names no method beside '{step}'")
    if not isinstance(tables, dict):
        raise ProtocolError(f"override '{change}' leads nowhere; write table.keyword=value")
    return tables.setdefault(step, {})


def _value(text: str) -> object:
    try:
        return parse_toml(f"value = {text}", shown(text))["value"]
    except ProtocolError:
        if re.fullmatch(r"[A-Za-z][\w.:/-]*", text) and text not in ("nan", "inf"):
            return text  # the shell has eaten the quotes
        raise
