"""DICOM files to volumes in HU."""
