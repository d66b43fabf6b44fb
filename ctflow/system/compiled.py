"""Functions that Numba compiles, and threads that run them side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile a function on first use, keep it on disk, and run it without the interpreter's lock."""
    made = numba.njit(function, nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
    return cast(_Function, made)


def in_threads(tasks: Iterable[Callable[[], None]]) -> None:
    """Run compiled kernels, each on its own share of the work, in as many threads as torch has."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda task: task(), tasks))
