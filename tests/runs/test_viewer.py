"""The report's viewer in Chromium: what it says of pixels, regions and lines is what the volumes hold."""

import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from ctflow.geometry import VolumeGeometry
from ctflow.runs.report import INPUT, Report
from ctflow.runs.support import Support
from ctflow.volume import Volume
from tests.runs.test_report import all_figures
from tests.runs.viewing import SHAPE, centre, colour, drag, opened, painted, readings, shown

SPACING, FIRST = (3.0, 1.0, 1.5), 4  # the first slice of all_figures
SD = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))  # its colours, from 0


@pytest.fixture(scope="module")
def report():
    """Three volumes of whole HU; the main one has a spread; the first slice lies nearest the head."""
    up = ((0.0, 0.0, 1.5, 0.0), (0.0, 1.0, 0.0, 0.0), (-3.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    geometry = VolumeGeometry(SHAPE, SPACING, up)
    random = np.random.default_rng(0)

    def volume(low, high):
        return torch.from_numpy(random.integers(low, high, SHAPE).astype(np.float32))

    volumes = {name: Volume(volume(-1000, 2000), geometry, "HU") for name in (INPUT, "fbp", "tv")}
    spread = volumes["tv"].with_data(volume(0, 1000) / 10)
    support = Support(4, np.linspace(0, 1, 480).reshape(SHAPE[1:]))
    return Report(all_figures(), volumes, {}, {"tv": spread}, support)


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    """The folder for work, whose page itself holds one slice."""
    out = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctflow.runs.viewer._IN_PAGE", 1)
        report.write(out)
    return out


@pytest.fixture
def page(browser, folder):
    page = opened(browser, folder / "report.html")
    yield page
    page.close()
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []


def hu(report, name):
    return report.volumes[name].data.numpy()


def test_the_hu_under_the_mouse_is_the_volumes_in_every_slice(page, report):
    """Scrolled by the wheel from the middle to the last, and by arrow keys to the first."""
    tv, input_ = hu(report, "tv"), hu(report, INPUT)
    page.mouse.move(*centre(page, 7, 11))
    onward, back = (("wheel", k) for k in range(5, 9)), (("ArrowLeft", k) for k in range(7, -1, -1))
    for how, place in (("", 4), *onward, *back):
        if how == "wheel":
            page.mouse.wheel(0, 100)
        elif how:
            page.keyboard.press(how)
        shown(page, FIRST + place)
        x, y = tv[place, 7, 11], input_[place, 7, 11]
        assert readings(page) == (7, 11, x, y, x - y)
    assert page.input_value("#slice") == "0"


def test_the_canvas_holds_the_window(page, report):
    page.fill("#level", "500")
    page.fill("#width", "2000")
    page.keyboard.press("Enter")
    painted(page)
    for row, column in ((0, 0), (13, 4), (23, 19)):
        grey = np.clip(255 * (hu(report, "tv")[4, row, column] + 500) / 2000, 0, 255)
        assert colour(page, row, column) == pytest.approx([grey] * 3, abs=1)
    drag(page, centre(page, 5, 5), (centre(page, 5, 5)[0] + 30, centre(page, 5, 5)[1] - 20), button="right")
    painted(page)
    assert (page.input_value("#level"), page.input_value("#width")) == ("460", "2060")  # 2 HU a pixel


def test_the_crosshair_moves_by_keys_and_is_spoken(page, report):
    page.focus("#frameA")
    for key in ("ArrowUp", "Shift+ArrowLeft", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    row, column = 11, 2  # from the middle, 12 and 10
    x, y = (hu(report, name)[4, row, column] for name in ("tv", INPUT))
    assert readings(page) == (row, column, x, y, x - y)
    assert f"A: row 11, column 2: {x:.0f} HU; B: {y:.0f} HU" in page.inner_text("#spoken")
    page.keyboard.press("PageDown")
    shown(page, FIRST + 5)


def measured(page):
    cells = page.locator("#regions tr").all()
    rows = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in cells}
    return {name: [float(text) for text in texts if text != "–"] for name, texts in rows.items()}


def check_region(page, report, inside):
    page.locator("#measured").wait_for()
    mean = {name: hu(report, name)[4][inside].mean() for name in report.volumes}
    sd = {name: hu(report, name)[4][inside].std() for name in report.volumes}
    spread = report.spreads["tv"].data.numpy()[4][inside].mean()
    expected = {name: [mean[name], sd[name], mean[name] - mean[INPUT]] for name in ("fbp", "tv")}
    expected = {INPUT: [mean[INPUT], sd[INPUT]], "fbp": expected["fbp"], "tv": [*expected["tv"], spread]}
    found = measured(page)
    assert list(found) == list(expected)
    for name in found:
        assert found[name] == pytest.approx(expected[name], abs=0.0501)
    assert f" {inside.sum()} pixels" in page.inner_text("#region")


def test_a_region_has_mean_and_sd_in_every_method(page, report):
    """A rectangle by mouse, a circle in mm by keys."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    page.click("#tools button:text-is('Rectangle')")
    drag(page, centre(page, 15, 12), centre(page, 6, 3))
    check_region(page, report, (rows >= 6) & (rows <= 15) & (columns >= 3) & (columns <= 12))
    page.click("#tools button:text-is('Circle')")
    page.focus("#frameA")
    page.keyboard.press("Escape")
    page.mouse.move(*centre(page, 10, 8))
    page.keyboard.press("Enter")
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")  # the region stays
    check_region(page, report, np.hypot(rows - 10, 1.5 * (columns - 8)) <= 4)
    page.keyboard.press("Escape")
    assert page.locator("#measured").is_hidden()


def test_the_profile_is_that_of_every_method_along_the_line(page, report):
    page.click("#tools button:text-is('Line')")
    drag(page, centre(page, 20, 2), centre(page, 4, 15))
    page.locator("#plot").wait_for()
    steps = np.linspace(0, 1, 17)
    where = [20 - 16 * steps, 2 + 13 * steps]
    curves = [map_coordinates(hu(report, name)[4], where, order=1) for name in report.volumes]
    low, high = float(np.min(curves)), float(np.max(curves))
    lines = page.locator("#plot polyline").all()
    for line, expected in zip(lines, curves, strict=True):
        y = np.array([float(point.split(",")[1]) for point in line.get_attribute("points").split()])
        drawn = low + (190 - y) / 175 * (high - low)
        assert drawn == pytest.approx(expected, abs=0.051 * (high - low) / 175)
    assert f"line of {np.hypot(16, 1.5 * 13):.1f} mm" in page.get_attribute("#plot", "aria-label")


def test_blink_goes_to_and_fro_and_stops(browser, folder, report):
    """The test turns the pictures itself, at the period that the page asked for."""
    by_hand = "setInterval = (turn, ms) => Object.assign(window, { blinks: turn, ms })"
    page = opened(browser, folder / "report.html", by_hand)
    page.click("#chooseB button:text-is('fbp')")
    page.click("#windows button:text-is('Bone')")
    page.click("#blink")
    for name in ("fbp", "tv", "fbp"):
        page.evaluate("blinks()")
        page.locator("#nameA").filter(has_text=name).wait_for()
        painted(page)
        grey = np.clip(255 * (hu(report, name)[4, 3, 3] + 450) / 1500, 0, 255)
        assert colour(page, 3, 3) == pytest.approx([grey] * 3, abs=1)
    assert page.evaluate("ms") > 1000 / 3  # WCAG 2.3.1: three flashes a second at most
    page.click("#blink")
    for _ in range(2):
        page.evaluate("blinks()")
        painted(page)
        assert page.inner_text("#nameA") == "tv"
    page.close()
    assert page.said == []


def test_the_spread_and_the_support_are_shown(page, report):
    sd = report.spreads["tv"].data.numpy()[4]
    page.click("#chooseC button:text-is('SD')")
    page.locator("#nameC").filter(has_text="spread of <i>starts</i>, HU").wait_for()
    for row, column in ((2, 3), (20, 17)):
        page.mouse.move(*centre(page, row, column, "C"))
        assert readings(page)[4] == pytest.approx(sd[row, column], abs=1e-6)
        stops = np.linspace(0, 100, 5)  # half of ± 200 HU
        expected = [np.interp(sd[row, column], stops, [stop[c] for stop in SD]) for c in range(3)]
        assert colour(page, row, column, "C") == pytest.approx(expected, abs=2)
    page.click("#chooseC button:text-is('Support')")
    page.locator("#nameC").filter(has_text="what the data determine, slice 8").wait_for()
    page.mouse.move(*centre(page, 20, 17, "C"))
    assert readings(page)[4] == pytest.approx(report.support.share[20, 17], abs=0.0051)
    page.click("#chooseC button:text-is('Outside 90 %')")
    page.locator("#nameC").filter(has_text="red").wait_for()
    error = np.abs(hu(report, "tv") - hu(report, INPUT))[4]
    for row, column in ((2, 3), (11, 9), (20, 17)):
        page.mouse.move(*centre(page, row, column, "C"))
        outside = error[row, column] > 1.8946 * (9 / 8) ** 0.5 * (sd[row, column] + 1)  # Student's t
        assert page.inner_text("#readC") == ("outside" if outside else "inside")


def test_zoom_and_pan_are_those_of_all_pictures(page):
    x, y = centre(page, 6, 5)
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    page.mouse.move(x, y)
    assert readings(page)[:2] == (6, 5)  # what the mouse points at stays
    wide = page.locator("#frameA").bounding_box()["width"] / SHAPE[2]
    drag(page, (x, y), (x - 2 * 2 * wide, y))  # two pixels of twice the size
    page.mouse.move(*centre(page, 6, 5, "B"))
    assert readings(page)[:2] == (6, 7)
    page.keyboard.press("0")
    page.mouse.move(*centre(page, 6, 6, "C"))
    assert readings(page)[:2] == (6, 6)


def test_every_coronal_and_sagittal_plane_is_there(page, report):
    tv = hu(report, "tv")
    page.click("#planes button:text-is('Coronal')")
    shown(page, 12)
    page.focus("#frameA")
    page.keyboard.press("PageUp")
    shown(page, 11)
    page.mouse.move(*centre(page, 2, 7, shape=(9, 20)))
    assert readings(page)[:3] == (2, 7, tv[2, 11, 7])  # the first slice on top: nearest the head
    page.click("#planes button:text-is('Sagittal')")
    shown(page, 10)
    page.mouse.move(*centre(page, 8, 3, shape=(9, 24)))
    assert readings(page)[:3] == (8, 3, tv[8, 3, 10])


def test_figures_are_saved_as_png_and_svg(page, tmp_path):
    page.click("#tools button:text-is('Line')")
    drag(page, centre(page, 20, 2), centre(page, 4, 15))
    page.locator("#plot").wait_for()
    for button, ending in (("#savePng", "png"), ("#saveSvg", "svg")):
        with page.expect_download() as download:
            page.click(button)
        assert download.value.suggested_filename == f"ctflow-slice-8.{ending}"
        download.value.save_as(tmp_path / f"figure.{ending}")
    svg = ElementTree.parse(tmp_path / "figure.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    pictures = svg.findall(f"{space}svg[@class='panel']")
    assert [len(picture) for picture in pictures] == [2, 2, 2]  # the image, and the line over it
    assert all(picture.find(f"{space}path[@class='mark']").get("d") for picture in pictures)
    texts = [text.text for text in svg.iter(f"{space}text")]
    assert {"A · tv", "B · input series", "Research use only, not for diagnosis"} <= set(texts)
    with Image.open(tmp_path / "figure.png") as png:
        assert png.size == (2 * int(svg.get("width")), pytest.approx(2 * float(svg.get("height")), abs=1))
        assert len(np.unique(np.asarray(png.convert("L")))) > 100  # the pictures are in it


def test_a_page_alone_shows_its_own_slices_and_says_which(browser, report, folder, tmp_path):
    """As it is mailed; a folder of another run beside it is not taken."""
    for other in (False, True):
        place = tmp_path / str(other)
        place.mkdir()
        shutil.copy(folder / "report.html", place)
        if other:
            shutil.copytree(folder / "viewer", place / "viewer")
            (place / "viewer" / "index.js").write_text('window.ctflowRun = "other";\n')
        page = opened(browser, place / "report.html")
        assert page.inner_text("#where") == "1 of 1 · slice 8 of the series"
        assert "1 of 9 slices, numbers 8 of the series" in page.inner_text("#holds")
        page.mouse.move(*centre(page, 7, 11))
        assert readings(page)[2] == hu(report, "tv")[4, 7, 11]
        page.close()


def test_a_folder_that_lacks_a_picture_says_so(browser, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "viewer" / "images-2-5.js").unlink()
    page = opened(browser, tmp_path / "cut" / "report.html")
    page.keyboard.press("ArrowRight")
    page.locator("#trouble:has-text('viewer/images-2-5.js is missing')").wait_for()
    page.close()


@pytest.mark.parametrize("form", ["work", "mail"])
def test_axe_finds_nothing_wrong_with_the_page(browser, axe, folder, tmp_path, form):
    """As it opens, and with a region, a profile and every map."""
    shutil.copy(folder / "report.html", tmp_path)
    page = opened(browser, (folder if form == "work" else tmp_path) / "report.html")
    assert axe(page) == []
    for tool, shape in (("Rectangle", "#measured"), ("Line", "#plot")):
        page.click(f"#tools button:text-is('{tool}')")
        drag(page, centre(page, 15, 12), centre(page, 6, 3))
        page.locator(shape).wait_for()
        assert axe(page) == []
    for name in ("SD", "Outside 90 %", "Support"):
        page.click(f"#chooseC button:text-is('{name}')")
        painted(page)
        assert axe(page) == []
    page.close()


def test_everything_that_is_operated_has_a_name(page):
    """Names of all controls, and heads of all tables (WCAG 2.2: 1.3.1, 4.1.2)."""
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll(
        'button, input, [tabindex], svg:not([aria-hidden])')].filter(e =>
        !(e.matches('button') && e.textContent.trim() || e.getAttribute('aria-label') ||
        e.getAttribute('aria-labelledby') || e.labels?.length)
        ).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("table:not(:has(th[scope]))").count() == 0
