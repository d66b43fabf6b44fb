"""Read a file that was written by hand, and say what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from ctflow.errors import CTFlowError, ProtocolError

_MOST_BYTES = 2**26


def read_text(path: Path, what: str, error: type[CTFlowError] = ProtocolError) -> str:
    """Read the text of a file written by hand.

    Raises:
        CTFlowError: it cannot be read, is not UTF-8 or is too large; of the given class.
    """
    try:
        if not path.is_file():  # a device or a pipe may never end
            raise error(f"{what} is not a file; check the path")
        if path.stat().st_size > _MOST_BYTES:
            raise error(f"{what} has more than {_MOST_BYTES // 2**20} MiB; give a file written by hand")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise error(f"{what} is not UTF-8 text; save it as UTF-8") from None
    except OSError as problem:
        raise error(f"{what} cannot be read: {problem.strerror}; check the path") from None
