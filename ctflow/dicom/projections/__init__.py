"""DICOM-CT-PD: raw projections in and out."""
