"""Every bad series gets one line, its own exit status, and no output; and no patient's name goes anywhere."""

import shutil

import pydicom
import pytest

from ctflow.cli import main
from ctflow.datasets.synthetic import write_toy_series

CANARY = "CANARY7431"
FAST = [
    "--set",
    'method={name="fbp"}',
    "--set",
    'reference={name="sirt", iterations=2}',
    "--set",
    "beside=[]",
]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Six slices of one patient called CANARY, in files called so."""
    folder = write_toy_series(tmp_path_factory.mktemp("toy") / "series", slices=6, size=64)
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.PatientName = dataset.PatientID = dataset.AccessionNumber = CANARY
        dataset.save_as(folder / f"{CANARY}-{path.name}")
        path.unlink()
    return folder


@pytest.fixture
def series(healthy, tmp_path):
    return shutil.copytree(healthy, tmp_path / "in" / "series")


def edit(path, **tags):
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def files(folder):
    return sorted(folder.iterdir())


def empty(folder):
    for path in files(folder):
        path.unlink()


def text_file(folder):
    (folder / f"{CANARY}-x.dcm").write_text("not DICOM at all")


def truncated(folder):
    path = files(folder)[1]
    path.write_bytes(path.read_bytes()[:-3000])


def missing_slice(folder):
    files(folder)[2].unlink()


def two_patients(folder):
    for number, path in enumerate(files(folder)):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = dataset.PatientName = f"{CANARY}-OTHER"
        dataset.SeriesInstanceUID = "1.2.3"
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / f"other-{number}.dcm")


def tilted(folder):
    for number, path in enumerate(files(folder)):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, float(y) + 2.0 * number, z])


def duplicated_position(folder):
    first, second = files(folder)[:2]
    edit(second, ImagePositionPatient=pydicom.dcmread(first).ImagePositionPatient)


def rgb_page(folder):
    for path in files(folder)[1:]:
        path.unlink()
    page = files(folder)[0]
    edit(page, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8)
    edit(page, BitsStored=8, HighBit=7, PixelData=bytes(64 * 64 * 3))


def magnetic_resonance(folder):
    for path in files(folder):
        edit(path, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")


def not_hu(folder):
    for path in files(folder):
        edit(path, RescaleType="US")


@pytest.mark.parametrize(
    ("spoil", "status", "said"),
    [
        (empty, 2, "expected a CT series"),
        (text_file, 4, "file #"),
        (truncated, 4, "file #2"),
        (missing_slice, 3, "missing"),
        (two_patients, 3, "2 patients"),
        (tilted, 3, "tilt"),
        (duplicated_position, 3, "one position"),
        (rgb_page, 3, "RGB"),
        (magnetic_resonance, 3, "MR"),
        (not_hu, 3, "HU"),
    ],
)
def test_bad_series(*, spoil, status, said, series, tmp_path, capsys):
    spoil(series)
    assert main(["run", "sparse-view-60", str(series), "-o", str(tmp_path / "out"), *FAST]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert said in printed.err
    assert CANARY not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("spoil", [text_file, truncated, missing_slice, two_patients, tilted, rgb_page])
def test_inspect_lists_what_run_refuses(spoil, series, capsys):
    spoil(series)
    assert main(["inspect", str(series)]) == 0
    printed = capsys.readouterr()
    assert CANARY not in printed.out + printed.err


def test_a_good_series_leaves_no_name_in_what_is_written(series, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["run", "sparse-view-60", str(series), "-o", str(out), *FAST]) == 0
    printed = capsys.readouterr()
    assert CANARY not in printed.out + printed.err
    written = [path for path in out.rglob("*") if path.is_file()]
    # Series and side-cars of two methods, the report, and its slices of three images with their index.
    assert len(written) == 2 * 6 + 4 + 3 * 6 + 1
    for path in written:
        assert CANARY not in path.name
        # The derived series belongs to the patient's study, so its header alone keeps the patient.
        assert (CANARY.encode() in path.read_bytes()) == (path.suffix == ".dcm")
    assert str(series) not in (out / "report.json").read_text() + (out / "report.html").read_text()
