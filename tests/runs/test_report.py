"""The report: pixels survive the page exactly, texts are escaped, the table says what was found."""

import base64
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from ctflow.cli.terminal import print_figures
from ctflow.errors import UsageError
from ctflow.geometry import VolumeGeometry
from ctflow.runs.pictures import OFFSET, number_png
from ctflow.runs.report import INPUT, Report, citation, failures, sentence, table
from ctflow.volume import Volume


def decoded(png):
    high, low = np.split(np.asarray(Image.open(io.BytesIO(png))).astype(int), 2, axis=1)
    return high * 256 + low - OFFSET


def region(rmse):
    return {"rmse_hu": rmse, "bias_hu": 0.5, "psnr_soft_tissue": 20.0, "ssim_soft_tissue": 0.5}


def found(rmse):
    cost = {"residual": 1.0, "seconds": 2.0, "network": 0}
    return {"rmse_hu": rmse, "psnr": 30.0, "ssim": 0.9, **cost, "body": region(rmse), "fov": region(rmse)}


def all_figures():
    return {
        "protocol": {"name": "p", "summary": "<b>s</b>", "text": "geometry", "sha256": "", "overrides": []},
        "method": "tv",
        "reference": "fbp",
        "methods": {"fbp": found(80.0), "tv": found(40.0)},
        "samples": {
            "fbp": {"number": 1, "spread": "none", "meaning": "one image"},
            "tv": {"number": 8, "spread": "starts", "meaning": "spread of <i>starts</i>"},
        },
        "measured": False,
        "residual_of_input": 1.0,
        "conventions": {"rmse_hu": {"unit": "HU"}},
        "lesions": {"tv": "kept to <i>half</i>"},
        "accept": {"rmse_hu": {"threshold": 30, "value": 40.0, "passed": False}},
        "warnings": ["a </script><script>alert(1)</script>"],
        "measurement": "m",
        "grid": "g",
        "provenance": {"slices": "4:7", "device": "CPU", "prior": None},
    }


@pytest.fixture
def report():
    geometry = VolumeGeometry((3, 32, 40), (3.0, 1.0, 1.0))
    noise = torch.Generator().manual_seed(0)
    volumes = {
        name: Volume(800 * torch.randn(geometry.shape, generator=noise), geometry, "HU")
        for name in (INPUT, "fbp", "tv")
    }
    return Report(all_figures(), volumes, {"tv": "@article{a}", "fbp": "@article{b}"})


def test_a_png_holds_every_ct_number():
    hu = (
        np.arange(-32768, 32639).reshape(-1, 1).astype(np.float32)
    )  # all that both bytes hold, from int16's end
    assert np.array_equal(decoded(number_png(hu)), hu)


def test_a_page_holds_the_pixels_exactly(report):
    viewer = viewer_of(report)
    (plane,) = viewer["planes"]
    assert (plane["places"], plane["first"]) == ([0, 1, 2], 4)  # numbered as in the series
    for name, file in zip(viewer["names"], viewer["files"]["images"], strict=True):
        pixels = np.stack([held(viewer, f"{file}-{k}") for k in range(3)])
        assert np.array_equal(pixels, np.rint(report.volumes[name].data.numpy()))


def held(viewer, name):
    return decoded(base64.b64decode(viewer["held"][name]))


def viewer_in(page):
    (viewer,) = json.loads(re.search(r"const CASES = (\[.*\]);", page).group(1))
    return viewer


def viewer_of(report):
    return viewer_in(report.html())


def test_a_page_holds_the_spread_and_how_wide_its_intervals_are(report):
    assert viewer_of(report)["files"]["spreads"] == ["", "", ""]
    sd = report.volumes["tv"].with_data(report.volumes["tv"].data.abs())
    drawn = Report(report.figures, report.volumes, report.papers, {"tv": sd})
    viewer = viewer_of(drawn)
    pixels = np.stack([held(viewer, f"spreads-2-{k}") for k in range(3)])
    expected = sd.data.numpy().clip(max=3263.9)  # what 15 bits hold in steps of 0.1 HU
    assert np.abs(pixels / 10 - expected).max() < 0.0505
    # Student's t of 7 degrees of freedom at 95 %, and the mean of 8 is off by √(1/8) itself.
    assert viewer["half_widths"] == [0.0, 0.0, pytest.approx(1.8946 * (9 / 8) ** 0.5, rel=1e-4)]
    assert "Outside 90 %: where the input series" in drawn.html()
    report.figures["measured"] = True  # then there is no truth
    assert not any(viewer_of(drawn)["half_widths"])
    assert "Outside 90 %: where the input series" not in drawn.html()


