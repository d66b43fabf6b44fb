"""From a series or a scan to a measurement: all is read, built and refused before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ctflow.dicom import ReadOptions, read_series
from ctflow.errors import ProtocolError
from ctflow.geometry import VolumeGeometry
from ctflow.nifti import is_nifti, read_nifti
from ctflow.plausibility import converted, require_hu
from ctflow.rawdata import holds_scan
from ctflow.runs import measured_data
from ctflow.runs.measured_helix import kept_of_helix, solves_helix, unknown_of_helix
from ctflow.runs.measurement import Measurement, coarse_mm
from ctflow.runs.protocol import Protocol
from ctflow.runs.unknown import Unknown, crossing, unknown_of
from ctflow.scan import Scan
from ctflow.scanner.scatter import require_projections
from ctflow.system.devices import available_device
from ctflow.system.progress import FractionProgress
from ctflow.volume import Volume


def prepare(
    protocol: Protocol,
    series: Path | Volume,
    *,
    slices: tuple[int, int | None] | None = None,
    uid: str | None = None,
    device: str = "cpu",
    options: ReadOptions | None = None,
    reading: FractionProgress = lambda fraction: None,
) -> Measurement:
    """Read and build what is measured, and refuse what cannot work, before anything is computed.

    `series` is a volume in HU, files of one, or a scan. `options` are the repairs that the reader may make;
    `reading` is called with the fraction that is read, or of a scanner's truth reconstructed.

    Raises:
        ProtocolError: the protocol names something that does not exist.
        SeriesError: the files are not one CT volume.
        BackendError: the device is not there.
    """
    device = str(available_device(device))
    if isinstance(series, Path) and holds_scan(series):
        return _measured(protocol, series, slices, device, reading)
    volume, unusual = _read(series, uid, protocol.mu_water, options or ReadOptions(), reading)
    total = volume.geometry.shape[0]
    first, last = slices or (0, None)
    chosen = volume.slices(first, total if last is None else last).to_hu()
    _refuse_coarse(protocol)
    unknown, noise = unknown_of(protocol, chosen.geometry), protocol.noise()
    A, scanner = protocol.operator(unknown.grid, unknown.beam), protocol.scanner()
    if scanner:
        scanner.require_fit(A, protocol.mu_water)
    if "scatter_correction" in protocol.tables:
        require_projections(A)
    place = (chosen.geometry, first, total)
    series_too = volume if unknown.beyond else None
    return Measurement(protocol, *place, unknown, A, noise, device, chosen, series_too, unusual=unusual)


def _refuse_coarse(protocol: Protocol) -> None:
    """Refuse coarser pixels where nothing is projected.

    Raises:
        ProtocolError: a method asks for them.
    """
    if "geometry" in protocol.tables:
        return
    for name, method in protocol.methods().items():
        if coarse_mm(method):
            raise ProtocolError(
                f"method '{name}' asks for coarser pixels by coarse_mm, and protocol '{protocol.name}' "
                "projects nothing; leave coarse_mm out"
            )


def _measured(
    protocol: Protocol,
    path: Path,
    slices: tuple[int, int | None] | None,
    device: str,
    progress: FractionProgress,
) -> Measurement:
    """A scanner's own data: its rays in place of the protocol's.

    Raises:
        ProtocolError: the protocol simulates a scanner.
    """
    if protocol.scanner():
        raise ProtocolError(
            f"protocol '{protocol.name}' simulates a scanner, and the data are measured by one; take a "
            "protocol without a scanner table"
        )
    scan, first, total = measured_data.load(path, slices, solves_helix(protocol))
    protocol = measured_data.attenuation_of(protocol, scan)
    if scan.spot is not None and scan.grid is not None:
        grid = scan.grid
        kept = kept_of_helix(scan, protocol, grid)
        unknown, note = unknown_of_helix(kept, grid)
        kept = replace(kept, notes=(*kept.notes, note))
        return _of_scan(protocol, (grid, first, total, unknown), (scan, kept), device, progress)
    kept, grid = measured_data.kept_views(scan, protocol), scan.image_grid(len(scan.y))
    measured_data.refuse_short_arc(scan, grid)
    unknown = Unknown(grid.slices(0, 1), beam=kept.beam)
    if not scan.beam.flat:
        unknown = crossing(kept.beam, grid)
        kept = replace(kept, notes=(*kept.notes, _seen(total, unknown.beyond)))
        # All that all views see is solved for, since rays cross it whichever slices are chosen.
        unknown = replace(unknown, beyond=unknown.beyond + first)
        grid = grid.slices(*measured_data.chosen(slices, total))
    return _of_scan(protocol, (grid, first, total, unknown), (scan, kept), device, progress)


def _of_scan(
    protocol: Protocol,
    place: tuple[VolumeGeometry, int, int, Unknown],
    scans: tuple[Scan, Scan],
    device: str,
    progress: FractionProgress,
) -> Measurement:
    unknown, (scan, kept) = place[-1], scans
    A, noise = protocol.operator(unknown.grid, unknown.beam), protocol.noise()
    if "scatter_correction" in protocol.tables:
        require_projections(A)
    return Measurement(protocol, *place, A, noise, device, scan=scan, kept=kept, progress=progress)


def _seen(slices: int, beyond: int) -> str:
    return (
        f"every view sees {slices} slices from rim to rim; {beyond} beyond either end, which rays cross too, "
        "are solved for and not shown"
    )


def _read(
    series: Path | Volume,
    uid: str | None,
    mu_water: float,
    options: ReadOptions,
    reading: FractionProgress,
) -> tuple[Volume, tuple[str, ...]]:
    """The volume, and what is to be said of one that no reader has looked at."""
    if isinstance(series, Volume):
        volume = converted(series, options.unit)
        return volume, tuple(require_hu(volume, options.unit))
    if is_nifti(series):
        return read_nifti(series, mu_water=mu_water, unit=options.unit), ()
    return read_series(series, series=uid, mu_water=mu_water, options=options, progress=reading), ()
