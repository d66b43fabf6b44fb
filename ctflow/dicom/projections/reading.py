"""Read DICOM-CT-PD, one file for each view, as line integrals with their rays."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from ctflow.dicom.projections.tags import TAGS, value
from ctflow.dicom.reading.decoding import decode
from ctflow.dicom.reading.files import PathLike, Slice, listing, quiet
from ctflow.dicom.source import Source
from ctflow.errors import NoDicomError, SeriesError, UnreadableError
from ctflow.geometry import FlyingSpot
from ctflow.scan import Scan

_PER_VIEW = {
    "phi": "DetectorFocalCenterAngularPosition",
    "z": "DetectorFocalCenterAxialPosition",
    "rho": "DetectorFocalCenterRadialDistance",
    "shift_phi": "SourceAngularPositionShift",
    "shift_z": "SourceAxialPositionShift",
    "shift_rho": "SourceRadialDistanceShift",
}
_OPTIONAL = {"shift_phi", "shift_z", "shift_rho"}  # absent where the focal spot does not fly
_FIXED = {
    "bins": "NumberofDetectorColumns",
    "rows": "NumberofDetectorRows",
    "pitch": "DetectorElementTransverseSpacing",
    "row_pitch": "DetectorElementAxialSpacing",
    "source_detector": "ConstantRadialDistance",
    "central": "DetectorCentralElement",
}
_PACKED = 64  # numbers in a byte: no lossless coder packs projections so densely
_UNEVEN = 0.25  # of the median step between views; a lost view is 1


def holds_projections(path: Path) -> bool:
    """Whether a folder's first DICOM file is a projection of DICOM-CT-PD."""
    for file in listing(path)[:20]:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except Exception:  # not DICOM, or damaged: pydicom raises many types
            continue
        return _is_projection(header)
    return False


@quiet()
def read_projections(
    path: PathLike | Sequence[PathLike], mirrored: tuple[bool, bool] = (False, False)
) -> Scan:
    """Read the projections of one scan from DICOM-CT-PD files.

    Both value representations and both layouts (a file's rows are detector columns, or rows) are recognised
    by content. The noise weights come from the photon statistics, HU from the scanner's value for water.

    Args:
        path: folder, or files.
        mirrored: whether detector columns, and rows, run against the format's direction: see
            `ctflow.rebinning.orient_detector`, which determines it from the data.

    Returns:
        Line integrals (rows, views, bins), dimensionless, with the rays of every view in mm.

    Raises:
        NoDicomError: there is no projection.
        DecoderError: no installed package reads the transfer syntax.
        UnreadableError: a file is damaged, or its pixels are not the detector's.
        SeriesError: the files are not one scan that can be reconstructed; all reasons are listed.

    Examples:
        >>> import ctflow as ct
        >>> from ctflow.datasets.raw_phantom import measure_phantom, raw_phantom, scanner
        >>> scan = measure_phantom(raw_phantom(), scanner(views=24, turns=1.0, bins=64, rows=4))
        >>> back = ct.read_projections(ct.write_projections(scan, "projections"))
        >>> bool((back.y - scan.y).abs().max() < 1e-4)  # stored in steps of 0.00015
        True
    """
    files = _in_order(_reachable(path))
    first = files[0][1]
    _require_supported(first)
    rows, bins = (_number(first, _FIXED[name]) for name in ("rows", "bins"))
    if not 0 < int(rows) * int(bins) <= _PACKED * files[0][2].stat().st_size:
        raise UnreadableError(
            f"the header claims a detector of {int(rows)} × {int(bins)}, which its file cannot hold; "
            "export the projections again"
        )
    y = np.empty((int(rows), len(files), int(bins)), np.float32)  # of as many files as there are
    digest = hashlib.sha256()
    for view, (number, header, file) in enumerate(files):
        y[:, view] = _line_integrals(file, number, header, (int(rows), int(bins)), digest)
    spot = _spot([header for _, header, _ in files], mirrored)
    _require_even(spot)
    digest.update(repr([getattr(spot, name).tolist() for name in _PER_VIEW]).encode())
    return Scan(
        torch.from_numpy(y),
        spot.beam(),
        "DICOM-CT-PD",
        photons=_photons([header for _, header, _ in files], int(bins)),
        mu_water=_mu_water(first),
        spot=spot,
        source=Source((first,), (digest.hexdigest(),), (files[0][2],)),
        sha256=digest.hexdigest(),
        notes=tuple(_notes(first)),
    )


def _reachable(path: PathLike | Sequence[PathLike]) -> list[Path]:
    """All files of a folder (recursive), a file, or a list of both, sorted by path."""
    lost: Counter[str] = Counter()
    files = listing(path, lost)
    if count := lost.total():
        raise UnreadableError(
            f"{count} of the files cannot be read: {', '.join(lost)}; copy the folder again"
        )
    return files


def _is_projection(header: Dataset) -> bool:
    return TAGS["NumberofDetectorRows"][:2] in header


