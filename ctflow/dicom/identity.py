"""Whose images these are, as a key that tells patients apart in memory and names none."""

from __future__ import annotations

import hashlib

import pydicom

from ctflow.dicom.reading.files import PathLike, listing, quiet


@quiet()
def patient_key(path: PathLike) -> str | None:
    """A key of the patient of the first DICOM file in a folder: equal for equal patients.

    The key is a hash of PatientID and PatientName, which can be guessed: compare it, never write it.

    Args:
        path: folder (read recursively) or file.

    Returns:
        64 hexadecimal digits; None where no file says who it is.

    Raises:
        NoDicomError: the path does not exist.
    """
    for file in listing(path):
        try:
            header = pydicom.dcmread(
                file, specific_tags=["PatientID", "PatientName"], stop_before_pixels=True
            )
            who = [str(header.get("PatientID", "")), str(header.get("PatientName", ""))]
        except Exception:  # pydicom raises many types on damaged headers; reading the series will tell
            continue
        return hashlib.sha256("\0".join(who).encode()).hexdigest() if any(who) else None
    return None
