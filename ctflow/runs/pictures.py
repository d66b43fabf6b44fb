"""Pictures of numbers: PNG that holds every CT number exactly, and the scripts that a page finds them in."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ctflow.units import AIR_HU
from ctflow.volume import Volume

OFFSET = 32768 + 128
"""A PNG holds numbers + OFFSET, high bytes left, low ones right; 128 keeps air and water off byte borders."""

SD_STEP_HU = 0.1
"""HU per unit of the standard deviations."""

SUPPORT_STEP = 0.001
"""Share per unit of the support."""

_STORED = (-32768, 32767 - 128)

Stack = NDArray[np.floating]


def index(run: str) -> str:
    """Content of the script index.js, which tells a page whose folder lies beside it."""
    return f"window.ctflowRun = {json.dumps(run)};\n"


def script(picture: str) -> str:
    """Content of a picture's file.

    A script, since a page that is opened from a disk may read neither files nor the pixels of pictures.

    Args:
        picture: PNG in base64.
    """
    return f'ctflowPicture = "{picture}";\n'


def picture_in(path: Path) -> str:
    """The picture that a `script` holds."""
    return path.read_text(encoding="ascii").split('"')[1]


def shown_hu(volume: Volume) -> Stack:
    """CT numbers, air where nothing is known, (Z, Y, X), HU."""
    return np.asarray(torch.where(volume.mask, volume.data, AIR_HU).numpy())


def sd_steps(spread: Volume) -> Stack:
    """Standard deviations, 0 where nothing is known, (Z, Y, X), in steps of `SD_STEP_HU` HU."""
    return np.asarray(torch.where(spread.mask, spread.data, 0.0).numpy() / SD_STEP_HU)


def encoded(numbers: Stack) -> str:
    """`number_png` in base64."""
    return base64.b64encode(number_png(numbers)).decode()


def number_png(numbers: Stack) -> bytes:
    """An image as a PNG that holds its numbers, such as HU, rounded to whole ones.

    Args:
        numbers: (Y, X), -32768 to 32639; what lies beyond is clipped.

    Returns:
        A grey PNG (Y, 2 X); left half · 256 + right half = number + OFFSET. Halves compress better
        than colours.
    """
    from PIL import Image

    value = (np.clip(np.rint(numbers), *_STORED) + OFFSET).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([value >> 8, value & 255], -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
