"""Compressed images: what is cut or damaged is refused, whatever the decoder would make of it, and soon."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames

from ctflow.dicom import read_series
from ctflow.dicom.reading import codec
from ctflow.dicom.reading.codestream import CodestreamError, coded_size
from ctflow.errors import DecoderError, UnreadableError
from tests.dicom.files import coded, codestream, edit, enhanced, setting, toy_series, with_codestreams

ROOT = "1.2.840.10008.1.2"
RLE, BASELINE, JPEG, JPEG_SV1 = f"{ROOT}.5", f"{ROOT}.4.50", f"{ROOT}.4.57", f"{ROOT}.4.70"
JPEG_LS, JPEG_LS_LOSSY, J2K, J2K_LOSSY = (f"{ROOT}.4.{n}" for n in (80, 81, 90, 91))
LOSSY = {JPEG_LS_LOSSY: {"jls_error": 3}, J2K_LOSSY: {"j2k_cr": [4]}}
CODERS = [RLE, BASELINE, JPEG, JPEG_SV1, JPEG_LS, JPEG_LS_LOSSY, J2K, J2K_LOSSY]
MARKED = [syntax for syntax in CODERS if syntax != RLE]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A sound image of a coder, and its HU."""
    home = tmp_path_factory.mktemp("images")
    plain = toy_series(home / "toy", slices=1)[0]

    @cache
    def image_of(syntax):
        file = home / syntax
        shutil.copy(plain, file)
        if syntax == BASELINE:
            stored = (np.arange(1024) // 8).astype("u1").tobytes()
            edit(file, setting(BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0))
            edit(file, setting(PixelData=stored))
        coded(file, syntax, **LOSSY.get(syntax, {}))
        return file, read_series(file).data

    return image_of


@pytest.fixture
def image(images, tmp_path):
    """A copy to spoil: the file of a coder, its codestream and its HU."""

    def copied(syntax):
        file, hu = images(syntax)
        return shutil.copy(file, tmp_path / "x.dcm"), codestream(file), hu

    return copied


@pytest.mark.parametrize("syntax", CODERS)
def test_an_image_cut_anywhere_is_refused(image, syntax):
    file, data, _ = image(syntax)
    data = data.rstrip(b"\0")
    for k in range(20):
        cut = data[: (2 * k + 1) * len(data) // 40]
        with pytest.raises(UnreadableError, match="file #1"):
            read_series(with_codestreams(file, cut + b"\0" * (len(cut) % 2)))


def test_every_real_coder_cut_anywhere_is_refused(data_dir, tmp_path):
    files = [
        file
        for file in sorted((data_dir / "dicom/transfer-syntaxes").glob("CTImage*"))
        if pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID.is_encapsulated
    ]
    assert len(files) == 11
    for source in files:
        dataset, data = pydicom.dcmread(source), codestream(source).rstrip(b"\0")
        for k in range(20):
            dataset.PixelData = encapsulate([data[: (2 * k + 1) * len(data) // 40]], has_bot=False)
            dataset.save_as(tmp_path / "x.dcm")
            with pytest.raises((UnreadableError, DecoderError)):
                read_series(tmp_path / "x.dcm")


@pytest.mark.parametrize("syntax", [JPEG, JPEG_SV1, JPEG_LS, J2K])
def test_an_image_without_its_middle_is_refused(image, syntax):
    """Its end marker is there: JPEG 2000 counts its bytes, JPEG and JPEG-LS run out of samples."""
    file, data, _ = image(syntax)
    data = data.rstrip(b"\0")
    half = len(data) // 2
    with pytest.raises(UnreadableError, match="file #1"):
        read_series(with_codestreams(file, data[:half] + data[half + 20 :]))


@pytest.mark.parametrize("syntax", CODERS)
def test_flipped_bytes_are_refused_or_change_pixels_alone(image, syntax):
    """Most coders carry no check sum, so that a flipped sample may pass; nothing hangs or ends the reader."""
    file, data, hu = image(syntax)
    random = np.random.default_rng(7)
    refused = 0
    for _ in range(30):
        spoiled = bytearray(data)
        for place in random.integers(0, len(data), 3):
            spoiled[place] ^= 1 << random.integers(8)
        try:
            assert read_series(with_codestreams(file, bytes(spoiled))).data.shape == hu.shape
        except UnreadableError:
            refused += 1
    assert refused > 0
    assert torch.equal(read_series(with_codestreams(file, data)).data, hu)


HANGING = """
import sys
sys.path.append(sys.argv[1])
import codec_process
codec_process._decoded = lambda request, data: sum(iter(int, 1))
codec_process.main()
"""


def test_a_decoder_that_never_returns_is_ended(image, monkeypatch):
    file, _, hu = image(JPEG_LS)
    command = [sys.executable, "-P", "-c", HANGING, str(Path(codec.__file__).parent)]
    monkeypatch.setattr(codec, "_COMMAND", command)
    monkeypatch.setattr(codec, "_SECONDS", 0.0)
    monkeypatch.setattr(codec, "_idle", defaultdict(list))
    with pytest.raises(UnreadableError, match="truncated or damaged"):
        read_series(file)
    assert not any(codec._idle.values())  # it has ended
    monkeypatch.undo()
    assert torch.equal(read_series(file).data, hu)


def test_a_decoder_that_ends_its_process_does_not_end_the_reader(image, monkeypatch):
    file, _, hu = image(JPEG_LS)
    monkeypatch.setattr(codec, "_COMMAND", [*codec._COMMAND[:1], "-c", "print('{}')"])
    monkeypatch.setattr(codec, "_idle", defaultdict(list))
    with pytest.raises(UnreadableError, match="truncated or damaged"):
        read_series(file)
    monkeypatch.undo()
    assert torch.equal(read_series(file).data, hu)


def test_a_process_whose_pipes_were_closed_is_not_used_again(image):
    """As a garbage collector may leave it that finds an abandoned reader."""
    file, _, hu = image(RLE)
    (*_, idle) = codec._idle[os.getpid()]
    idle._process.stdin.close()
    assert not idle.usable
    assert torch.equal(read_series(file).data, hu)
    assert idle not in codec._idle[os.getpid()]


@pytest.mark.parametrize("command", [["/nowhere/python"], ["/bin/false"]])
def test_a_decoding_process_that_does_not_start_is_no_damage(image, monkeypatch, command):
    monkeypatch.setattr(codec, "_COMMAND", command)
    monkeypatch.setattr(codec, "_idle", defaultdict(list))
    with pytest.raises(DecoderError, match="does not start"):
        read_series(image(J2K)[0])


def test_what_a_decoder_complains_of_is_refused(image):
    """libjpeg fills up what is missing in front of the end marker, and only prints that it did."""
    file, data, _ = image(BASELINE)
    data = data.rstrip(b"\0")
    with pytest.raises(UnreadableError, match="file #1"):
        read_series(with_codestreams(file, data[: len(data) * 2 // 3] + b"\xff\xd9"))


@pytest.mark.parametrize("syntax", MARKED)
def test_two_images_for_one_frame_are_refused(image, syntax):
    file, data, _ = image(syntax)
    data = data.rstrip(b"\0")
    with pytest.raises(UnreadableError, match="bytes follow its end"):
        read_series(with_codestreams(file, data + data))
    with pytest.raises(UnreadableError, match="expected 1 compressed images but there are 2"):
        read_series(with_codestreams(file, data, data))


def test_an_rle_image_with_a_second_one_behind_it_is_refused(image):
    file, data, _ = image(RLE)
    with pytest.raises(UnreadableError, match="expected 1 compressed images but there are 2"):
        read_series(with_codestreams(file, data, data))


@pytest.mark.parametrize("syntax", MARKED)
def test_padding_behind_the_end_is_no_damage(image, syntax):
    file, data, hu = image(syntax)
    assert torch.equal(read_series(with_codestreams(file, data.rstrip(b"\0") + b"\0" * 7)).data, hu)


def test_size_needs_a_codestream(image):
    _, data, _ = image(J2K)
    assert coded_size(data) == (32, 32, 1)
    for wrong in (b"", b"no image", b"\xff\xd8", b"\xff\xd8\xff\xd9", data[:50]):
        with pytest.raises(CodestreamError):
            coded_size(wrong)


@pytest.fixture
def frames(tmp_path):
    """Six frames in JPEG-LS, one codestream each."""
    file = coded(enhanced(toy_series(tmp_path / "classic"), tmp_path / "e" / "one"), JPEG_LS)
    hu = read_series(file).data
    return file, list(generate_frames(pydicom.dcmread(file).PixelData, number_of_frames=6)), hu


@pytest.mark.parametrize("many", [5, 7])
def test_more_or_fewer_frames_than_announced_are_refused(frames, many):
    file, coded, _ = frames
    with pytest.raises(UnreadableError, match=f"expected 6 compressed images but there are {many}"):
        read_series(with_codestreams(file, *(coded * 2)[:many]))


def test_frames_in_several_fragments_are_put_together(frames):
    file, coded, hu = frames
    pieces = encapsulate(coded, fragments_per_frame=3, has_bot=False)
    edit(file, setting(PixelData=pieces))
    assert torch.equal(read_series(file).data, hu)


def test_a_table_of_offsets_must_point_at_the_frames(frames):
    file, coded, hu = frames
    right = encapsulate(coded, has_bot=True)
    edit(file, setting(PixelData=right))
    assert torch.equal(read_series(file).data, hu)
    wrong = bytearray(right)
    struct.pack_into("<L", wrong, 8 + 4 * 3, struct.unpack_from("<L", right, 8 + 4 * 4)[0])
    edit(file, setting(PixelData=bytes(wrong)))
    with pytest.raises(UnreadableError, match="offset table"):
        read_series(file)


@pytest.mark.parametrize("spoiled", [None, 0, 1])
def test_an_extended_table_must_describe_the_frames(frames, spoiled):
    file, coded, hu = frames
    data, *tables = encapsulate_extended(coded)
    if spoiled is not None:
        tables[spoiled] = tables[spoiled][8:] + tables[spoiled][:8]
    names = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    edit(file, setting(PixelData=data, **dict(zip(names, tables, strict=True))))
    if spoiled is None:
        assert torch.equal(read_series(file).data, hu)
    else:
        with pytest.raises(UnreadableError, match="offset table"):
            read_series(file)
