"""What the voxels of a written series mean: an image, its spread, or a difference of images."""

from __future__ import annotations

from dataclasses import dataclass

from ctflow.errors import UsageError

Window = tuple[str, int, int]
"""Name, centre and width, HU."""


@dataclass(frozen=True)
class Content:
    """How one kind of voxel goes into a CT series.

    Args:
        pixel_kind: second value of ImageType: SECONDARY says that the pixels are no picture of the patient.
        outside_hu: what stands outside the mask, HU.
        finest: step of the stored numbers where the caller wants no finer one, HU.
        windows: presets for a viewer.
        warning: words that DerivationDescription must hold.
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
    "spread": Content("SECONDARY", 0, 0.1, (("SPREAD", 50, 100),), "standard deviation in HU, no CT numbers"),
    "difference": Content("SECONDARY", 0, 1.0, (("DIFFERENCE", 0, 200),), "difference in HU, no CT numbers"),
}


def find_content(name: str) -> Content:
    """The kind of content of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in CONTENTS:
        raise UsageError(f"content '{name}' is unknown; give {', '.join(CONTENTS)}")
    return CONTENTS[name]
