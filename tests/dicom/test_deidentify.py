"""De-identified series: nothing of the patient is left, and the standard's table agrees."""

from __future__ import annotations

import json

import pydicom
import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword

from ctflow.cli import main
from ctflow.dicom import inspect_folder, read_series, write_series
from tests.dicom.files import CANARY, edit, item, setting, toy_series
from tests.dicom.validators import validate

DATES = {"DA": "19010203", "TM": "112233", "DT": "19010203112233", "AS": "077Y"}
TEXT = {"LO", "SH", "PN", "LT", "ST", "UT", "CS", "AE"}


FILLED = """
PatientName PatientID PatientBirthDate PatientBirthTime PatientAge PatientAddress OtherPatientIDs
PatientComments EthnicGroup Occupation PatientTelephoneNumbers IssuerOfPatientID StudyDate StudyTime
AccessionNumber StudyID StudyDescription SeriesDescription ProtocolName ReferringPhysicianName
PhysiciansOfRecord PerformingPhysicianName OperatorsName InstitutionName InstitutionAddress
InstitutionalDepartmentName StationName ManufacturerModelName Manufacturer DeviceSerialNumber
SoftwareVersions SeriesDate SeriesTime AcquisitionDate AcquisitionTime ContentDate ContentTime
AcquisitionDateTime ContrastBolusAgent FilterType ScanOptions BodyPartExamined ImageComments
RequestedProcedureDescription PerformedProcedureStepID PositionReferenceIndicator
DeidentificationMethod DerivationDescription PatientSex
"""


def fill(header):
    """Put a name into every text and a date into every date of the patient, study and equipment modules."""
    for name in FILLED.split():
        representation = dictionary_VR(tag_for_keyword(name))
        if name == "PatientSex":
            header.PatientSex = "F"
        elif representation in TEXT:
            setattr(header, name, CANARY)
        else:
            setattr(header, name, DATES[representation])
    header.PatientWeight, header.PatientSize, header.KVP, header.TableHeight = "77.7", "1.777", "120", "12.5"


@pytest.fixture
def pair(tmp_path):
    """A source whose every identifying attribute is filled, and its de-identified derivative."""
    for file in toy_series(tmp_path / "in"):
        edit(file, fill)
    source = read_series(tmp_path / "in")
    written = write_series(
        source,
        tmp_path / "out",
        like=source,
        description="ctflow fbp",
        derivation="fbp",
        deidentify=True,
        seed_uid="run",
    )
    return source, written


