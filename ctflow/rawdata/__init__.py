"""Read measured projections: scanners' raw data, public data sets, and a user's own sinograms."""

from ctflow.rawdata.reading import holds_scan, read_scan
from ctflow.rawdata.rtk import write_rtk

__all__ = ["holds_scan", "read_scan", "write_rtk"]
