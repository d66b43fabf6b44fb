"""Hidden folders beside outputs, each with a lock in it: the holder of the lock owns the content.

The lock belongs to the operating system and ends with its process, so that an unlocked folder has a dead
owner, whatever its process number was and on whichever machine of a cluster it ran.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ctflow.errors import OutputError

UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EPERM)
"""Errors of file systems without locks, hard links or exchanges."""

_TAKEN = "the output is being written by another run of ctflow; wait for it, or give another"
_NAME = re.compile(r"\.ctflow-[0-9a-f]{16}")


class Workspace:
    """The hidden folder in which the content of `target` is written.

    Args:
        target: file or folder, absolute.
        folder: the hidden folder; by default one that is the same for every run that writes this target.
    """

    def __init__(self, target: Path, folder: Path | None = None) -> None:
        # A hash, since the target's name may be as long as names can be.
        digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
        self.target, self.folder = target, folder or target.with_name(f".ctflow-{digest}")
        self.new = self.folder / f"new{''.join(target.suffixes[-2:])}"
        self.old = self.folder / "old"
        self._file = self.folder / "lock"
        self._lock = -1

    def acquire(self, wait: bool = False) -> None:
        """Make the folder, or take over that of a dead owner.

        Args:
            wait: wait until another owner has ended.

        Raises:
            OutputError: another process owns it.
        """
        while self._lock < 0:
            try:
                self.folder.mkdir(0o700)
                fresh = True
            except FileExistsError:
                fresh = False
                self._check_folder()
            try:
                self._lock = self._locked(os.O_CREAT, wait, fresh)
            except FileNotFoundError:
                continue  # its owner has just removed it
            except BlockingIOError:
                if self._named():
                    raise OutputError(_TAKEN) from None
                time.sleep(0.01)  # somebody removes it, or is about to name it
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                raise OutputError(f"{_TAKEN}; if none does, remove the hidden .ctflow-* beside it") from None
        if not self._named():
            os.write(self._lock, os.fsencode(self.target.name))

    def restore(self) -> None:
        """Put back what was moved away and not replaced; remove everything else."""
        self._put_back()
        self._clear()

    def release(self) -> None:
        """Remove the folder, its lock last; anything that cannot be put back stays for the next run."""
        try:
            with suppress(OSError):
                self._put_back()
                os.ftruncate(self._lock, 0)  # from here on nobody takes it for an output at work
                self._clear()
                self._file.unlink()
                self.folder.rmdir()
        finally:
            self._unlock()

    def sweep(self) -> None:
        """Remove the folder if its owner is dead.

        Raises:
            OSError: it is in use, another user's, or gone.
        """
        self._check_folder()
        if self.folder.lstat().st_uid != os.geteuid():
            return
        if not exists(self._file):
            self.folder.rmdir()  # refused unless it is empty
            return
        self._lock = self._locked()
        name = os.fsdecode(self._file.read_bytes())
        # Without a name nothing waits to be put back: it goes after that. "." and "/" are nobody's.
        self.target = self.folder.with_name(name) if Path(name).name == name != "" else self.folder
        self.release()

    def _check_folder(self) -> None:
        """Refuse a link that somebody has planted in a shared folder, since its target would be cleared."""
        if self.folder.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _put_back(self) -> None:
        if exists(self.old) and not exists(self.target):
            self.old.rename(self.target)

    def _clear(self) -> None:
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != self._file:
                entry.unlink()

    def _named(self) -> bool:
        """Whether an owner is at work: it locks, then names the target, and removal unnames it first."""
        try:
            return self._file.stat().st_size > 0
        except FileNotFoundError:
            return False

    def _unlock(self) -> None:
        os.close(self._lock)
        self._lock = -1

    def _locked(self, flags: int = 0, wait: bool = False, fresh: bool = False) -> int:
        """Descriptor of the lock; where a file system has no locks, the maker of the folder owns it."""
        lock = os.open(self._file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if not (fresh and error.errno in UNSUPPORTED):
                    raise
            if not os.path.samestat(os.fstat(lock), os.stat(self._file)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except BaseException:
            os.close(lock)
            raise
        return lock


def remove_leftovers(parent: Path) -> None:
    """Remove the leftovers of dead processes from a folder, and put back what they were about to replace.

    Args:
        parent: the folder; subfolders are left alone.
    """
    for folder in parent.glob(".ctflow-*"):
        if _NAME.fullmatch(folder.name):
            with suppress(OSError):
                Workspace(folder, folder).sweep()


def unfinished(path: Path) -> bool:
    """Whether the name belongs to the hidden folder of a run that is still writing."""
    return bool(_NAME.fullmatch(path.name))


def below(folder: Path) -> Iterator[Path]:
    """Everything in a folder and its subfolders, except what a run is still writing there.

    Args:
        folder: the folder, which may itself belong to such a run.
    """
    for path in folder.rglob("*"):
        if not any(_NAME.fullmatch(part) for part in path.relative_to(folder).parts):
            yield path


def exists(path: Path) -> bool:
    """Whether anything has this name, even a dangling link."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True
