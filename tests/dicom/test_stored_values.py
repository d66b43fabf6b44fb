"""Bits of words to CT numbers: shifted, sign-extended or refused by what the words hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctflow.dicom import read_series
from ctflow.errors import SeriesError, UnreadableError
from tests.dicom.files import coded, cylinder, edit, item, setting, toy_series

HU = cylinder().data[0].numpy().astype(np.int64)  # -1000 to 500
BONE = np.clip(HU + np.hypot(*np.mgrid[-4:28, -4:28]).astype(int) * 40, -1000, 3000)  # slopes as tissue has


def image(folder, words, intercept, **tags):
    """One slice with these words in 16 bits."""
    file = toy_series(folder / "toy")[0]
    data = (np.asarray(words) & 0xFFFF).astype("<u2").tobytes()
    edit(file, setting(RescaleIntercept=str(intercept), PixelData=data, **tags))
    return file


def bits(stored, high, signed):
    return {"BitsStored": stored, "HighBit": high, "PixelRepresentation": signed}


@pytest.mark.parametrize(
    ("words", "intercept", "tags"),
    [
        (HU + 1024, -1024, bits(12, 11, 0)),
        (HU, 0, bits(12, 11, 1)),  # the sign is repeated in the unused bits
        (HU & 0xFFF, 0, bits(12, 11, 1)),  # and where it is not
        (HU & 0x1FFF, 0, bits(13, 12, 1)),
        ((HU + 1024) << 4, -1024, bits(12, 15, 0)),  # at the upper end of the word
        (HU << 4, 0, bits(12, 15, 1)),
        ((HU & 0xFFF) << 2, 0, bits(12, 13, 1)),
        (HU, 0, bits(16, None, 1)),  # no HighBit: the only one it can be
    ],
)
def test_numbers_are_read_out_of_their_words(tmp_path, words, intercept, tags):
    assert np.array_equal(read_series(image(tmp_path, words, intercept, **tags)).data[0].numpy(), HU)


@pytest.mark.parametrize(
    ("words", "tags"),
    [
        (HU + 1024 + ((HU > 0) << 12), bits(12, 11, 0)),  # a bit that nothing explains
        (HU + 4096, bits(12, 11, 0)),  # BitsStored too small
        (HU + 1024, bits(12, 15, 0)),  # HighBit too high
        ((HU + 1024) << 4, bits(12, 11, 0)),  # HighBit too low
        (HU, bits(12, 11, 0)),  # signed, and said to be unsigned
        (HU, bits(16, 15, 0)),
        ((BONE + 1024) & 0xFFF, bits(12, 11, 1)),  # unsigned, and said to be signed
        (HU + 1024, bits(17, 16, 0)),
        (HU + 1024, bits(0, 11, 0)),
        (HU + 1024, bits(12, 10, 0)),
        (HU + 1024, {"BitsAllocated": 8, **bits(8, 7, 0)}),
    ],
)
def test_words_that_contradict_the_header_are_refused(tmp_path, words, tags):
    with pytest.raises(UnreadableError, match="file #1"):
        read_series(image(tmp_path, words, -1024, **tags))


def test_an_overlay_in_unused_bits_is_taken_out_where_it_is_declared(tmp_path):
    words = (HU + 1024) | np.random.default_rng(0).integers(0, 2, HU.shape) << 14
    file = image(tmp_path, words, -1024, **bits(12, 11, 0))
    with pytest.raises(UnreadableError, match="others are in use"):
        read_series(file)

    def declare(dataset):
        dataset.add_new((0x6002, 0x0100), "US", 16)
        dataset.add_new((0x6002, 0x0102), "US", 14)

    edit(file, declare)
    assert np.array_equal(read_series(file).data[0].numpy(), HU)


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"]
)
@pytest.mark.parametrize("repeated", [True, False])
def test_coders_that_repeat_the_sign_and_that_do_not(tmp_path, syntax, repeated):
    words = HU if repeated or not syntax.endswith(".5") else HU & 0xFFF
    file = coded(image(tmp_path, words, 0, **bits(12, 11, 1)), syntax)
    assert np.array_equal(read_series(file).data[0].numpy(), HU)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"])
def test_a_compressed_image_with_the_other_sign_is_refused(tmp_path, syntax):
    """The coder keeps 16 bits, and no unused bit tells what they are: the jumps from -1 to 65535 do."""
    file = coded(image(tmp_path, HU, 0, **bits(16, 15, 1)), syntax)
    edit(file, setting(PixelRepresentation=0))
    with pytest.raises(UnreadableError, match="torn apart"):
        read_series(file)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", ""])
@pytest.mark.parametrize("signed", [0, 1])
def test_sharp_metal_is_no_wrong_sign(tmp_path, syntax, signed):
    hu = HU.copy()
    hu[12:16, 8:12] = 3000 - 2000 * signed
    file = image(tmp_path, hu + 1024 * (not signed), -1024 * (not signed), **bits(12, 11, signed))
    if syntax:
        coded(file, syntax)
    assert np.array_equal(read_series(file).data[0].numpy(), hu)


def test_a_sign_that_changes_within_a_series(tmp_path):
    """Read right where the words allow it, else refused."""
    series = toy_series(tmp_path / "toy")
    edit(series[2], setting(PixelRepresentation=0))
    with pytest.raises(UnreadableError, match=r"file #3.*unsigned"):
        read_series(tmp_path / "toy")
    unsigned = (cylinder().data[2].numpy() + 1024).astype("<u2").tobytes()
    edit(series[2], setting(RescaleIntercept="-1024", PixelData=unsigned))
    assert torch.equal(read_series(tmp_path / "toy").data, cylinder().data)


@pytest.mark.parametrize(
    "tags", [{"RescaleSlope": "2"}, {"RescaleSlope": "1.02"}, {"RescaleIntercept": "-24"}]
)
@pytest.mark.parametrize("changed", [[2], [3, 4, 5]])
def test_a_rescale_that_changes_and_the_pixels_do_not(tmp_path, tags, changed):
    series = toy_series(tmp_path / "toy")
    noise = np.random.default_rng(0).normal(0, 40, (6, 32, 32))
    for k, file in enumerate(series):
        stored = (cylinder().data[k].numpy() + noise[k]).astype("<i2")
        edit(file, setting(PixelData=stored.tobytes(), **(tags if k in changed else {})))
    with pytest.raises(SeriesError, match="RescaleSlope or RescaleIntercept changes within the series"):
        read_series(tmp_path / "toy")


def test_how_to_show_pixels_does_not_change_them(tmp_path):
    file = toy_series(tmp_path / "toy")[0]
    edit(file, setting(PhotometricInterpretation="MONOCHROME1"))
    assert torch.equal(read_series(file).data, cylinder().data[:1])


def test_a_way_to_show_pixels_that_changes_is_refused(tmp_path):
    """One slice of another converter, which turned the pixels around with the tag."""
    series = toy_series(tmp_path / "toy")
    edit(series[2], setting(PhotometricInterpretation="MONOCHROME1"))
    with pytest.raises(SeriesError, match="PhotometricInterpretation changes"):
        read_series(tmp_path / "toy")


def test_indices_of_colours_are_no_ct_numbers(tmp_path):
    series = toy_series(tmp_path / "toy")
    edit(series[3], setting(PhotometricInterpretation="PALETTE COLOR"))
    with pytest.raises(SeriesError, match="not grey values"):
        read_series(tmp_path / "toy")


def test_a_table_instead_of_a_rescale_is_refused(tmp_path):
    series = toy_series(tmp_path / "toy")
    edit(series[3], setting(ModalityLUTSequence=[item(ModalityLUTType="HU")]))
    with pytest.raises(SeriesError, match="ModalityLUTSequence"):
        read_series(tmp_path / "toy")


@pytest.mark.parametrize("signed", [0, 1])
def test_a_narrow_range_stretched_over_all_bits_is_no_wrong_sign(tmp_path, signed):
    """Air beside water spans most of the 65536 words, as exporters of real numbers write them."""
    hu = np.where(HU > -500, 100, -1000)
    hu[10:14, 10:14] = 0
    slope = 1100 / 65535
    words = np.rint((hu + 1000) / slope).astype(np.int64) - 32768 * signed
    tags = {"RescaleSlope": f"{slope:.10g}", **bits(16, 15, signed)}
    file = image(tmp_path, words, f"{-1000 + 32768 * slope * signed:.10g}", **tags)
    assert np.abs(read_series(file).data[0].numpy() - hu).max() < 0.05


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"])
@pytest.mark.parametrize("absent", [True, False])
def test_an_empty_number_of_samples_is_one(tmp_path, syntax, absent):
    file = image(tmp_path, HU, 0, **bits(12, 11, 1))
    if not syntax.endswith("1.2.1"):
        coded(file, syntax)
    edit(file, lambda dataset: setattr(dataset, "SamplesPerPixel", None))
    if absent:
        edit(file, lambda dataset: delattr(dataset, "SamplesPerPixel"))
    assert np.array_equal(read_series(file).data[0].numpy(), HU)


@pytest.mark.parametrize("bits_stored", [None, "absent"])
def test_missing_bits_are_named(tmp_path, bits_stored):
    file = image(tmp_path, HU, 0)
    edit(file, lambda dataset: dataset.pop("BitsStored"))
    if bits_stored is None:
        edit(file, lambda dataset: setattr(dataset, "BitsStored", None))
    with pytest.raises(SeriesError, match="BitsStored missing"):
        read_series(file)
