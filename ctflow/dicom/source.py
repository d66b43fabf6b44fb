"""Origin of a volume: headers without pixels, a digest, and warnings of the reader."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom.dataset import Dataset


@dataclass(frozen=True, repr=False)
class Source:
    """The DICOM slices behind a volume, in order; `source[a:b]` belongs to `volume.slices(a, b)`.

    Args:
        headers: one data set per slice, without pixels; empty UIDs are filled in.
        digests: SHA-256 of pixels and geometry, per slice.
        files: paths of the slices; never printed.
        warnings: warnings for the reader of a report.
        skipped: what else was in the folder and why it was left out.
    """

    headers: tuple[Dataset, ...]
    digests: tuple[str, ...]
    files: tuple[Path, ...]
    warnings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Digest of pixels (HU) and geometry of all slices; reveals nothing about the patient."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    @property
    def lossy(self) -> bool:
        """Whether any slice has been through lossy compression."""
        return any(header.get("LossyImageCompression") == "01" for header in self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    def __getitem__(self, part: slice) -> Source:
        return replace(self, headers=self.headers[part], digests=self.digests[part], files=self.files[part])

    def __repr__(self) -> str:
        return f"Source({len(self)} slices, sha256 {self.sha256[:8]}…)"
