"""Tables as CSV: numbers are numbers, and no text becomes a formula where a spreadsheet opens them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

# What makes a formula of a cell (OWASP, "CSV Injection"), full-width forms among it.
_FORMULA = tuple("=+-@|\uff1d\uff0b\uff0d\uff20")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV file.

    A text that a spreadsheet could take for a formula begins with an apostrophe, which shows it as text;
    control characters in texts become blanks.

    Args:
        header: titles of the columns.
        rows: numbers, texts and None, which stays empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    line = "".join(char if char.isprintable() else " " for char in value)
    return f"'{line}" if line.lstrip(" ").startswith(_FORMULA) else line
