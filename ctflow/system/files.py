"""Write files and folders that appear complete or not at all, and never replace what ctflow did not write."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ctflow.errors import OutputError
from ctflow.system.workspace import UNSUPPORTED, Workspace, below, exists, remove_leftovers, unfinished

__all__ = [
    "ADVICE",
    "FULL",
    "Ours",
    "Reservation",
    "below",
    "check_target",
    "explained",
    "remove_leftovers",
    "reserved",
    "scratch",
]
__all__ += ["unfinished", "whole_file", "whole_folder"]

Ours = Callable[[Path], bool]
"""Whether everything at a path was written by ctflow, so that it may be replaced."""

ADVICE = "choose another place, or correct it"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's numbers of errors that more space would have avoided."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def explained(advice: str = ADVICE) -> Iterator[None]:
    """Turn an error of the operating system inside the block into an explanation.

    Args:
        advice: what to do about it.

    Raises:
        OutputError: the operating system refused to write.
    """
    try:
        yield
    except OSError as error:
        number = _number(error)
        full = "needs more space than the disk or its quota has left"
        found = full if number in FULL else f"cannot be written: {os.strerror(number)}"
        # `from None`: the system's own text quotes paths, and paths name patients.
        raise OutputError(f"the output {found}; {advice}") from None


def _number(error: BaseException | None) -> int:
    """The system's number of an error, also where a library has raised its own error from it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        error = error.__cause__ or error.__context__
    return errno.EIO


def check_target(target: Path, ours: Ours | None = None, lacking: str = "") -> None:
    """Refuse an output that cannot be written, or whose place is taken; nothing is written.

    Args:
        target: file or folder.
        ours: whether the existing file or folder is ctflow's and may be replaced; None replaces nothing.
        lacking: the option that would replace it and was not given: "--overwrite".

    Raises:
        OutputError: it cannot be written, or something else is there.
    """
    with explained():
        place = _placed(target)
        if exists(place):
            _check_replaced(place, ours, lacking)
            return
        home = next(parent for parent in place.parents if parent.exists())
        if not (home.is_dir() and os.access(home, os.W_OK | os.X_OK)):
            raise OutputError("the output cannot be made at the requested place; choose another")


def _check_replaced(place: Path, ours: Ours | None, lacking: str) -> None:
    reason = _reason(place, ours)
    if lacking or ours is None:
        other = "" if reason else f", or {lacking}"
        raise OutputError(f"expected a new output but it exists; give another{other}")
    if reason:
        raise OutputError(f"expected to replace what ctflow wrote, but the output {reason}; give another")


def _reason(place: Path, ours: Ours | None) -> str:
    """Why an existing file or folder must not be replaced; empty if it may."""
    own = (Path(os.path.realpath(folder)) for folder in (os.path.expanduser("~"), "."))
    if place.is_symlink() or os.path.ismount(place):
        return "is a link or a mount point"
    if any(folder.is_relative_to(place) for folder in own):
        return "is or holds the home or the working folder"
    return "" if ours is not None and ours(place) else "holds other files"


class Reservation:
    """A target that no other run of ctflow can write until the block of `reserved` ends."""

    def __init__(self, space: Workspace, ours: Ours | None, lacking: str, advice: str) -> None:
        self._space, self._ours, self._lacking, self._advice = space, ours, lacking, advice

    @contextmanager
    def file(self) -> Iterator[Path]:
        """Path with the target's ending for a file that takes the target's name when the block succeeds.

        Raises:
            OutputError: it cannot be written, or something else has appeared in its place.
        """
        with explained(self._advice):
            yield self._space.new
            _sync(self._space.new)
            check_target(self._space.target, self._ours, self._lacking)
            _publish(self._space)

    @contextmanager
    def folder(self, mode: int = 0o777) -> Iterator[Path]:
        """Like `file`, for a folder, which exists and is empty.

        Args:
            mode: its permissions, before the umask.
        """
        with self.file() as new:
            new.mkdir(mode)
            yield new


