"""Meaning of DICOM status codes and what to do about them."""

from __future__ import annotations

from typing import Any

from ctflow.errors import PacsError

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)

# PS3.4 tables C.4-1 to C.4-3 and B.2-1, PS3.7 annex C; the first half of the code stands for a family.
_MEANINGS = {
    0x0110: "the PACS failed; look into its log",
    0x0122: "the PACS does not offer this service; use another one (--by move, --by get)",
    0x0124: "the PACS does not allow this to our AE title; ask its administrator",
    0xA700: "the PACS is out of resources; free space there and try again",
    0xA701: "the PACS is out of resources; try again later",
    0xA702: "the PACS could not send the images, it may have an old address of ours; correct it there",
    0xA801: "the PACS does not know our AE title as a destination; register it there, or use --by get",
    0xA900: "the PACS does not accept this kind of request or object; give --study as well",
    0xB000: "the PACS could not send some of the images; look into its log",
    0xFE00: "the PACS cancelled the request; try again",
}
_OTHER = "the PACS could not process the request; look into its log"


def meaning(code: int) -> str:
    """Describe a failed status, with its number."""
    known = _MEANINGS.get(code) or _MEANINGS.get(code & 0xFF00) or _OTHER
    return f"{known} (status {code:#06x})"


def code_of(status: Any, timeout_s: float) -> int:
    """The number of a status.

    Raises:
        PacsError: there is none, because the peer stopped answering.
    """
    if "Status" not in status:
        raise PacsError(
            f"the PACS broke the association or was silent for {timeout_s:g} s; try again, or give a longer "
            "--timeout"
        )
    return int(status.Status)