@pytest.mark.parametrize("rising", [True, False])
def test_upright_planes_stand_head_up(report, rising):
    """Voxels that hold their own place: 100 k + 10 i + j."""
    k, i, j = torch.meshgrid(*(torch.arange(float(n)) for n in (9, 6, 5)), indexing="ij")
    up = 3.0 if rising else -3.0
    affine = ((0.0, 0.0, 2.0, 0.0), (0.0, 1.5, 0.0, 0.0), (up, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    volume = Volume(100 * k + 10 * i + j, VolumeGeometry((9, 6, 5), (3.0, 1.5, 2.0), affine), "HU")
    volumes = dict.fromkeys(report.volumes, volume)
    viewer = viewer_of(Report(report.figures, volumes, report.papers))
    _, coronal, sagittal = viewer["planes"]
    head = 8 if rising else 0
    assert [coronal[key] for key in ("rows", "columns", "high", "wide")] == [9, 5, 3.0, 2.0]
    assert [sagittal[key] for key in ("rows", "columns", "high", "wide")] == [9, 6, 3.0, 1.5]
    row, column = coronal["places"][1], sagittal["places"][1]
    front, side = held(viewer, f"images-0-row-{row}"), held(viewer, f"images-0-column-{column}")
    assert (front[0, 4], front[-1, 0]) == (100 * head + 10 * row + 4, 100 * (8 - head) + 10 * row)
    assert (side[0, 5], side[-1, 0]) == (100 * head + 50 + column, 100 * (8 - head) + column)


def test_a_page_needs_nothing_else_and_escapes_what_it_is_given(report):
    page = report.html()
    assert "<b>s</b>" not in page
    assert "alert(1)</script>" not in page
    assert "tv: mean of 8 samples" in page
    assert "fbp: mean of" not in page
    assert "tv: kept to &lt;i&gt;half" in page
    assert "spread of &lt;i&gt;starts" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\((?!#)""", page)
    assert "Research use only, not for diagnosis" in page


EVIL = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'`{{ 7 * 7 }}<!--\u2028"""


def test_no_text_becomes_an_element_or_a_script(report):
    """Every text of a report, names of images in the script's data too."""
    first, second = (report.volumes[name] for name in (INPUT, "fbp"))
    figures = report.figures | {
        "protocol": dict.fromkeys(("name", "summary", "text", "sha256"), EVIL) | {"overrides": [EVIL]},
        "methods": {EVIL: found(80.0)},
        "method": EVIL,
        "reference": EVIL,
        "conventions": {EVIL: {EVIL: EVIL}},
        "lesions": {EVIL: EVIL},
        "warnings": [EVIL],
        "measurement": EVIL,
        "grid": EVIL,
        "provenance": {"slices": "4:7", "device": EVIL, EVIL: [EVIL]},
    }
    page = Report(figures, {EVIL + "a": first, EVIL: second}, {"fbp": EVIL}).html()
    tags = Counter()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.update([tag, *(name for name, _ in attributes)])
    parser.feed(page)
    assert tags["script"] == 4  # the folder's, the data, the viewer, its figures
    assert tags["img"] == tags["onerror"] == 0
    assert "49" not in page.split("<script>")[0].split("</style>")[1]
    assert "default-src 'none'" in page
    viewer = viewer_in(page)
    assert viewer["names"] == [EVIL + "a", EVIL]


def test_no_more_slices_than_fit(report, monkeypatch):
    monkeypatch.setattr("ctflow.runs.viewer._IN_PAGE", 1)
    assert viewer_of(report)["planes"][0]["places"] == [1]  # the middle one


def test_a_high_volume_fills_its_page_and_no_more(report, monkeypatch):
    """White noise, which compresses worst, of which five planes upright would fill the page alone."""
    monkeypatch.setattr("ctflow.runs.viewer._IN_PAGE", 100_000)
    geometry = VolumeGeometry((80, 24, 24), (1.0, 1.0, 1.0))
    noise = torch.randn(geometry.shape, generator=torch.Generator().manual_seed(0))
    volumes = dict.fromkeys(report.volumes, Volume(300 * noise, geometry, "HU"))
    viewer = viewer_of(Report(report.figures, volumes, report.papers))
    upright, size = len(viewer["planes"][1]["places"]), sum(map(len, viewer["held"].values()))
    assert 0 < upright < 5
    assert 90_000 < size <= 100_000


def test_the_table_compares_with_a_method(report):
    header, rows = table(report.figures, "fbp")
    assert header[2] == "vs fbp"
    assert [row[:3] for row in rows] == [["fbp", "80.0", "+0 %"], ["tv", "40.0", "-50 %"]]
    with pytest.raises(UsageError, match="it has fbp, tv"):
        table(report.figures, "ms-flow")


def marked(page):
    """By method, the titles of the columns whose cell is marked best on the page."""
    figures = page.split("<h2>Figures</h2>")[1]
    head, body = re.search(r"<thead>(.*?)</thead>\s*<tbody>(.*?)</tbody>", figures, re.S).groups()
    titles = re.findall(r"<th scope=\"col\">(.*?)</th>", head)
    rows = [re.findall(r"<td( class=\"best\")?>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", body)]
    return {row[0][1]: {titles[k] for k, (best, _) in enumerate(row) if best} for row in rows}


def test_the_best_of_every_column_is_marked_and_nothing_else(report):
    methods = report.figures["methods"]
    methods["fbp"] |= {"psnr": 31.0, "ssim": 0.8}
    methods["tv"] |= {"psnr": 30.0, "ssim": 0.9}
    methods["tv"]["body"] |= {"psnr_soft_tissue": 21.0, "ssim_soft_tissue": 0.4}
    assert marked(report.html()) == {
        "fbp": {"PSNR [dB]", "SSIM soft"},
        "tv": {"RMSE [HU]", "SSIM", "PSNR soft [dB]"},
    }


def test_a_method_without_a_figure_is_not_the_best(report):
    report.figures["methods"]["fbp"]["body"]["ssim_soft_tissue"] = None
    report.figures["methods"]["tv"]["body"]["ssim_soft_tissue"] = -0.1
    report.figures["methods"]["fbp"]["rmse_hu"] = None
    best = marked(report.html())
    assert {"RMSE [HU]", "SSIM soft"} <= best["tv"]
    for found in report.figures["methods"].values():
        found["psnr"] = None
    assert not any("PSNR [dB]" in titles for titles in marked(report.html()).values())


def test_the_terminal_shows_the_main_method_in_bold(report, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    report.figures["method"] = "fbp"
    print_figures(report.figures, as_json=False, against="tv")
    fbp, tv = (line for line in capsys.readouterr().out.splitlines() if "80.0" in line or "40.0" in line)
    assert ("fbp" in fbp, "+100 %" in fbp, "\x1b[1m" in fbp) == (True, True, True)
    assert ("tv" in tv, "+0 %" in tv, "\x1b[1m" in tv) == (True, True, False)


def test_values_in_words():
    assert [sentence(value) for value in (True, False, None, 1, "text")] == ["yes", "no", "none", "1", "text"]
    assert sentence({"hu_range": [-1000, 3000], "a": True}) == "hu range -1000 to 3000; a yes"


def test_missed_thresholds_are_named(report):
    assert failures(report.figures) == ["tv: rmse_hu 40 where the protocol accepts 30"]


def test_citations_name_astra_where_something_was_projected(report):
    assert "vanaarle2016astra" in citation(report.papers, projects=True)
    assert re.findall(r"^@\w+", citation({"a": "@x{1}", "b": "@x{1}"}, projects=False), re.MULTILINE) == [
        "@software",  # ctflow itself
        "@x",
    ]
