"""Every link of the pages leads to a file, a heading or a documented name.

Sphinx warns of links between the pages of docs/ whose file or heading is missing, and warnings are errors.
It does not read README.md, and says nothing of a `{py:class}` that leads nowhere. Addresses outside are for
`make links`.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts),
]
LISTED = re.findall(r"^   (\w+)$", (ROOT / "docs/reference/api.md").read_text(encoding="utf-8"), re.MULTILINE)


def unfenced(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """A page without code, in blocks or in backticks, but with its roles."""
    return re.sub(r"(\{[\w:]+\}`[^`\n]*`)|`[^`\n]*`", lambda match: match[1] or "", unfenced(text))


def anchors(text: str) -> set[str]:
    """What a link to a heading of a page may say behind #, as GitHub and MyST make it of the heading."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,3} +(.+)$", unfenced(text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        same = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one) is not None for one in found)
        found.add(f"{slug}-{same}" if same else slug)
    return found


def dead(path: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere."""
    said = prose(text)
    links = re.findall(r"\]\(([^)\s]+)", said) + re.findall(r"^\[[^\]]+\]: *(\S+)", said, re.MULTILINE)
    return [link for link in links if not leads(path, text, link)] + [
        name
        for name in re.findall(r"\{py:\w+\}`([^`]+)`", said)
        if name.removeprefix("ctflow.") not in LISTED
    ]


def leads(path: Path, text: str, link: str) -> bool:
    """Whether a link of a page is an address, or leads to a file of the repository and to a heading in it."""
    if link.startswith("https://"):
        return True
    name, _, anchor = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    if not target.is_relative_to(ROOT) or not target.exists():
        return False
    return not anchor or anchor in anchors(target.read_text(encoding="utf-8") if name else text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert dead(path, path.read_text(encoding="utf-8")) == []


def test_the_check_can_fail():
    text = """# A page

## One *heading*, twice
## One heading twice

[file](nowhere.md) [outside](../../../etc/hosts) [here](#one-heading-twice) [second](#one-heading-twice-1)
[gone](#another) [there](docs/start.md#install) [plain](http://example.org/) {py:class}`ctflow.Nothing`
{py:class}`ctflow.Coupled` `[code](nowhere.md)`

[reference]: missing.md
"""
    expected = [
        "nowhere.md",
        "../../../etc/hosts",
        "#another",
        "docs/start.md#install",
        "http://example.org/",
    ]
    assert dead(ROOT / "README.md", text) == [*expected, "missing.md", "ctflow.Nothing"]


def test_addresses_are_written_as_such():
    """A typing error makes two schemes, nothing behind one, or a name without a dot."""
    for path in PAGES:
        for address in re.findall(r"\bhttps?:[^)\s`\"']*", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"https?://([\w-]+\.)+[a-z]{2,}(:\d+)?(/[^:]*)?|https?://", address), address
