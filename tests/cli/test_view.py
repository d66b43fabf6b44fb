"""`ctflow view`: the page of a finished run, in the browser where there is one."""

import webbrowser

import pytest

from ctflow.cli import main
from ctflow.datasets.synthetic import write_toy_series

FAST = ["--set", 'method={name="fbp"}', "--set", "beside=[]", "--set", "geometry.angles=20"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    series = write_toy_series(folder / "series", slices=1, size=32)
    assert main(["run", "sparse-view-60", str(series), "-o", str(folder / "out"), *FAST]) == 0
    return folder / "out"


@pytest.fixture
def started(monkeypatch):
    """Pages that a browser was asked for, on a screen."""
    pages = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", lambda page: pages.append(page) or True)
    return pages


def test_the_page_is_opened_and_named(out, started, capsys):
    assert main(["view", str(out)]) == 0
    assert started == [(out / "report.html").as_uri()]
    assert capsys.readouterr() == (f"report: {out / 'report.html'}\n", "")


def test_the_page_of_a_study_is_opened(tmp_path, started, capsys):
    (tmp_path / "report.json").write_text('{"study": "s"}')
    (tmp_path / "report.html").touch()
    assert main(["view", str(tmp_path / "report.html")]) == 0
    assert started == [(tmp_path / "report.html").as_uri()]
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"


def test_without_a_browser_the_path_is_printed(out, started, monkeypatch, capsys):
    assert main(["view", str(out), "--no-browser"]) == 0
    assert capsys.readouterr() == (f"report: {out / 'report.html'}\n", "")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert main(["view", str(out)]) == 0
    printed = capsys.readouterr()
    assert str(out / "report.html") in printed.out
    assert "no browser starts here" in printed.err
    assert started == []


def test_a_folder_without_a_run_is_refused(out, tmp_path, started, capsys):
    assert main(["view", str(tmp_path)]) == 2
    assert "there is no report.json" in capsys.readouterr().err
    (tmp_path / "report.json").write_text('{"study": "s"}')
    assert main(["view", str(tmp_path)]) == 2
    assert "lacks report.html; run again with --overwrite, or ctflow study report" in capsys.readouterr().err
    (tmp_path / "report.json").write_text("{}")
    assert main(["view", str(tmp_path)]) == 2
    assert "the folder holds no run" in capsys.readouterr().err
    (tmp_path / "report.json").write_bytes((out / "report.json").read_bytes())
    assert main(["view", str(tmp_path)]) == 2
    assert "the folder lacks report.html" in capsys.readouterr().err
    assert started == []
