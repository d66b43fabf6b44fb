"""Read DICOM files as volumes in HU."""
