"""Fixtures that several test files share."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
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


@pytest.fixture
def training_data(tmp_path) -> Path:
    """Three slices of noise, 32² pixels of 1.5 mm, for each split: what `Slices` reads."""
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    index = []
    for split in ("train", "validation"):
        hu = random.integers(-1000, 1000, size=(3, 32, 32)).astype(np.int16)
        np.savez(folder / f"{split}.npz", hu=hu)
        entry = {"file": f"{split}.npz", "split": split, "kind": "256", "collection": "made up"}
        index.append({**entry, "pixel_spacing_mm": 1.5})
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def processes(request):
    """Processes with a main thread of their own, forked from one that has imported the test's module."""
    context = multiprocessing.get_context("forkserver")
    used = ["ctflow.experiments.run", "ctflow.recon.fbp", "ctflow.recon.sirt"]
    context.set_forkserver_preload([request.module.__name__, *used])
    return context


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except sync_api.Error:
            pytest.skip("no Chromium here; install one, or run `playwright install chromium`")
        yield started
        started.close()


@pytest.fixture
def axe():
    """What axe-core finds wrong with a page: the rule, and the element."""
    reason = "axe-core comes in axe-playwright-python"
    core = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason).Axe()

    def violations(page) -> list[tuple[str, str]]:
        found = core.run(page).response["violations"]
        return [(rule["id"], node["html"]) for rule in found for node in rule["nodes"]]

    return violations
