"""Vector instructions for Numba: images are interleaved so that one weight serves a whole batch at once.

The same pixel of n images lies in n neighbouring numbers, its lanes. LLVM turns a loop over so few numbers
into scalar code, so the instructions here are vectors by construction. `lanes` is a tuple of n zeros, whose
length is known when a kernel is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = (1, 4, 8, 16)
"""Widths for which kernels are compiled; up to four lanes cost as much as one."""

_FUSED = ("contract",)  # one rounding for a multiplication and an addition


def widths(batch: int) -> list[int]:
    """Split a batch into widths: full ones, then the smallest that holds the rest."""
    full, rest = divmod(batch, LANES[-1])
    return [LANES[-1]] * full + [next(n for n in LANES if n >= rest)] * bool(rest)


def pieces(size: int) -> list[tuple[int, int]]:
    """Split range(size) into two parts for each thread, since some take longer than others."""
    step = max(1, math.ceil(size / (2 * torch.get_num_threads())))
    return [(first, min(first + step, size)) for first in range(0, size, step)]


def _instruction(emit: Callable[..., None]) -> Any:
    """An intrinsic (to, at, source, place, a, b, lanes); `emit` writes its LLVM code."""

    def declare(_: Any, to: Any, at: Any, source: Any, place: Any, a: Any, b: Any, lanes: Any) -> Any:
        signature = types.void(to, types.intp, source, types.intp, to.dtype, to.dtype, lanes)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit(_Vectors(context, builder, signature, len(lanes)), *arguments[:-1])
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(declare)


class _Vectors:
    """Loads, stores and sums of n lanes; LLVM instructions are written to `code`."""

    def __init__(self, context: Any, code: Any, signature: Any, n: int) -> None:
        self.context, self.code, self.n = context, code, n
        self.arrays = signature.args
        number = context.get_value_type(signature.args[0].dtype)
        self.size, self.type = context.get_abi_sizeof(number), ir.VectorType(number, n)

    def pointer(self, argument: int, array: Any, offset: Any, lanes: int = 0) -> Any:
        """Address of n lanes of an array, `lanes` numbers behind `offset`."""
        data = self.context.make_array(self.arrays[argument])(self.context, self.code, array).data
        place = self.code.add(offset, ir.Constant(offset.type, lanes))
        return self.code.bitcast(self.code.gep(data, [place]), self.type.as_pointer())

    def load(self, pointer: Any) -> Any:
        value = self.code.load(pointer)
        value.align = self.size
        return value

    def add(self, pointer: Any, *terms: tuple[Any, Any]) -> None:
        """Add vector · number for each term to what the pointer points at."""
        total = self.load(pointer)
        for vector, number in terms:
            product = self.code.fmul(vector, self._spread(number), flags=_FUSED)
            total = self.code.fadd(total, product, flags=_FUSED)
        self.code.store(total, pointer).align = self.size

    def _spread(self, number: Any) -> Any:
        nothing, first = ir.Constant(self.type, ir.Undefined), ir.IntType(32)
        one = self.code.insert_element(nothing, number, ir.Constant(first, 0))
        zeros = ir.Constant(ir.VectorType(first, self.n), [0] * self.n)
        return self.code.shuffle_vector(one, nothing, zeros)


def _gather(v: _Vectors, to: Any, at: Any, source: Any, place: Any, a: Any, b: Any) -> None:
    left, right = (v.load(v.pointer(2, source, place, lanes)) for lanes in (0, v.n))
    v.add(v.pointer(0, to, at), (left, a), (right, b))


def _scatter(v: _Vectors, to: Any, at: Any, source: Any, place: Any, a: Any, b: Any) -> None:
    value = v.load(v.pointer(2, source, place))
    v.add(v.pointer(0, to, at), (value, a))
    v.add(v.pointer(0, to, at, v.n), (value, b))


gather = _instruction(_gather)
"""to[at:at+n] += a source[place:place+n] + b source[place+n:place+2n]"""

scatter = _instruction(_scatter)
"""to[at:at+n] += a source[place:place+n], to[at+n:at+2n] += b source[place:place+n]"""
