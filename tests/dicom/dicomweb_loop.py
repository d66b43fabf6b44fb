"""A real PACS by DICOMweb, from push to find: `python -m tests.dicom.dicomweb_loop SERIES FOLDER`.

Prints one JSON object of counts. `test_orthanc.py` starts it where nothing outside can reach Orthanc.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pydicom
from pydicom.uid import RLELossless

from ctflow.cli import main
from ctflow.dicom import read_series
from tests.dicom.files import toy_series
from tests.dicom.orthanc_loop import HTTP_PORT, ctflow, orthanc
from tests.dicom.test_orthanc import PLUGIN

PACS = f"http://127.0.0.1:{HTTP_PORT}/dicom-web"
SETTINGS = {
    "Plugins": [PLUGIN],
    "AuthenticationEnabled": True,
    "RegisteredUsers": {"reader": "a pass:word"},
    "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
}


def loop(series: Path, folder: Path) -> dict:
    """Push a series and a compressed image, find and pull both; what was counted."""
    compressed = toy_series(folder / "compressed", slices=1, seed="compressed")[0]
    sent = pydicom.dcmread(compressed)
    sent.compress(RLELossless, generate_instance_uid=False)
    sent.save_as(compressed)
    header = pydicom.dcmread(series / "IM0001.dcm")
    uid, study = str(header.SeriesInstanceUID), str(header.StudyInstanceUID)
    refused = main(["pacs", "find", PACS, "--study", study])
    os.environ["CTFLOW_PACS_PASSWORD"] = "a pass:word"
    who = ("--user", "reader", "--timeout", "60")
    counts = {
        "refused": refused,
        "pushed": ctflow("pacs", "push", PACS, str(series), str(compressed), *who)["pushed"],
    }
    counts["pulled"] = ctflow("pacs", "pull", PACS, uid, "-o", str(folder / "back"), *who)["pulled"]
    counts["equal"] = read_series(folder / "back").source.sha256 == read_series(series).source.sha256
    words = ("pull", PACS, str(sent.SeriesInstanceUID), "--study", str(sent.StudyInstanceUID))
    counts["compressed pulled"] = ctflow("pacs", *words, "-o", str(folder / "came"), *who)["pulled"]
    came = pydicom.dcmread(folder / "came" / "IM0001.dcm")
    counts["compressed equal"] = (
        came == sent and came.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    )
    keys = {"series": uid, "study": study, "date": str(header.StudyDate), "patient-id": str(header.PatientID)}
    for key, text in keys.items():
        found = ctflow("pacs", "find", PACS, f"--{key}", text, *who)["series"]
        counts[f"by {key}"] = [row for row in found if row["series"] == uid]
    counts["nothing"] = ctflow("pacs", "find", PACS, "--study", "1.2.3", *who)["series"]
    counts["study level"] = ctflow("pacs", "find", PACS, "--study", study, "--level", "study", *who)["study"]
    counts["personal"] = ctflow("pacs", "find", PACS, "--series", uid, "--study", study, "--show-phi", *who)[
        "series"
    ]
    counts["gone"] = main(["pacs", "pull", PACS, "1.2.3", "-o", str(folder / "gone"), *who])
    return counts


if __name__ == "__main__":
    work = Path(sys.argv[2])
    with orthanc(work, SETTINGS):
        result = loop(Path(sys.argv[1]), work)
    print(json.dumps(result))
