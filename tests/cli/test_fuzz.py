"""Whatever a file holds, reading it ends soon, in a valid volume or in one of ctflow's errors.

`CTFLOW_FUZZ=5000 pytest tests/cli/test_fuzz.py` tries more; no example may take ten seconds of the processor.
"""

from __future__ import annotations

import os
import resource
import time
import zipfile
from collections import Counter
from importlib.util import find_spec

import pydicom
import pytest
import torch

hypothesis = pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pydicom.datadict import dictionary_VR  # noqa: E402

from ctflow.dicom import ReadOptions, inspect_folder, read_series  # noqa: E402
from ctflow.dicom.reading.files import quiet  # noqa: E402
from ctflow.errors import CTFlowError  # noqa: E402
from ctflow.nifti import is_nifti, read_nifti, write_nifti  # noqa: E402
from tests.dicom.files import CANARY, cylinder, enhanced, plant_canary, toy_series  # noqa: E402

EXAMPLES = int(os.environ.get("CTFLOW_FUZZ", "100"))
MEMORY_MIB = 400  # what decoders, hypothesis and the largest harmless lie (8 MiB of pixels) may add
SYNTAXES = {
    "rle": "1.2.840.10008.1.2.5",
    "j2k": "1.2.840.10008.1.2.4.90",
}
if find_spec("jpeg_ls"):  # pyjpegls, of the extra `codecs`: it is not for every Python
    SYNTAXES["jpeg-ls"] = "1.2.840.10008.1.2.4.80"
TAGS = [
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ReconstructionDiameter",
    "ImageType",
    "Modality",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "InstanceNumber",
    "AcquisitionNumber",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BurnedInAnnotation",
    "KVP",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "SpecificCharacterSet",
    "TransferSyntaxUID",
    "PixelData",
]
WILD = [
    *("", "0", "-1", "1e400", "nan", "-inf", "65535", "2147483647", "99999999999999999999", "x", "1\\2\\3"),
    *("-0.0", "1e-320", "1\\0\\0\\0\\1\\0", "0\\0\\0\\0\\0\\0", "YES", "HU", "01", "\\\\\\", "ISO_IR 192"),
    *("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
]
outcomes: Counter[str] = Counter()
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,  # judge looks at the processor's time: the clock on the wall runs for others too
    derandomize=EXAMPLES <= 100,
    database=None,
    phases=[Phase.generate],  # shrinking takes minutes and a smaller file says no more
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.large_base_example,
    ],
)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Small valid files of every kind that is read, as bytes, with a patient's name in them."""
    home = tmp_path_factory.mktemp("seeds")
    files = sorted(plant_canary(home / "toy", toy_series(home / "toy", slices=2)).iterdir())
    found = {"plain": files[0].read_bytes(), "frames": enhanced(files, home / "frames").read_bytes()}
    for name, syntax in SYNTAXES.items():
        dataset = pydicom.dcmread(files[0])
        dataset.compress(syntax)
        dataset.save_as(home / name)
        found[name] = (home / name).read_bytes()
    dataset = pydicom.dcmread(files[0])
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(home / "deflated")
    found["deflated"] = (home / "deflated").read_bytes()
    with zipfile.ZipFile(home / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    found["zip"] = (home / "zip").read_bytes()
    for name in ("x.nii", "x.nii.gz"):
        found[name] = write_nifti(cylinder(2), home / name).read_bytes()
    return Seeds(found)


class Seeds(dict):
    """Files by kind; hypothesis prints it with every failure."""

    def __repr__(self):
        return "seeds"


def damaged(
    data: bytes, flips: list[tuple[float, int]], cut: float | None, repeat: tuple[float, float] | None
) -> bytes:
    """Bytes with some replaced, a stretch doubled, and an end cut off."""
    whole = bytearray(data)
    for place, value in flips:
        whole[int(place * (len(whole) - 1))] = value
    if repeat is not None:
        first, last = sorted(int(place * len(whole)) for place in repeat)
        whole[first:first] = whole[first:last][:4096]
    return bytes(whole if cut is None else whole[: int(cut * len(whole))])


PLACE = st.floats(0, 1)
# Headers lie at the front, where damage tells most.
FRONT = st.one_of(PLACE, PLACE.map(lambda place: place**3))
BYTES = {
    "flips": st.lists(
        st.tuples(FRONT, st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)), max_size=12
    ),
    "cut": st.none() | st.none() | PLACE,
    "repeat": st.none() | st.none() | st.tuples(PLACE, PLACE),
}


