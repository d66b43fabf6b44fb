"""No text from outside acts on a terminal or a spreadsheet."""

from __future__ import annotations

import ast
import csv
import io
import json
import logging
import re
import warnings
from pathlib import Path

import pydicom
import pytest

import ctflow
from ctflow.cli import main, terminal
from ctflow.experiments import run_study
from ctflow.experiments.spreadsheet import csv_text
from tests.dicom.files import edit, setting, toy_series
from tests.experiments.small_study import written
from tests.experiments.test_study import PROTOCOL

# A colour, a title, a carriage return, a line of its own, a C1 introducer, a direction override, a mark
# that is invisible, a line separator, half a surrogate pair, and rich's markup.
EVIL = "a\x1b[31mb\x1b]0;t\x07c\rd\nerror: e\x9bf\u202eg\u200bh\u2028i\udc80[red]j[link=http://k]l\x7f\x00\t"
PLAIN = (
    r"a\x1b[31mb\x1b]0;t\x07c\rd\nerror: e\x9bf\u202eg\u200bh\u2028i\udc80[red]j[link=http://k]l\x7f\x00\t"
)


def unseen(text):
    """Characters that a terminal would obey or hide, but for the ends of lines."""
    return [char for char in text.replace("\n", "") if not char.isprintable()]


def test_a_text_is_one_plain_line(capsys):
    assert terminal.printable(EVIL) == PLAIN
    assert terminal.printable("12 × 3 mm, é, 患者") == "12 × 3 mm, é, 患者"
    terminal.say(EVIL, 7, error=True)
    terminal.say_text(f"one\n\ttwo{EVIL[:6]}\n")
    terminal.say_json({"x": EVIL})
    written = capsys.readouterr()
    assert written.err == PLAIN + "\n7\n"
    lines = written.out.split("\n", 2)
    assert lines[:2] == ["one", r"    twoa\x1b[31m"]
    assert not unseen(written.out)
    assert json.loads(lines[2]) == {"x": EVIL}


def test_what_a_stream_cannot_write_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    terminal.say("3 × 2")
    stream.flush()
    assert stream.buffer.getvalue() == b"3 \\xd7 2\n"


def test_tables_and_bars_take_no_markup(capsys, monkeypatch):
    figures = {"methods": {EVIL: {}}, "method": EVIL, "warnings": [EVIL]}
    monkeypatch.setattr("ctflow.runs.report.table", lambda figures, against: ([EVIL, "x"], [[EVIL, EVIL]]))
    terminal.print_figures(figures, as_json=False)
    terminal.print_figures(figures, as_json=True)
    terminal.print_plan({"protocol": EVIL}, as_json=False)
    terminal.print_plan({"protocol": EVIL}, as_json=True)
    written = capsys.readouterr()
    assert not unseen(written.out + written.err)
    assert "[red]j[link=http://k]" in written.out
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with terminal.progress_bar() as progress:
        progress(1.3, "[red]\x07\x9b\n")
    shown = capsys.readouterr().err
    assert r"[red]\x07\x9b\n" in shown
    assert "100 %" in shown


def test_warnings_and_logs_are_plain(capsys):
    before = logging.lastResort
    with terminal.warnings_on_stderr():
        warnings.simplefilter("always")
        warnings.warn(EVIL, stacklevel=1)
        logging.lastResort.handle(logging.makeLogRecord({"msg": EVIL, "levelname": "WARNING"}))
    assert logging.lastResort is before
    assert capsys.readouterr().err == f"warning: {PLAIN}\n" * 2


def test_nothing_else_prints():
    """`say` is the only way to the terminal."""
    root = Path(ctflow.__file__).parent
    found = [
        f"{file.name}:{node.lineno}"
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name | ast.Attribute)
        and re.fullmatch(r"print|(sys\.)?std(out|err)\.write|traceback\.print_\w+", ast.unparse(node.func))
    ]
    assert [place.partition(":")[0] for place in found] == ["terminal.py"]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_kernel_does_not_act_on_the_terminal(tmp_path, capsys, as_json):
    for file in toy_series(tmp_path / "in", slices=3):
        edit(file, setting(ConvolutionKernel="B30\x1b[2J\x1b]0;owned\x07", SeriesDescription=EVIL[:20]))
    words = ["--json"] if as_json else []
    assert main(["inspect", str(tmp_path / "in"), *words]) == 0
    written = capsys.readouterr().out
    assert not unseen(written)
    assert "B30" in written
    if as_json:
        assert json.loads(written)["series"][0]["kernel"].startswith("B30\x1b[2J")


def test_a_file_and_an_error_do_not_act_on_the_terminal(tmp_path, capsys):
    file = tmp_path / "evil.toml"
    shown = 'x = "\u202egnp.exe"'
    file.write_text(f"# S\u202eummary\n{shown}\n")
    for words in (
        ["show", str(file)],
        ["run", f"no{EVIL.replace(chr(0), '')}", "x"],
        ["x\x1b[31m"],
        ["--debug", "show", "\x9b"],
    ):
        assert main(words) != 0
        written = capsys.readouterr()
        assert not unseen(written.out + written.err), words
        assert written.err


def test_a_file_whose_name_is_no_text_is_a_protocol(tmp_path, capsys):
    file = tmp_path / "a\udcff\x1b[31m.toml"
    try:
        file.write_bytes(PROTOCOL.encode())
    except OSError:
        pytest.skip("this file system takes text alone for a name")
    toy_series(tmp_path / "in", slices=1)
    assert main(["run", str(file), str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    written = capsys.readouterr()
    assert not unseen(written.out + written.err)
    header = pydicom.dcmread(tmp_path / "out" / "fbp" / "IM0001.dcm")
    assert header.SeriesDescription == "ctflow fbp, a\ufffd_[31m"


def test_a_case_becomes_no_formula(tmp_path):
    text = 'protocols = ["tiny.toml"]\ncases = [{ folder = "in", name = "=cmd\\n@x" }]\n[methods.fbp]\n'
    toy_series(tmp_path / "in", slices=1)
    run_study(written(tmp_path, text), tmp_path / "out")
    for name in ("figures.csv", "report.csv"):
        with (tmp_path / "out" / name).open(newline="") as file:
            assert [row["case"] for row in csv.DictReader(file)] == ["'=cmd @x"]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-cmd|' /C calc'!A0", "'-cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1", "'  =1"),
        ("\t=1", "' =1"),
        ("\r=1", "' =1"),
        ("\n=1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        ("a=b, c", "a=b, c"),
        ("a\nb", "a b"),
        ("", ""),
    ],
)
def test_no_text_becomes_a_formula(text, cell):
    table = csv_text(["case", "rmse"], [[text, -1.5], [None, -2]])
    assert list(csv.reader(io.StringIO(table))) == [["case", "rmse"], [cell, "-1.5"], ["", "-2"]]
