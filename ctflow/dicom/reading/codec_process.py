"""The decoding process behind `codec`: decodes compressed images one after the other.

It is run as a file, so that it loads only the decoders and starts quickly.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
import warnings
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import iter_pixels

try:
    import resource
except ImportError:  # not POSIX; there a process that hangs ends with the interrupted reader
    resource = None  # type: ignore[assignment]


def main() -> None:
    """Answer requests until the input ends; each is a line of JSON and the bytes that it announces."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the reader is interrupted, and ends this process
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", "The decoded RLE segment")  # it holds more pixels than the image
    answers = os.fdopen(os.dup(1), "wb")
    with tempfile.TemporaryFile() as said:
        _serve(answers, said)


def _serve(answers: BinaryIO, said: BinaryIO) -> None:
    for stream in (1, 2):  # native code prints there
        os.dup2(said.fileno(), stream)
    answers.write(b"{}\n")
    answers.flush()
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        data = sys.stdin.buffer.read(request["bytes"])
        _limit(request["seconds"])
        said.truncate(0)
        try:
            words, error = np.ascontiguousarray(_decoded(request, data)), ""
        except Exception as failure:  # decoders raise many types on damaged data
            words, error = np.zeros(0, np.uint8), type(failure).__name__
        if said.seek(0, os.SEEK_END):  # libjpeg goes on past damage and only says so
            error = error or "the decoder complained"
        answer = {"error": error, "dtype": words.dtype.str, "shape": words.shape, "bytes": words.nbytes}
        answers.write(json.dumps(answer).encode() + b"\n" + words.tobytes())
        answers.flush()


def _decoded(request: dict[str, Any], data: bytes) -> NDArray[np.integer]:
    dataset = Dataset()
    for name, value in request["header"].items():
        setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = request["syntax"]
    dataset.PixelData = encapsulate([data], has_bot=False)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    plugin = request["plugin"]
    (words,) = iter_pixels(dataset, raw=True, decoding_plugin=plugin, correct_unused_bits=False)
    return words


def _limit(seconds: float) -> None:
    """Have the system end this process after `seconds` of computing, which native code cannot evade."""
    if resource is None:
        return
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(used + seconds)
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


if __name__ == "__main__":
    main()
