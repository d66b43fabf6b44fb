"""Cases from a PACS: pulled once, the same image as from the folder; refusals fail their own units alone."""

from collections import Counter

import numpy as np
import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="pynetdicom (the extra `pacs`) is not installed")

from ctflow.dicom.pacs import push
from ctflow.errors import StudyError
from ctflow.experiments import run_study
from ctflow.experiments.run import preview
from tests.dicom.archive import archive
from tests.dicom.files import toy_series
from tests.dicom.web_archive import web_archive
from tests.experiments.small_study import lines, written

TEXT = """# From a PACS.
protocols = ["tiny.toml"]
cases = [
    {{ {where} }},
    {{ pacs = "ARCHIVE@127.0.0.1:{port}", series_uid = "1.2.3", name = "gone" }},
]
[methods.fbp]
"""


def test_a_series_is_pulled_once_and_measured_as_from_its_folder(tmp_path):
    files = toy_series(tmp_path / "series")
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    with archive() as held:
        push(held.peer(), files)
        where = f'pacs = "ARCHIVE@127.0.0.1:{held.port}", study_uid = "{header.StudyInstanceUID}", name = "a"'
        study = written(tmp_path, TEXT.format(where=where, port=held.port))
        out = tmp_path / "out"
        assert all(unit["status"] == "pending" for unit in preview(study, out).units)
        assert not out.exists()
        found = run_study(study, out)
        assert found.test == Counter(done=1, failed=1)
        assert "no CT series" in next(iter(found.reasons))
        asked = len(held.asked)
    # The PACS is gone: what was pulled is enough, and the other case is refused for another reason.
    assert run_study(study, out, resume=True).test["done"] == 1
    assert len(held.asked) == asked
    here = written(tmp_path, TEXT.format(where='folder = "series", name = "a"', port=held.port))
    run_study(here, tmp_path / "other")
    images = [next((folder / "units").glob("*/image.npz")) for folder in (out, tmp_path / "other")]
    assert np.array_equal(*(np.load(path)["hu"] for path in images))
    assert len(lines(out)) == 2
    assert (out / "pulled").stat().st_mode & 0o77 == 0


def test_a_case_of_a_web_address_shows_its_token(tmp_path):
    pytest.importorskip("dicomweb_client", reason="dicomweb-client (the extra `dicomweb`) is not installed")
    files = toy_series(tmp_path / "series")
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    (tmp_path / "token").write_text("a-token")
    with web_archive(files) as held:
        where = (
            f'pacs = "{held.peer().url}", study_uid = "{header.StudyInstanceUID}", '
            f'token_file = "{tmp_path / "token"}", name = "a"'
        )
        found = run_study(written(tmp_path, TEXT.format(where=where, port=1)), tmp_path / "out")
    assert found.test == Counter(done=1, failed=1)
    assert all(request.headers["Authorization"] == "Bearer a-token" for request in held.asked)


def test_an_unknown_key_of_a_pacs_case_is_named(tmp_path):
    study = written(tmp_path, TEXT.format(where='pacs = "A@b:1", study = "1.2"', port=1))
    with pytest.raises(StudyError, match="unknown key 'study'; did you mean 'study_uid'"):
        run_study(study, tmp_path / "out")
