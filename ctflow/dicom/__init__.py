"""DICOM series in and out."""

from ctflow.dicom.inspection import SeriesSummary, inspect_folder
from ctflow.dicom.series import read_series
from ctflow.dicom.source import Source
from ctflow.dicom.write import WrittenSeries, write_series

__all__ = ["SeriesSummary", "Source", "WrittenSeries", "inspect_folder", "read_series", "write_series"]
