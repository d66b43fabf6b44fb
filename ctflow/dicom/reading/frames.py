"""Flatten the functional groups of multi-frame CT to one header per frame, as in classic images."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from ctflow.errors import UnreadableError

MULTI_FRAME = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)

# What a functional group may say although the top level says something else (PS3.3 C.7.6.16).
# fmt: off
_PER_FRAME = {
    "PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
}
# fmt: on


def is_multi_frame(header: Dataset) -> bool:
    """Whether the file is an Enhanced or a Legacy Converted Enhanced CT image."""
    return header.get("SOPClassUID") in MULTI_FRAME


def flattened(header: Dataset) -> list[Dataset]:
    """Return one header per frame, in the order of the pixels, as if each frame were a file of its own.

    `InstanceNumber` and `ReferencedFrameNumber` become the number of the frame, from 1.

    Raises:
        UnreadableError: the functional groups do not describe as many frames as the file claims.
    """
    frames = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if not frames or len(frames) != int(header.get("NumberOfFrames") or 1):
        raise UnreadableError("functional groups and NumberOfFrames disagree")
    shared = Dataset()
    for element in header:
        if element.VR != "SQ" and not element.tag.is_private:
            shared.add(element)
    shared.file_meta = header.file_meta
    for item in list(header.get("SharedFunctionalGroupsSequence") or [])[:1]:
        _lay(item, shared)
    return [_frame(shared, item, number) for number, item in enumerate(frames, start=1)]


def _frame(shared: Dataset, groups: Dataset, number: int) -> Dataset:
    frame = Dataset()
    frame.update(shared)
    frame.file_meta = shared.file_meta
    _lay(groups, frame)
    # New elements: setting an attribute would change the one that all frames share.
    if frame.get("FrameType"):
        frame.add_new("ImageType", "CS", frame.FrameType)
    if "FrameAcquisitionNumber" in frame:
        frame.add_new("AcquisitionNumber", "IS", frame.FrameAcquisitionNumber)
    frame.add_new("InstanceNumber", "IS", number)
    frame.add_new("ReferencedFrameNumber", "IS", number)
    return frame


def _lay(groups: Dataset, onto: Dataset) -> None:
    """Copy the attributes of every functional group to the top, where they do not contradict it."""
    for element in _attributes(groups):
        if element.keyword in _PER_FRAME or element.keyword not in onto:
            onto.add(element)


def _attributes(groups: Dataset) -> Iterator[DataElement]:
    for group in groups:
        if group.VR == "SQ" and len(group.value):
            yield from (element for element in group.value[0] if element.keyword)
