"""Libraries that ctflow can do without: imported when they are asked for, whatever befalls their import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ctflow.errors import BackendError


@contextmanager
def optional_library(library: str, install: str) -> Iterator[None]:
    """A block that imports a library.

    Args:
        library: its name.
        install: the line that installs it.

    Raises:
        BackendError: it is not there, or what it imports in turn is damaged or was built for other versions.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendError(f"{library} is needed for this and is not here ({error}); {install}") from error
    except Exception as error:  # compiled parts raise anything: RuntimeError, OSError, AttributeError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BackendError(
            f"{library} is needed for this and fails to import ({reason}); mend the package that it names: "
            "torchvision, for one, must be of the release and build (CPU or CUDA) of torch; "
            "install both from one index"
        ) from error
