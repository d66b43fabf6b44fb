"""Software that computed a result: release and content of ctflow's code, and its libraries.

The release comes from git's tags when a wheel is built or a checkout is installed. Code that is edited or
pulled afterwards keeps it; the hash of the code does not, and it alone tells code apart.
"""

from __future__ import annotations

import inspect
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import ctflow

_BESIDE = ("operators", "datasets", "protocols")  # of the checkout; inside the package once installed
# Libraries whose arithmetic is in an image or its figures.
_LIBRARIES = ("torch", "numpy", "scipy", "astra-toolbox", "numba", "scikit-image", "pydicom")


@cache
def source_sha256(*folders: str) -> str:
    """SHA-256 of ctflow's own Python and TOML files, by name and content; read once in a process.

    It is the same in a checkout and in a wheel of it.

    Args:
        folders: folders of the package to include, "operators", "geometry"; all by default.
    """
    digest = sha256()
    for name, path in sorted(_sources().items()):
        if not folders or name.partition("/")[0] in folders:
            content = path.read_bytes()
            digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _sources() -> dict[str, Path]:
    """All files by their names inside the installed package, "operators/radon.py"."""
    package = Path(ctflow.__file__).parent
    beside = [(Path(home) / name, f"{name}/") for home in ctflow.__path__ for name in _BESIDE]
    return {
        prefix + path.relative_to(home).as_posix(): path
        for home, prefix in [(package, ""), *beside]
        for ending in ("*.py", "*.toml")
        for path in home.rglob(ending)
    }


@cache
def release() -> str:
    """What was installed: "0.1.0" or, k commits behind that tag, "0.1.1.devk"; "0.0.0" where nothing was."""
    try:
        return version("ctflow")
    except PackageNotFoundError:
        return "0.0.0"


def full_version() -> str:
    """Release and beginning of the hash of the code, "0.1.0+3f2a91c07d4b"."""
    return f"{release()}+{source_sha256()[:12]}"


def is_checkout() -> bool:
    """Whether the code may have changed since it got its release: it does not lie where a wheel put it."""
    try:
        wheel = Path(str(distribution("ctflow").locate_file("ctflow/__init__.py")))
    except PackageNotFoundError:
        return True
    return not wheel.is_file() or not wheel.samefile(ctflow.__file__)


@cache
def _libraries() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def software() -> dict[str, str]:
    """Versions of ctflow, with the hash of its code, and of the libraries that compute pixels."""
    return {"ctflow": full_version(), **_libraries()}


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """What differs between the software of two places or times, "torch 2.6.0 -> 2.7.1"; "" for nothing.

    Args:
        before: by name, the versions that are compared with.
        now: the other versions.
    """
    names = dict.fromkeys([*before, *now])
    pairs = [(name, before.get(name, "unknown"), now.get(name, "unknown")) for name in names]
    return ", ".join(f"{name} {old} -> {new}" for name, old, new in pairs if old != new)


def outside_sha256(part: object) -> str:
    """SHA-256 of the file that defines an external class or function; "" for ctflow's own.

    Args:
        part: class or function that a protocol or study names.
    """
    module = inspect.getmodule(part)
    file = getattr(module, "__file__", None)
    if module is None or file is None or module.__name__.partition(".")[0] == "ctflow":
        return ""
    return sha256(Path(file).read_bytes()).hexdigest()
