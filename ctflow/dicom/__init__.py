"""DICOM series in and out."""

from ctflow.dicom.identity import patient_key
from ctflow.dicom.options import ReadOptions
from ctflow.dicom.projections.reading import holds_projections, read_projections
from ctflow.dicom.projections.writing import write_projections
from ctflow.dicom.reading.inspection import SeriesSummary, inspect_folder
from ctflow.dicom.reading.series import read_series
from ctflow.dicom.source import Source
from ctflow.dicom.writing.series import WrittenSeries, write_series

__all__ = [
    "ReadOptions",
    "SeriesSummary",
    "Source",
    "WrittenSeries",
    "holds_projections",
    "inspect_folder",
    "patient_key",
    "read_projections",
    "read_series",
    "write_projections",
    "write_series",
]
