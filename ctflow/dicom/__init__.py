"""DICOM series in and out."""

from ctflow.dicom.series import inspect_folder, read_series
from ctflow.dicom.write import write_series

__all__ = ["inspect_folder", "read_series", "write_series"]
