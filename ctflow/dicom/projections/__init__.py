"""Read and write raw projections in the DICOM-CT-PD format."""