def _in_order(paths: list[Path]) -> list[tuple[int, Dataset, Path]]:
    """Number in the listing, header and path of every projection, in order of acquisition."""
    found: list[tuple[int, Dataset, Path]] = []
    damaged = []
    for number, path in enumerate(paths, start=1):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        except Exception:  # pydicom raises many types on damaged headers
            damaged.append(number)
        else:
            found += [(number, header, path)] if _is_projection(header) else []
    if damaged:
        raise UnreadableError(f"file #{damaged[0]} and {len(damaged) - 1} more are damaged; copy them again")
    if not found:
        raise NoDicomError(
            "expected projections in DICOM-CT-PD and found none; give their folder, or see ctflow inspect"
        )
    instances = [item[1].get("InstanceNumber") for item in found]
    if None not in instances and len(set(instances)) == len(instances):
        found.sort(key=lambda item: int(item[1].InstanceNumber))
    return found


def _number(header: Dataset, name: str) -> Any:
    found = value(header, name)
    if found is None:
        raise SeriesError([f"the projections lack {name}"], "Export them with all private attributes")
    return found


def _require_supported(header: Dataset) -> None:
    wanted = {
        "LogFlag": ({"YES"}, "the data are not logarithms yet"),
        "DetectorShape": ({"CYLINDRICAL"}, "the detector is not a cylinder"),
        "TypeofProjectionData": ({"AXIAL", "HELICAL"}, "the orbit is neither a circle nor a helix"),
        "TypeofProjectionGeometry": ({"FANBEAM", "CONEBEAM"}, "the rays do not start from one source"),
    }
    reasons = []
    for name, (accepted, why) in wanted.items():
        found = value(header, name)
        if str(found).upper() not in accepted and not (found is None and name.startswith("Type")):
            reasons.append(f"{why} ({name} is {found or 'absent'})")
    spectra = value(header, "NumberofSpectra")
    if spectra is not None and spectra > 1:
        reasons.append(f"there are {spectra:.0f} spectra mixed")
    if reasons:
        raise SeriesError(
            reasons, "Export one spectrum, corrected, with LogFlag YES and a cylindrical detector"
        )


def _line_integrals(
    path: Path, number: int, header: Dataset, shape: tuple[int, int], digest: Any
) -> NDArray[np.float32]:
    """One view, (rows, bins)."""
    stored = (int(header.get("Rows", 0)), int(header.get("Columns", 0)))
    if stored not in (shape, shape[::-1]):
        raise UnreadableError(
            f"file #{number}: an image of {stored[0]} × {stored[1]} does not fit {shape[0]} rows and "
            f"{shape[1]} columns of the detector, or their transpose; export the projections again"
        )
    pixels = decode(Slice(number, path, header))
    digest.update(pixels.tobytes())
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    view = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    # A square detector does not tell; scanners' files then hold detector columns as rows.
    return view if stored == shape and shape[0] != shape[1] else view.T


def _spot(headers: list[Dataset], mirrored: tuple[bool, bool]) -> FlyingSpot:
    tables: dict[str, Any] = {
        name: np.array(
            [_shift(header, tag) if name in _OPTIONAL else _number(header, tag) for header in headers]
        )
        for name, tag in _PER_VIEW.items()
    }
    tables["phi"] = np.unwrap(tables["phi"])
    fixed = {name: _number(headers[0], tag) for name, tag in _FIXED.items()}
    varying = [n for n, tag in _FIXED.items() if any(value(h, tag) != fixed[n] for h in headers[1:])]
    if varying:
        raise SeriesError([f"{', '.join(varying)} change from file to file"], "Give the files of one scan")
    column, row = fixed.pop("central")
    return FlyingSpot(
        **tables,
        **{**fixed, "bins": int(fixed["bins"]), "rows": int(fixed["rows"])},
        central=(column - 1, row - 1),
        mirrored=mirrored,
    )


def _shift(header: Dataset, tag: str) -> float:
    found = value(header, tag)
    return 0.0 if found is None else float(found)


def _require_even(spot: FlyingSpot) -> None:
    """Refuse scans with missing or reordered views."""
    reasons = []
    if len(spot.phi) > 2:
        for name, steps in (("angle", np.diff(spot.phi)), ("height", np.diff(spot.z))):
            median = np.median(steps)
            if name == "angle" or abs(median) > 1e-3:
                odd = np.flatnonzero(np.abs(steps - median) > _UNEVEN * abs(median) + 1e-4)
                if len(odd):
                    reasons.append(f"the {name} jumps after view {odd[0] + 1} ({len(odd)} jumps in all)")
    if reasons:
        raise SeriesError(reasons, "Give all views of one scan, with InstanceNumber in their order")


def _photons(headers: list[Dataset], bins: int) -> torch.Tensor | None:
    tables = [value(header, "PhotonStatistics") for header in headers]
    if any(table is None for table in tables):
        return None
    photons = np.array([np.broadcast_to(np.asarray(t, np.float32), bins) for t in tables])
    same = (photons == photons[:1]).all()
    return torch.from_numpy((photons[:1] if same else photons).copy())


def _mu_water(header: Dataset) -> float | None:
    mu = value(header, "WaterAttenuationCoefficient")
    if mu is not None and not 0.01 < mu < 0.05:
        raise SeriesError(
            [f"the attenuation of water is {mu:g} and about 0.02 1/mm was expected"], "Correct (7041,1001)"
        )
    return None if mu is None else float(mu)


def _notes(header: Dataset) -> list[str]:
    flags = [name for name in TAGS if name.endswith("CorrectionFlag") and value(header, name) == "NO"]
    return [f"not corrected by the scanner: {name.removesuffix('CorrectionFlag')}" for name in flags]
