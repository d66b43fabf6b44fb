"""Training slices, kept as int16 HU in memory."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.datasets.synthetic import synthetic_slices
from ctflow.errors import UnreadableError, UsageError
from ctflow.priors._base import HU_CENTRE, HU_WIDTH
from ctflow.tables import Real, Table, Text, require_kind

SYNTHETIC = 64
"""Number of synthetic slices, used where a recipe gives the kind `synthetic` a share."""

HU_RANGE = (-1000.0, 1500.0)
"""Training slices are clipped to this range, HU: dense metal is not anatomy."""

_STORED = (-1024, 3071)  # what 12 bits hold with the usual intercept; metal and padding may lie beyond
_ENTRY = {
    **dict.fromkeys(("file", "split", "kind", "collection"), Text()),
    "pixel_spacing_mm": Real(0, 1000, above=True),  # or NaN, where it is not known
}
_STRAY = 0.01  # share of pixels that may


class _Entry(TypedDict):
    file: str
    split: str
    kind: str
    collection: str
    pixel_spacing_mm: float


class Slices:
    """CT slices of one split of a folder with an `index.json`, as int16 HU in memory.

    `index.json` is a list of objects with `file` (an .npz with `hu`, int16 [slice, row, column]), `split`,
    `kind`, `collection` and `pixel_spacing_mm` (NaN if unknown). Slices of the kind `synthetic` are generated
    from chest phantoms and need no file.

    Args:
        folder: folder of the index.
        split: "train" or "validation".
        kinds: kinds to keep; all by default.

    Raises:
        UsageError: there is no index, no entry fits, or the values are not HU.
        UnreadableError: the index or a file is damaged.
    """

    def __init__(self, folder: Path, split: str, kinds: tuple[str, ...] = ()) -> None:
        index = _read_index(folder)
        entries = [(k, e) for k, e in index if e["split"] == split and (not kinds or e["kind"] in kinds)]
        absent = set(kinds) - {entry["kind"] for _, entry in entries} - {"synthetic"}
        if not entries or absent:
            raise UsageError(
                f"the data folder's index has no '{split}' slices of kind {', '.join(absent) or 'any'}"
            )
        self.collections = sorted({entry["collection"] for _, entry in entries})
        self.by_kind: dict[str, list[NDArray[np.int16]]] = {}
        self.spacings: dict[str, list[float]] = {}
        for number, entry in entries:
            slices = list(_read_hu(folder / entry["file"], number))
            self.by_kind.setdefault(entry["kind"], []).extend(slices)
            self.spacings.setdefault(entry["kind"], []).extend([entry["pixel_spacing_mm"]] * len(slices))
        if "synthetic" in kinds:
            chests, spacing = synthetic_slices(SYNTHETIC)
            self.by_kind["synthetic"] = [hu.numpy().astype(np.int16) for hu in chests]
            self.spacings["synthetic"] = [spacing] * SYNTHETIC

    def sha256(self) -> str:
        """Hash of the shapes and pixels of all slices, whatever the files' names."""
        digests = [
            hashlib.sha256(kind.encode() + str(hu.shape).encode() + hu.tobytes()).digest()
            for kind, slices in self.by_kind.items()
            for hu in slices
        ]
        return hashlib.sha256(b"".join(sorted(digests))).hexdigest()

    def known_spacings(self) -> list[float]:
        """Pixel spacings, mm, of the slices that have one."""
        return [s for kind in self.spacings.values() for s in kind if not math.isnan(s)]

    def spread(self, number: int) -> list[tuple[Tensor, float]]:
        """Select `number` slices (rows, columns) of 256² pixels, network range, and their spacings, mm.

        If there are none of 256², they are taken from the first kind.
        """
        kind = "256" if "256" in self.by_kind else next(iter(self.by_kind))
        pairs = list(zip(self.by_kind[kind], self.spacings[kind], strict=True))
        return [
            (to_network(torch.from_numpy(image.astype(np.float32))), spacing)
            for image, spacing in pairs[:: max(1, len(pairs) // number)][:number]
        ]


def to_network(hu: Tensor) -> Tensor:
    """Convert HU to network range, clipped to the training range; shape (*batch, Y, X)."""
    return (hu.clamp(*HU_RANGE) - HU_CENTRE) / HU_WIDTH


def _read_index(folder: Path) -> list[tuple[int, _Entry]]:
    path = folder / "index.json"
    if not path.is_file():
        raise UsageError("no index.json in the data folder; see ctflow.training.Slices for what it holds")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        lacking = [(k, _ENTRY.keys() - e.keys()) for k, e in enumerate(index) if _ENTRY.keys() - e.keys()]
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise UnreadableError("index.json is not a list of JSON objects; write it again") from error
    if lacking:
        number, missing = lacking[0]
        raise UnreadableError(f"entry #{number} of index.json lacks {', '.join(sorted(missing))}; add it")
    for number, entry in enumerate(index):
        # NaN does not equal itself.
        known = {key: entry[key] for key in _ENTRY if entry[key] == entry[key]}
        require_kind(known, Table(others=_ENTRY), f"entry #{number} of index.json", UnreadableError)
    return list(enumerate(index))


def _read_hu(path: Path, number: int) -> NDArray[np.int16]:
    """Read the slices of one file; errors name it by its number in the index."""
    try:
        with np.load(path) as archive:
            hu: NDArray[np.int16] = archive["hu"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UnreadableError(
            f"file #{number} of the index is missing or is not an .npz with an array 'hu'; write it again"
        ) from error
    if hu.dtype != np.int16 or hu.ndim != 3:
        raise UsageError(
            f"file #{number}: 'hu' must be int16 [slice, row, column], and is {hu.dtype} with {hu.ndim} axes"
        )
    stray = float(((hu < _STORED[0]) | (hu > _STORED[1])).mean())
    if stray > _STRAY or hu.min() >= 0:
        raise UsageError(
            f"file #{number}: values from {hu.min()} to {hu.max()}, {100 * stray:.0f} % outside "
            f"{_STORED[0]} to {_STORED[1]}, are not HU; apply the rescale slope and intercept"
        )
    return hu
