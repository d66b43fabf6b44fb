"""The study's page in Chromium: what it says of pixels is what the study's files hold."""

import shutil

import numpy as np
import pytest

from ctflow.experiments import pictures
from ctflow.experiments.report import write_report
from tests.experiments.written_study import characters, viewed, write_study
from tests.runs.viewing import centre, colour, drag, opened, readings


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    write_study(out, 6)
    write_report(out)
    return out


@pytest.fixture
def page(browser, study):
    page = opened(browser, study / "report.html")
    yield page
    page.close()
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []


def pixels(study, case, method, k):
    with np.load(study / "units" / f"{case:02d}-{method}" / "image.npz") as stored:
        return np.rint(stored["hu"][k])


def test_the_first_case_is_the_worst_and_its_pixels_are_read(page, study):
    assert page.inner_text("#where") == "2 of 3 · slice 2 of phantom-5 · sparse-view-60 · seed 0"
    assert page.inner_text("#nameA") == "conjugate"
    page.mouse.move(*centre(page, 30, 33, shape=(64, 64)))
    assert readings(page)[:3] == (30, 33, pixels(study, 5, "conjugate", 1)[30, 33])
    page.keyboard.press("ArrowRight")
    page.locator("#where").filter(has_text="3 of 3").wait_for()
    assert readings(page)[2] == pixels(study, 5, "conjugate", 2)[30, 33]


def test_a_case_opens_by_its_link_and_from_the_list(page, study):
    """With its pictures, and its figures below them alone."""
    page.locator("#cases a").nth(2).click()
    page.locator("#where").filter(has_text="phantom-3").wait_for()
    assert page.input_value("#case") == "2"
    assert page.locator("article.page:visible").count() == 1
    assert "phantom-3" in page.inner_text("article.page:visible h3")
    page.mouse.move(*centre(page, 30, 33, shape=(64, 64)))
    assert readings(page)[2] == pixels(study, 3, "conjugate", 1)[30, 33]
    for row, column in ((20, 20), (32, 40)):
        grey = np.clip(255 * (pixels(study, 3, "conjugate", 1)[row, column] + 160) / 400, 0, 255)
        assert colour(page, row, column, shape=(64, 64)) == pytest.approx([grey] * 3, abs=1)
    page.select_option("#case", "0")
    page.locator("#where").filter(has_text="phantom-5").wait_for()


def test_the_maps_of_a_case(page):
    assert page.locator("#chooseC button:visible").all_inner_texts() == [
        "A − truth",
        "SD",
        "Outside 90 %",
        "Support",
    ]
    page.click("#chooseC button:text-is('SD')")
    page.locator("#nameC").filter(has_text="standard deviation over starts").wait_for()
    page.mouse.move(*centre(page, 30, 33, "C", shape=(64, 64)))
    assert readings(page)[4] == 17.5  # half of the error's
    page.click("#chooseC button:text-is('Support')")
    page.locator("#nameC").filter(has_text="what the data determine, slice 2").wait_for()


def test_the_file_alone_shows_what_it_holds(browser, study, tmp_path, monkeypatch):
    """A case that has no room says so, and keeps its figures."""
    one = characters(viewed(study / "report.html")) / 6 / 3
    monkeypatch.setattr(pictures, "_IN_PAGE", 1.5 * one)
    shutil.copy(write_report(study), tmp_path)
    monkeypatch.undo()
    write_report(study)
    page = opened(browser, tmp_path / "report.html")
    assert page.inner_text("#where").startswith("1 of 1 · slice 2 of phantom-5")
    page.select_option("#case", "1")
    page.locator("#holds").filter(has_text="0 of 3 slices").wait_for()
    assert page.locator("#frameA").is_hidden()
    assert "phantom-4" in page.inner_text("article.page:visible h3")
    page.close()


def test_axe_finds_nothing_wrong_with_the_page(page, axe):
    assert axe(page) == []
    page.click("#tools button:text-is('Rectangle')")
    drag(page, centre(page, 40, 30, shape=(64, 64)), centre(page, 20, 20, shape=(64, 64)))
    page.locator("#measured").wait_for()
    assert axe(page) == []
