"""Optional libraries: imported on demand, with one typed error however their import fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

from ctflow.errors import BackendError


@cache
def installed(module: str) -> bool:
    """Whether an optional library can be imported, without importing it."""
    return find_spec(module) is not None


@contextmanager
def optional_library(library: str, install: str) -> Iterator[None]:
    """Explain a failed import of an optional library inside the block.

    Args:
        library: name of the library.
        install: command that installs it.

    Raises:
        BackendError: it is not installed, or what it imports is damaged or was built for other versions.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendError(
            f"{library} is needed for this and is not installed ({error}); {install}"
        ) from error
    except Exception as error:  # compiled parts raise anything: RuntimeError, OSError, AttributeError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BackendError(
            f"{library} is needed for this and fails to import ({reason}); repair the package that it names: "
            "torchvision, for one, must be of the release and build (CPU or CUDA) of torch; "
            "install both from one index"
        ) from error
