"""A key that tells patients apart in memory without naming them."""

from __future__ import annotations

import hashlib

import pydicom

from ctflow.dicom.reading.files import PathLike, listing, quiet


@quiet()
def patient_key(path: PathLike) -> str | None:
    """Return a key of the patient in the first DICOM file of a folder; equal keys mean the same patient.

    The key is a hash of PatientID and PatientName, which can be guessed: compare it, never write it.

    Args:
        path: folder (read recursively) or file.

    Returns:
        64 hexadecimal digits; None where no file identifies the patient.

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
