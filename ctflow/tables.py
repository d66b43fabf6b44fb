"""Kinds of values in files: type, range and length, declared once and checked before the value is used.

A kind is written next to what it describes: in the annotation of a parameter, `Annotated[int, Whole(1, 9)]`,
or in a `Table` of a file's keys. Without one the annotated type decides: whole numbers up to 100,000 in
size, finite numbers up to 1e15, true or false, texts, and lists of these.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from datetime import date, time
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from ctflow.errors import CTFlowError, ProtocolError
from ctflow.system.handwritten import read_text

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]
"""What JSON can hold."""

T = TypeVar("T")

_DEEPEST = 16  # tables in tables


# Types that a file can hold. Anything else, a tensor or a prior, was built by the caller.
_IN_FILES = (bool, int, float, str, list, tuple, dict, date, time, NoneType)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Kind:
    """Any value with finite 64-bit numbers, in tables and lists that are not nested deeply."""

    def holds(self, value: object) -> bool:
        """Whether a value other than a list or table is of the kind."""
        return not _is_number(value) or bool(-(2**63) <= value < 2**63)

    def __str__(self) -> str:
        return "a finite number of 64 bits at most, a text, true or false"


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number, never true or false.

    Args:
        least: smallest value.
        most: largest value.
    """

    least: int = -100_000
    most: int = 100_000

    def holds(self, value: object) -> bool:
        """Whether it is a whole number in the range."""
        return _is_number(value) and isinstance(value, int) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


SEED = Whole(0, 2**63 - 1)
"""Kind of a seed."""


@dataclass(frozen=True)
class Real(Kind):
    """A finite number.

    Args:
        least: smallest value.
        most: largest value.
        above: whether `least` itself is excluded.
    """

    least: float = -1e15
    most: float = 1e15
    above: bool = False

    def holds(self, value: object) -> bool:
        """Whether it is a number in the range; NaN never is."""
        if not _is_number(value) or (self.above and value == self.least):
            return False
        return bool(self.least <= value <= self.most)

    def __str__(self) -> str:
        low = f"above {self.least:g} and up" if self.above else f"from {self.least:g}"
        return f"a number {low} to {self.most:g}"


@dataclass(frozen=True)
class Nothing(Kind):
    """No value: null in JSON, None in Python."""

    def holds(self, value: object) -> bool:
        """Whether it is None."""
        return value is None

    def __str__(self) -> str:
        return "nothing"


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    def holds(self, value: object) -> bool:
        """Whether it is true or false."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text(Kind):
    """A text.

    Args:
        pattern: regular expression of the whole text.
        words: description of such texts.
    """

    pattern: str = r"[\s\S]{0,10000}"
    words: str = "a text"

    def holds(self, value: object) -> bool:
        """Whether it is a text that matches the pattern."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Listed(Kind):
    """A list with entries of one kind.

    Args:
        of: kind of every entry.
        least: smallest number of entries.
        most: largest number of entries.
        rising: whether no entry may be below the one before; lists are compared by their first entries.
    """

    of: Kind
    least: int = 0
    most: int = 1_000_000
    rising: bool = False

    def holds(self, value: object) -> bool:
        """Whether it is a list of the right length and order; its entries are checked separately."""
        if not isinstance(value, list | tuple) or not self.least <= len(value) <= self.most:
            return False
        if not self.rising:
            return True
        firsts = [entry[0] if isinstance(entry, list | tuple) and entry else entry for entry in value]
        numbers = [first for first in firsts if _is_number(first)]
        return len(numbers) == len(firsts) and all(a <= b for a, b in pairwise(numbers))

    def __str__(self) -> str:
        number = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"a list of {number} {'rising ' * self.rising}entries, each {self.of}"


@dataclass(frozen=True)
class Either(Kind):
    """One of several kinds.

    Args:
        kinds: the kinds; at most one of them may be a list.
    """

    kinds: tuple[Kind, ...]

    def holds(self, value: object) -> bool:
        """Whether it is of one of the kinds."""
        return any(kind.holds(value) for kind in self.kinds)

    def __str__(self) -> str:
        return " or ".join(map(str, self.kinds))


@dataclass(frozen=True)
class Table(Kind):
    """A table with keys of known kinds.

    Args:
        needed: kinds of required keys.
        others: kinds of optional keys.
        closed: whether other keys are refused.
    """

    needed: Mapping[str, Kind] = field(default_factory=dict)
    others: Mapping[str, Kind] = field(default_factory=dict)
    closed: bool = True

    def holds(self, value: object) -> bool:
        """Whether it is a table; its keys are checked separately."""
        return isinstance(value, Mapping)

    def __str__(self) -> str:
        return f"a table of {', '.join([*self.needed, *self.others])}".removesuffix(" of ")


