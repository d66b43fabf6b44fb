"""Where real CT for the benches lies; the product needs none."""

from __future__ import annotations

import os
from pathlib import Path

from ctflow.errors import UsageError


def patients(data: Path | None) -> Path:
    """Folder of the slices that priors are trained and validated on.

    Args:
        data: folder that holds `prior/index.json`; $CTFLOW_TEST_DATA or ../shared/data beside the checkout
            by default.

    Raises:
        UsageError: it is not there.
    """
    default = os.environ.get("CTFLOW_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(data or default) / "prior"
    if not (folder / "index.json").is_file():
        raise UsageError(
            "this bench needs CT slices of patients and finds no prior/index.json; give their folder with "
            "--data or in $CTFLOW_TEST_DATA"
        )
    return folder
