"""Volumes to derived DICOM series."""
