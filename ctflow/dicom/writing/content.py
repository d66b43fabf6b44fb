"""Meaning of the voxels of a written series: an image, its spread, or a difference of images."""

from __future__ import annotations

from dataclasses import dataclass

from ctflow.errors import UsageError

Window = tuple[str, int, int]
"""Name, centre and width, HU."""


@dataclass(frozen=True)
class Content:
    """How one kind of content is written as a CT series.

    Args:
        pixel_kind: second value of ImageType; SECONDARY means that the pixels are not an image of the
            patient.
        outside_hu: value outside the mask, HU.
        finest: largest step of the stored numbers, HU.
        windows: window presets for a viewer.
        warning: text that DerivationDescription must contain.
    """

    pixel_kind: str
    outside_hu: int
    finest: float
    windows: tuple[Window, ...]
    warning: str = ""


CONTENTS = {
    "image": Content(
        "PRIMARY", -1024, 1.0, (("SOFT TISSUE", 40, 400), ("LUNG", -600, 1500), ("BONE", 300, 1500))
    ),
    # Spreads of a few HU matter, and none exceeds the 3276 HU that 16 bits hold in steps of 0.1.
    "spread": Content(
        "SECONDARY", 0, 0.1, (("SPREAD", 50, 100),), "standard deviation in HU, not CT numbers"
    ),
    "difference": Content("SECONDARY", 0, 1.0, (("DIFFERENCE", 0, 200),), "difference in HU, not CT numbers"),
}


def find_content(name: str) -> Content:
    """Find the kind of content of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in CONTENTS:
        raise UsageError(f"content '{name}' is unknown; give {', '.join(CONTENTS)}")
    return CONTENTS[name]