ANYTHING = Kind()
"""Any table in a file."""


def require_kind(
    value: object, kind: Kind, where: str, error: type[CTFlowError] = ProtocolError, depth: int = 0
) -> None:
    """Refuse a value that is not of its kind; types that a file cannot hold pass.

    Args:
        value: value from a file.
        kind: kind that it must have.
        where: its name in the message: "method 'tv': iterations".
        error: class of the error.
        depth: number of tables and lists around it.

    Raises:
        CTFlowError: the value, or something in it, is not of its kind; of the given class.
    """
    if not isinstance(value, _IN_FILES):
        return
    if isinstance(kind, Either):
        kind = next((one for one in kind.kinds if one.holds(value)), kind)
    if not kind.holds(value):
        raise error(f"{where} is {shown(value)} and must be {kind}; correct it")
    if depth > _DEEPEST:
        raise error(f"{where} is nested more than {_DEEPEST} deep; write it flatter")
    if isinstance(value, Mapping):
        inner = {key: (entry, _of(kind, key)) for key, entry in value.items()}
        _require_keys(value, kind, where, error)
        for key, (entry, expected) in inner.items():
            require_kind(entry, expected, f"{where}.{key}" if depth else f"{where}: {key}", error, depth + 1)
    elif isinstance(value, list | tuple):
        of = kind.of if isinstance(kind, Listed) else ANYTHING
        for number, entry in enumerate(value):
            require_kind(entry, of, f"{where}[{number}]", error, depth + 1)


def _of(kind: Kind, key: str) -> Kind:
    return {**kind.needed, **kind.others}.get(key, ANYTHING) if isinstance(kind, Table) else ANYTHING


def _require_keys(value: Mapping[str, object], kind: Kind, where: str, error: type[CTFlowError]) -> None:
    if not isinstance(kind, Table):
        return
    missing = kind.needed.keys() - value.keys()
    unknown = value.keys() - kind.needed.keys() - kind.others.keys()
    if missing:
        raise error(f"{where} lacks {', '.join(sorted(missing))}; add what is missing")
    if unknown and kind.closed:
        raise error(f"{where} has the unknown key {', '.join(sorted(map(repr, unknown)))}; remove it")


def shown(value: object) -> str:
    """Show a value in a message, shortened where it is long."""
    try:
        text = repr(value)
    except ValueError:  # whole numbers of thousands of digits have no text
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


_BY_TYPE: dict[object, Kind] = {bool: Flag(), int: Whole(), float: Real(), str: Text(), NoneType: Nothing()}


def kinds_of(call: Callable[..., object]) -> dict[str, Kind]:
    """Kinds of the parameters of a class or function, by name, from their annotations."""
    annotated = call if is_dataclass(call) or not isinstance(call, type) else call.__init__  # type: ignore[misc]
    try:
        hints = get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError):  # annotations of another package that only its type checker understands
        return {}
    return {name: _kind_of(hint) for name, hint in hints.items()}


def _kind_of(hint: object) -> Kind:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next((told for told in inner[1:] if isinstance(told, Kind)), _kind_of(inner[0]))
    if origin in (Union, UnionType):
        known = [kind for kind in map(_kind_of, inner) if kind != ANYTHING]  # a tensor is in no file
        return known[0] if len(known) == 1 else Either(tuple(known))
    if origin in (list, tuple, Sequence):
        return Listed(_kind_of(inner[0]))
    return _BY_TYPE.get(hint, ANYTHING)


def value_of(table: Mapping[str, object], key: str, default: T) -> T:
    """The value of a key, in a table whose kind was checked; it has the type of the default."""
    value = table.get(key, default)
    assert isinstance(value, type(default))
    return value


def parse_toml(text: str, what: str, error: type[CTFlowError] = ProtocolError) -> dict[str, object]:
    """Parse a TOML text, in which every number must be finite.

    Raises:
        CTFlowError: it is not TOML, or holds forbidden values; of the given class.
    """
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise error(f"{what} is nested too deeply to be read; write it flatter") from None
    except ValueError as problem:  # also of numbers with thousands of digits
        raise error(f"{what} is not valid TOML: {problem}; correct it") from problem
    require_kind(tables, ANYTHING, what, error)
    return tables


def read_toml(path: Path, what: str, error: type[CTFlowError] = ProtocolError) -> dict[str, object]:
    """Read a TOML file; see `parse_toml`.

    Raises:
        CTFlowError: it cannot be read, is not text or is too large, or as `parse_toml` says.
    """
    return parse_toml(read_text(path, what, error), what, error)
