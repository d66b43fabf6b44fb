"""Write volumes as derived DICOM series."""