def judge(file) -> str:
    """The verdict on one file; anything but a valid volume or a typed error fails the test."""
    started = time.process_time()
    try:
        volume = read_nifti(file) if is_nifti(file) else read_series(file, options=ReadOptions())
    except CTFlowError as error:
        assert CANARY not in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        verdict = type(error).__name__
    else:
        assert volume.data.dtype == torch.float32
        assert volume.data.shape == volume.mask.shape == torch.Size(volume.geometry.shape)
        assert torch.isfinite(volume.data).all()
        verdict = "volume"
    try:
        if not is_nifti(file):
            assert CANARY not in str(inspect_folder(file))
    except CTFlowError as error:
        assert CANARY not in str(error)  # noqa: PT017
    assert time.process_time() - started < 10
    outcomes[verdict] += 1
    return verdict


@pytest.fixture(scope="module", autouse=True)
def memory():
    """Peak memory of the whole file stays where small files leave it."""
    read = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # noqa: E731
    before = read()
    yield
    print(
        f"\nfuzzing: {sum(outcomes.values())} files, {dict(outcomes)}; peak memory +{read() - before:.0f} MiB"
    )
    assert read() - before < MEMORY_MIB


def test_seeds_are_valid(seeds, tmp_path):
    for data in seeds.values():
        (tmp_path / "file").write_bytes(data)
        assert judge(tmp_path / "file") == "volume"


@FUZZ
@given(kind=st.sampled_from([*SYNTAXES, "plain", "frames", "deflated", "zip", "x.nii", "x.nii.gz"]), **BYTES)
def test_damaged_bytes(seeds, tmp_path, kind, flips, cut, repeat):
    file = tmp_path / f"{CANARY}.dcm"
    file.write_bytes(damaged(seeds[kind], flips, cut, repeat))
    judge(file)


@FUZZ
@given(
    kind=st.sampled_from([*SYNTAXES, "plain", "frames"]),
    edits=st.lists(
        st.tuples(st.sampled_from(TAGS), st.sampled_from(WILD), st.booleans()), min_size=1, max_size=4
    ),
)
def test_wild_values(seeds, tmp_path, kind, edits):
    file = tmp_path / f"{CANARY}.dcm"
    file.write_bytes(seeds[kind])
    with quiet():
        dataset = pydicom.dcmread(file)
        for tag, value, delete in edits:
            target = dataset.file_meta if tag == "TransferSyntaxUID" else dataset
            if delete:
                target.pop(tag, None)
            else:
                target[tag] = raw(tag, value)
        try:
            dataset.save_as(file)
        except Exception:  # pydicom cannot write this one
            return
    judge(file)


def raw(tag: str, value: str) -> pydicom.DataElement:
    """An element with a value that its writer should not have written."""
    form = dictionary_VR(tag) if tag not in ("PixelPaddingValue", "PixelPaddingRangeLimit") else "SS"
    if tag == "PixelData":
        return pydicom.DataElement(tag, "OW", value.encode().ljust(2, b"\0"))
    if form in ("US", "SS"):
        return pydicom.DataElement(tag, form, int("".join(c for c in value if c.isdigit()) or "0") % 32768)
    element = pydicom.DataElement(tag, "LO", None)
    element.VR, element._value = form, value
    return element


@pytest.mark.parametrize("kind", ["plain", "frames", *SYNTAXES])
@pytest.mark.parametrize(
    "lie",
    [
        {"Rows": 65535, "Columns": 65535},
        {"BitsAllocated": 64},
        {"BitsAllocated": 13},
        {"BitsAllocated": 0},
        {"NumberOfFrames": 2**31 - 1},
        {"NumberOfFrames": -1},
        {"SamplesPerPixel": 65535},
        {"Rows": 0},
    ],
)
def test_sizes_that_lie(seeds, tmp_path, kind, lie):
    file = tmp_path / "x.dcm"
    file.write_bytes(seeds[kind])
    dataset = pydicom.dcmread(file)
    for name, value in lie.items():
        setattr(dataset, name, value)
    with quiet():
        dataset.save_as(file)
    assert judge(file) in ("UnreadableError", "SeriesError")


@pytest.mark.parametrize("kind", ["jpeg-ls", "j2k"])
def test_a_codestream_larger_than_its_header_is_not_decoded(seeds, tmp_path, kind):
    """The header claims 32 × 32 and the compressed image 65535 rows: a decoder would allocate them."""
    if kind not in SYNTAXES:
        pytest.skip("pyjpegls (the extra `codecs`), which codes JPEG-LS, is not here")
    data = bytearray(seeds[kind])
    rows = data.find(b"\xff\xf7") + 5 if kind == "jpeg-ls" else data.find(b"\xff\x4f\xff\x51") + 14
    assert data[rows : rows + 2] == b"\0\x20"
    data[rows : rows + 2] = b"\xff\xff"
    (tmp_path / "x.dcm").write_bytes(data)
    with pytest.raises(CTFlowError, match="but the compressed image has 65535 × 32"):
        read_series(tmp_path / "x.dcm")
