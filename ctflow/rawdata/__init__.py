"""Read measured projections: scanners' raw data, public data sets, and a user's own sinograms."""

from ctflow.rawdata.reading import holds_scan, read_scan

__all__ = ["holds_scan", "read_scan"]