def test_nothing_of_the_patient_is_left(pair):
    source, written = pair
    uids = {
        str(element.value)
        for header in source.source.headers
        for element in header.iterall()
        if element.VR == "UI" and not str(element.value).startswith("1.2.840.10008")
    }
    assert len(uids) == 9  # study, series, frame of reference and six images
    for file in written:
        content = file.read_bytes()
        for secret in (CANARY, "19010203", "112233", "077Y", "77.7", "1.777", *uids):
            assert secret.encode() not in content
    header = pydicom.dcmread(written[0])
    assert header.KVP == 120  # how the X-rays were taken stays
    assert header.TableHeight == 12.5
    assert header.PatientIdentityRemoved == "YES"
    assert header.LongitudinalTemporalInformationModified == "REMOVED"
    codes = [item.CodeValue for item in header.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113105"]
    assert "SourceImageSequence" not in header
    assert not header.PatientSex
    assert validate(written) == []


PROTOCOL = """# {canary} sparse views
geometry = {{ name = "parallel-beam", angles = 20 }}
noise = {{ name = "poisson", photons = 1e5 }}
method = {{ name = "fbp", filter = "hann" }}
reference = {{ name = "fbp" }}
"""


def hide(header):
    """Put a name where lists by attribute do not look: inside sequences, private tags, defined terms."""
    fill(header)
    inner = item(PatientName=CANARY, CodeValue="113691", CodingSchemeDesignator="DCM", CodeMeaning=CANARY)
    header.CTDIPhantomTypeCodeSequence = [inner]
    header.DeidentificationMethodCodeSequence = [inner]
    header.PatientIdentityRemoved = "YES"
    header.RequestAttributesSequence = [item(ScheduledProcedureStepDescription=CANARY)]
    header.private_block(0x0019, CANARY, create=True).add_new(1, "LO", CANARY)
    header.LossyImageCompression, header.LossyImageCompressionMethod = "01", CANARY


@pytest.mark.parametrize("deidentify", [True, False])
def test_nothing_that_a_run_writes_names_anybody(tmp_path, deidentify):
    for file in toy_series(tmp_path / "in", slices=3):
        edit(file, hide)
    for file in toy_series(tmp_path / "in" / "other", slices=1, seed="other"):
        edit(file, setting(SeriesNumber=7))
    protocol = tmp_path / f"{CANARY}.toml"
    protocol.write_text(PROTOCOL.format(canary=CANARY))
    words = ["--deidentify", "basic"] if deidentify else []
    uid = inspect_folder(tmp_path / "in")[0].uid
    out = tmp_path / "out"
    assert main(["run", str(protocol), str(tmp_path / "in"), "-o", str(out), "--series", uid, *words]) == 0
    files = [file for file in out.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".dcm", ".json", ".html", ".js"}
    other = inspect_folder(tmp_path / "in" / "other")[0].uid
    found = {file.suffix for file in files if CANARY.encode() in file.read_bytes()}
    assert found == (set() if deidentify else {".dcm", ".json", ".html"})
    named = {file.name for file in files if f"[{other}]" in file.read_text("latin-1")}
    assert named == (set() if deidentify else {"report.json", "report.html", "fbp.json", "fbp-2.json"})
    report = json.loads((out / "report.json").read_text())
    assert ("created" in report["provenance"]) is not deidentify
    assert 'filter = "hann"' in report["protocol"]["text"]
    header = pydicom.dcmread(next(out.rglob("*.dcm")))
    assert CANARY not in str(header.get("CTDIPhantomTypeCodeSequence"))
    assert CANARY not in str(header.get("DeidentificationMethodCodeSequence"))
    assert "LossyImageCompressionMethod" not in header
    assert not [element for element in header if element.tag.is_private]


@pytest.mark.parametrize("deidentify", [True, False])
@pytest.mark.parametrize("said", ["NO", None, "PERHAPS"])
def test_burned_in_text_is_denied_only_where_the_source_denies_it(tmp_path, deidentify, said):
    for file in toy_series(tmp_path / "in", slices=3):
        assert pydicom.dcmread(file).BurnedInAnnotation == "NO"  # made here, so that it is known
        edit(file, lambda header: header.pop("BurnedInAnnotation"))
        edit(file, setting(**({"BurnedInAnnotation": said} if said else {})))
    source = read_series(tmp_path / "in")
    written = write_series(source, tmp_path / "out", like=source, description="x", deidentify=deidentify)
    assert {pydicom.dcmread(file).get("BurnedInAnnotation") for file in written} == {
        "NO" if said == "NO" else None
    }
    assert validate(written) == []


def test_the_series_of_a_run_stay_together(pair, tmp_path):
    source, written = pair
    spread = write_series(
        source, tmp_path / "sd", like=source, description="sd", content="spread", deidentify=True
    )
    one, two = pydicom.dcmread(written[0]), pydicom.dcmread(spread[0])
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert one[name].value == two[name].value
    assert one.SeriesInstanceUID != two.SeriesInstanceUID
    assert validate([*written, *spread]) == []


def test_the_table_of_the_standard_agrees(pair):
    """dicom-anonymizer carries PS3.15 table E.1-1: each attribute in it is empty, replaced or ours."""
    tables = pytest.importorskip(
        "dicomanonymizer.dicom_anonymization_databases.dicomfields_2024b",
        reason="dicom-anonymizer, which holds PS3.15's table, is not installed",
    )
    source, written = pair
    listed = {tuple(tag[:2]) for tag in tables.ALL_TAGS if len(tag) == 2}
    ours = {
        "PatientName": "CTFLOW^",
        "PatientID": "CTFLOW-",
        "StudyID": "1",
        "SeriesDescription": "ctflow",
        "DerivationDescription": "fbp",
    }
    header, original = pydicom.dcmread(written[0]), source.source.headers[0]
    for element in header.iterall():
        if (element.tag.group, element.tag.element) not in listed or element.value in ("", None):
            continue
        if element.VR == "UI":
            assert element.value != original.get(element.keyword)
        else:
            assert str(element.value).startswith(ours[element.keyword]), element.keyword


def test_a_source_without_identity_stays_lawful(tmp_path):
    for file in toy_series(tmp_path / "in"):
        edit(file, setting(PatientIdentityRemoved="YES", DeidentificationMethod="", StudyDate="", StudyID=""))
        edit(file, lambda header: [header.pop(name, None) for name in ("AccessionNumber", "PatientSex")])
    source = read_series(tmp_path / "in")
    for anew in (False, True):
        written = write_series(source, tmp_path / f"out{anew}", like=source, description="x", deidentify=anew)
        assert validate(written) == []
