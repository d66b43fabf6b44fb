"""Packages that decode each transfer syntax, in order of preference, and which syntaxes are lossy."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

# Transfer syntax UID (DICOM PS3.5 annex A, behind 1.2.840.10008.1.2): the plugin that comes first, so that
# lossy images are the same wherever they are read, and the package or extra that brings it.
_PLUGINS = {
    ".5": ("pydicom", "pydicom"),  # pylibjpeg-rle, if it is there, panics on damaged data, past every except
    ".4.50": ("gdcm", "python-gdcm"),
    ".4.51": ("pylibjpeg", "ctflow[dicom-gpl]"),  # 12 bits: gdcm and Pillow refuse them
    ".4.57": ("gdcm", "python-gdcm"),
    ".4.70": ("gdcm", "python-gdcm"),
    ".4.80": ("pyjpegls", "ctflow[codecs]"),
    ".4.81": ("pyjpegls", "ctflow[codecs]"),
    ".4.90": ("pylibjpeg", "pylibjpeg-openjpeg"),
    ".4.91": ("pylibjpeg", "pylibjpeg-openjpeg"),
    ".4.201": ("pylibjpeg", "pylibjpeg-openjpeg"),
    ".4.202": ("pylibjpeg", "pylibjpeg-openjpeg"),
    ".4.203": ("pylibjpeg", "pylibjpeg-openjpeg"),
}
_ROOT = "1.2.840.10008.1.2"

# Lossy (or possibly lossy) transfer syntaxes and their LossyImageCompressionMethod, PS3.3 C.7.6.1.1.5.1.
LOSSY_METHODS = {
    f"{_ROOT}.4.50": "ISO_10918_1",
    f"{_ROOT}.4.51": "ISO_10918_1",
    f"{_ROOT}.4.53": "ISO_10918_1",
    f"{_ROOT}.4.55": "ISO_10918_1",
    f"{_ROOT}.4.81": "ISO_14495_1",
    f"{_ROOT}.4.91": "ISO_15444_1",
    f"{_ROOT}.4.203": "ISO_15444_15",
}


@dataclass(frozen=True)
class Decoder:
    """A transfer syntax and the decoders that read it here.

    Args:
        syntax: its name in DICOM.
        uid: its UID.
        plugins: installed plugins of pydicom that read it, the preferred one first.
        package: package to install where there is none, or an extra of ctflow's.
    """

    syntax: str
    uid: str
    plugins: tuple[str, ...]
    package: str


def decoder_table() -> list[Decoder]:
    """List every compressed transfer syntax that some package decodes, with its installed decoders."""
    return [
        Decoder(UID(_ROOT + tail).name, _ROOT + tail, plugins(_ROOT + tail), package)
        for tail, (_, package) in _PLUGINS.items()
    ]


def plugins(syntax: str) -> tuple[str, ...]:
    """Installed plugins of pydicom for a compressed transfer syntax, the preferred one first."""
    try:
        found = get_decoder(UID(syntax)).available_plugins
    except NotImplementedError:  # so pydicom says that it knows no decoder of this syntax
        return ()
    first = _PLUGINS.get(syntax.removeprefix(_ROOT), ("",))[0]
    return tuple(sorted(found, key=lambda name: (name != first, name)))


def available(syntax: str) -> bool:
    """Whether an installed package decodes the transfer syntax."""
    try:
        return bool(get_decoder(UID(syntax)).is_available)
    except NotImplementedError:  # as above
        return False


def package(syntax: str) -> str | None:
    """Package that decodes a transfer syntax; None where there is none."""
    known = _PLUGINS.get(syntax.removeprefix(_ROOT))
    return known and known[1]


def name(syntax: str) -> str:
    """Name of a transfer syntax; a text that is not a UID of the standard is not repeated."""
    known = UID(syntax).name
    return f"{known} ({syntax})" if known != syntax else "that is not in the standard"
