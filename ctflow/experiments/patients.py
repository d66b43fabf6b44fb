"""Where real CT for the benches lies; the product needs none."""

from __future__ import annotations

import os
from pathlib import Path

from ctflow.errors import UsageError


def patients(data: Path | None) -> Path:
    """Folder of the slices that priors are trained and validated on.

    Args:
        data: folder of `ctflow.training.Slices`; by default `prior` in $CTFLOW_TEST_DATA, or in
            ../shared/data beside the checkout.

    Raises:
        UsageError: it is not there.
    """
    default = os.environ.get("CTFLOW_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = data or Path(default) / "prior"
    if not (folder / "index.json").is_file():
        raise UsageError(
            "this bench needs CT slices of patients and finds no index.json of them; give their folder, "
            "as for ctflow train, with --data"
        )
    return folder
