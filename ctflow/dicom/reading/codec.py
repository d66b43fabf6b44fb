"""Decode compressed images in a separate process, since native decoders hang and abort on damaged data.

A process that computes too long on an image is ended by the system, and a new one takes its place.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctflow.errors import DecoderError

# Of computing. A CT slice takes hundredths of a second; what takes many seconds never ends.
_SECONDS = 4.0
_SECONDS_PER_PIXEL = 1e-6

_COMMAND = [sys.executable, "-P", str(Path(__file__).with_name("codec_process.py"))]
# What decoders must know, with what an empty element stands for; the rest of a header stays here.
_FIELDS = {
    "Rows": None,
    "Columns": None,
    "SamplesPerPixel": 1,
    "BitsAllocated": None,
    "BitsStored": None,
    "PixelRepresentation": 0,
}


class DamagedError(Exception):
    """A decoder refused an image, complained about it, or did not finish."""


class Codec:
    """Process that decodes one image at a time.

    Raises:
        DecoderError: the process cannot start.
    """

    def __init__(self) -> None:
        self.pending = self._greeted = False
        try:
            self._process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError:
            raise _no_process() from None

    @property
    def usable(self) -> bool:
        """Whether the process lives, can be spoken to and owes no answer."""
        ends = (self._process.stdin, self._process.stdout)
        # The garbage collector may close the pipes of an abandoned reader before that hands its process back.
        open_still = all(pipe is not None and not pipe.closed for pipe in ends)
        return open_still and not self.pending and self._process.poll() is None

    def send(self, header: Dataset, syntax: str, plugin: str, data: bytes) -> None:
        """Start decoding the codestream of one frame.

        Args:
            header: Rows, Columns and the bits per pixel.
            syntax: UID of the transfer syntax.
            plugin: pydicom's name of the decoder.
            data: the codestream.
        """
        fields = {name: header.get(name) for name in _FIELDS}
        request = {
            "header": {name: _FIELDS[name] if v in (None, "") else v for name, v in fields.items()},
            "syntax": str(syntax),
            "plugin": plugin,
            "seconds": _SECONDS + _SECONDS_PER_PIXEL * int(header.Rows) * int(header.Columns),
            "bytes": len(data),
        }
        line = json.dumps(request).encode() + b"\n"
        self.pending = True
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `receive` finds out
            self._process.stdin.write(line + data)
            self._process.stdin.flush()

    def receive(self) -> NDArray[np.integer]:
        """Return the words of the frame that was sent, (rows, columns), with their unused bits as stored.

        Raises:
            DamagedError: the codestream is damaged.
            DecoderError: the process did not start.
        """
        answers = self._process.stdout
        assert answers is not None
        if not self._greeted and answers.readline() != b"{}\n":
            raise _no_process()
        self._greeted = True
        answer = json.loads(answers.readline() or "{}")
        words = answers.read(answer.get("bytes", 0))
        if not answer or len(words) < answer["bytes"]:
            raise DamagedError("the decoder did not finish")
        self.pending = False
        if answer["error"]:
            raise DamagedError(answer["error"])
        return np.frombuffer(words, np.dtype(answer["dtype"])).reshape(answer["shape"])

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was not sent yet
                pipe.close()
        self._process.wait()


def _no_process() -> DecoderError:
    return DecoderError(
        "the process that decodes compressed images does not start; run ctflow doctor, or "
        "convert the series to Explicit VR Little Endian"
    )


# By the process that they belong to: a fork must not speak into its parent's pipes.
_idle: defaultdict[int, list[Codec]] = defaultdict(list)


@contextmanager
def codec() -> Iterator[Codec]:
    """Lend a decoding process to the block; a healthy one is kept for the next caller."""
    idle = _idle[os.getpid()]
    while idle and not idle[-1].usable:
        idle.pop().end()
    one = idle.pop() if idle else Codec()
    try:
        yield one
    finally:
        if one.usable:
            idle.append(one)
        else:
            one.end()


@atexit.register
def _end() -> None:
    for one in _idle.pop(os.getpid(), []):
        one.end()
