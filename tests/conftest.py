"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real CT for tests: $CTFLOW_TEST_DATA, or shared/data beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CTFLOW_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real CT here; set CTFLOW_TEST_DATA to the folder that holds dicom/ and sinograms/")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory) -> None:
    """Tests neither read nor fill the user's cache."""
    os.environ["CTFLOW_CACHE"] = str(tmp_path_factory.mktemp("cache"))