@contextmanager
def reserved(
    target: Path,
    ours: Ours | None = None,
    lacking: str = "",
    *,
    wait: bool = False,
    advice: str = ADVICE,
) -> Iterator[Reservation]:
    """Reserve a target for this run, from before it computes until it has written; nothing is left beside it.

    Leftovers of dead runs beside the target are removed first.

    Args:
        target: file or folder to write; its parent folders are made.
        ours: whether the existing file or folder is ctflow's and may be replaced; None replaces nothing.
        lacking: the option that would replace it and was not given.
        wait: wait for another process that writes the same target instead of refusing.
        advice: what to do if it cannot be written.

    Raises:
        OutputError: it cannot be written, something else is there, or another run is writing it.
    """
    check_target(target, ours, lacking)
    space = Workspace(_placed(target))
    with ExitStack() as stack:
        with explained(advice):
            stack.enter_context(_parents(space.target.parent))
            if not wait:
                remove_leftovers(space.target.parent)
            space.acquire(wait)
            stack.callback(space.release)
            space.restore()
        check_target(target, ours, lacking)  # its last owner may have written it meanwhile
        yield Reservation(space, ours, lacking, advice)


@contextmanager
def whole_file(
    target: Path, ours: Ours | None = None, lacking: str = "", *, wait: bool = False, advice: str = ADVICE
) -> Iterator[Path]:
    """Path beside `target` that takes its name, synchronised, when the block succeeds; see `reserved`."""
    with reserved(target, ours, lacking, wait=wait, advice=advice) as place, place.file() as new:
        yield new


@contextmanager
def whole_folder(
    target: Path, ours: Ours | None = None, lacking: str = "", *, wait: bool = False, advice: str = ADVICE
) -> Iterator[Path]:
    """Empty folder beside `target` that takes its name, synchronised, when the block succeeds."""
    with reserved(target, ours, lacking, wait=wait, advice=advice) as place, place.folder() as new:
        yield new


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """Empty folder for the duration of the block; those of dead processes are removed first.

    Args:
        parent: folder to make it in; by default that of the system's temporary files.

    Raises:
        OutputError: it cannot be made.
    """
    home = parent or Path(tempfile.gettempdir())
    name = f".ctflow-{secrets.token_hex(8)}"
    space = Workspace(home / name, home / name)
    with ExitStack() as stack:
        with explained("TMPDIR names another place for temporary files"):
            remove_leftovers(home)
            space.acquire()
            stack.callback(space.release)
            space.new.mkdir()
        yield space.new


def _placed(target: Path) -> Path:
    """Absolute path without links in its parents; the last name may itself be a link."""
    if target.name in ("", ".."):
        return Path(os.path.realpath(target))
    return Path(os.path.realpath(target.parent)) / target.name


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; those that stay empty are removed afterwards."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.is_dir()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()


def _publish(space: Workspace) -> None:
    """Give the written output its name; at every moment the name refers to the old or the new output."""
    new, target, replaced = space.new, space.target, exists(space.target)
    if new.is_dir():
        if not (replaced and _exchanged(new, target)):
            if replaced:
                target.rename(space.old)  # a kill here: the next run puts it back
            new.rename(target)  # refused by the system where a folder is not empty
    elif replaced:
        new.replace(target)
    else:
        _link(new, target)
    _sync_names(target.parent)


def _link(new: Path, target: Path) -> None:
    """Name a file; unlike `rename`, the system refuses a name that is taken."""
    try:
        os.link(new, target)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        new.rename(target)
    else:
        new.unlink()


def _exchanged(new: Path, target: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    old, other = os.fsencode(new), os.fsencode(target)
    if renameat2(_AT_FDCWD, old, _AT_FDCWD, other, _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number))


def _sync(path: Path) -> None:
    """Wait until a file, or a folder with its whole content, is on disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _sync(entry)
        _sync_names(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems know this of files only
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)
