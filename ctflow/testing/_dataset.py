"""Laws of data sets."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ctflow.testing._finding import Finding, Laws, check_laws
from ctflow.volume import Volume

_LEAST_HU, _MOST_HU = -1024.0, 32767.0  # range of CT numbers in DICOM's 16 bits


def check_dataset(volumes: Iterable[Volume], name: str = "data set") -> list[Finding]:
    """Check that the volumes of a data set are what every method expects.

    Args:
        volumes: some of its volumes (Z, Y, X), HU.
        name: name in the report.

    Returns:
        The figure of every law.

    Raises:
        CheckError: a law is broken.
    """
    return check_laws(name, _laws(list(volumes)))


def _laws(volumes: list[Volume]) -> Laws:
    def count(broken: list[bool]) -> float:
        return float(sum(broken))

    yield "no volumes", lambda: count([not volumes]), 0.0
    yield "not in HU", lambda: count([v.unit != "HU" for v in volumes]), 0.0
    yield "not float32", lambda: count([v.data.dtype != torch.float32 for v in volumes]), 0.0
    yield (
        "shape is not the grid's",
        lambda: count([tuple(v.data.shape) != v.geometry.shape for v in volumes]),
        0,
    )
    yield "not finite", lambda: count([not bool(v.data.isfinite().all()) for v in volumes]), 0.0
    yield "outside 16 bits", lambda: count([not _fits(v) for v in volumes]), 0.0
    yield "one value throughout", lambda: count([float(v.data.std()) == 0 for v in volumes]), 0.0


def _fits(volume: Volume) -> bool:
    return float(volume.data.min()) >= _LEAST_HU and float(volume.data.max()) <= _MOST_HU
