"""Write a map of real numbers, such as a standard deviation, as a DICOM Parametric Map; needs highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from ctflow.dicom.reading.files import quiet
from ctflow.system.files import whole_file
from ctflow.system.optional import optional_library
from ctflow.system.version import full_version

if TYPE_CHECKING:
    from ctflow.volume import Volume

# PS3.3 A.75; the quantity and the unit of the values (SNOMED CT and UCUM).
_DEVIATION = ("386136009", "SCT", "Standard deviation")
_HOUNSFIELD = ("[hnsf'U]", "UCUM", "Hounsfield unit")


def require_highdicom() -> None:
    """Refuse where highdicom is missing.

    Raises:
        BackendError: highdicom is not installed.
    """
    with optional_library("highdicom", "pip install 'ctflow[parametric-map]'"):
        import highdicom  # noqa: F401


@quiet()
def write_parametric_map(
    spread: Volume, path: Path, *, of: Sequence[Path], description: str, meaning: str = "standard deviation"
) -> None:
    """Write standard deviations as one Parametric Map with 32-bit floating point values, in HU.

    Few viewers and archives know this kind of object; for others use `write_series`.

    Args:
        spread: standard deviations (Z, Y, X) in HU; 0 outside the mask.
        path: file to write.
        of: files of the image series, in slice order, whose patient, study and positions the map shares.
        description: SeriesDescription, at most 64 characters.
        meaning: what the values are, at most 60 characters.

    Raises:
        BackendError: highdicom is not installed.
        OutputError: the file exists or cannot be written.

    References:
        DICOM PS3.3 A.75 (Parametric Map); Bridge et al. 2022, J. Digit. Imaging 35, 1719 (highdicom).
    """
    require_highdicom()
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.coding import Code

    images = [pydicom.dcmread(file) for file in of]
    values = np.where(spread.mask.cpu().numpy(), spread.data.detach().cpu().numpy(), 0).astype(np.float32)
    mapping = RealWorldValueMapping(
        lut_label="SD",
        lut_explanation=f"{meaning}, HU",
        unit=Code(*_HOUNSFIELD),
        value_range=(0.0, float(max(values.max(), 1.0))),
        slope=1.0,
        intercept=0.0,
        quantity_definition=Code(*_DEVIATION),
    )
    origin = [str(image.SOPInstanceUID) for image in images]
    parametric_map = ParametricMap(
        source_images=images,
        pixel_array=values,
        series_instance_uid=generate_uid(entropy_srcs=["map", *origin]),
        series_number=int(images[0].SeriesNumber) + 300,
        sop_instance_uid=generate_uid(entropy_srcs=["map instance", *origin]),
        instance_number=1,
        manufacturer="ctflow",
        manufacturer_model_name="ctflow",
        software_versions=full_version(),
        device_serial_number="none",
        contains_recognizable_visual_features=True,  # a value is required, and the other is not known
        real_world_value_mappings=[mapping],
        window_center=50,
        window_width=100,
        content_label="SD",
        content_description=f"{meaning}, HU",
    )
    if "Laterality" in images[0]:  # must be present, if empty, where the body part could have a side
        parametric_map.Laterality = images[0].Laterality
    parametric_map.SeriesDescription = description
    with whole_file(path) as new:
        parametric_map.save_as(new)
