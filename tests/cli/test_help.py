"""Help: bare commands print it, its examples are understood, and the shell completes names."""

import re
import shlex
from itertools import product

import pytest

from ctflow.cli import main
from ctflow.cli.app import app
from ctflow.cli.completion import complete_bench, complete_method, complete_prior, complete_protocol
from ctflow.registry import names
from ctflow.runs.protocol import texts

GROUPS = {group.name: group.typer_instance for group in app.registered_groups}
COMMANDS = [
    *([one.name or one.callback.__name__] for one in app.registered_commands),
    *(
        [name, one.name or one.callback.__name__]
        for name, group in GROUPS.items()
        for one in group.registered_commands
    ),
]


@pytest.mark.parametrize("words", [[], *([name] for name in GROUPS), ["run"], ["bench"], ["pacs", "pull"]])
def test_a_bare_command_prints_its_help(words, capsys):
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "Usage: ctflow" in printed.out
    assert printed.err == ""


def test_every_command_stands_in_a_panel(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    panels = re.split(r"^[+╭]", said, flags=re.MULTILINE)
    assert len(panels) == 7  # usage, options, and five of commands
    listed = {word for panel in panels[2:] for word in re.findall(r"^[|│] ([a-z]+) ", panel, re.MULTILINE)}
    assert listed == {words[0] for words in COMMANDS}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_are_understood(words, capsys, monkeypatch, tmp_path):
    """Each example names options that exist; the refusal, if any, is of the files that are not here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200)
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    examples = re.findall(r"^ *\$ ctflow (.+)$", said, re.MULTILINE)
    assert examples
    for example in examples:
        given = shlex.split(example)
        assert given[: len(words)] == words
        offered = {word.partition("=")[0] for word in given if re.match(r"--?[a-z]", word)}
        assert [option for option in offered if option not in said] == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_goes_to_any_terminal(encoding, capsys):
    for words in COMMANDS:
        assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    ours = re.sub(r"[─-╿…]", "", said)  # lines and ellipses of the library, which knows its terminal
    ours.encode(encoding)


def test_names_are_completed():
    assert {name for name, _ in complete_protocol("sparse")} == {n for n in texts() if n.startswith("sparse")}
    assert complete_method("ms") == [name for name in sorted(names("method")) if name.startswith("ms")]
    assert complete_method("fbp,t") == ["fbp,tv"]
    assert complete_prior("ct-2") == ["ct-256"]
    assert [name for name, _ in complete_bench("op")] == ["operators"]


def test_a_protocol_that_cannot_be_read_does_not_disturb_completion(tmp_path, monkeypatch):
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    monkeypatch.setenv("CTFLOW_PROTOCOLS", str(tmp_path))
    assert complete_protocol("") == []


@pytest.mark.parametrize(("shell", "what"), [*product(["bash", "zsh", "fish"], ["complete", "source"])])
def test_the_shells_are_served(shell, what, monkeypatch, capsys):
    monkeypatch.setenv("_CTFLOW_COMPLETE", f"{what}_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "ctflow show low")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("COMP_WORDS", "ctflow show low")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert ("low-dose" if what == "complete" else "_CTFLOW_COMPLETE") in capsys.readouterr().out
