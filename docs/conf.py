"""Sphinx: what the pages are made of. `make docs` builds them, with warnings as errors."""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
# Tutorials run in kernels of their own, with this checkout, draw.py, and the `ctflow` beside this Python.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "100"
_ipython = tempfile.TemporaryDirectory()  # gone when the build ends
_startup = Path(_ipython.name, "profile_default", "startup")
_startup.mkdir(parents=True)
shutil.copy(HERE / "startup.py", _startup)
os.environ["IPYTHONDIR"] = _ipython.name

project = "ctflow"
author = copyright = "The ctflow contributors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
default_role = "code"
highlight_language = "text"

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_show_tb = True  # a failure is a warning, and warnings are errors
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_render_markdown_format = "myst"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures carry them, and docstrings say what they mean
autosummary_generate = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Warns", "returns_style")]
# The names of parts of docstrings are types of none of Sphinx's domains.
suppress_warnings = ["ref.python", "autosummary.import_cycle"]

html_theme = "pydata_sphinx_theme"
html_title = "ctflow"
html_static_path = ["_static"]
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "start", "gallery", "contributing", "changelog")}
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_context = {"default_mode": "auto"}

_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Warns|References|Attributes|Examples):$")
_LABEL = re.compile(r"^(Shapes|References|Licence and citation|Frame): ")


def plain(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Make reST of a docstring that is written as text: equations stand indented, * and | are meant."""
    found: list[str] = []
    sections = equation = example = False
    for line in lines:
        sections = sections or bool(_SECTION.match(line))
        if line.lstrip().startswith(">>> "):
            example = True
        example = example and bool(line.strip())
        if example:
            found.append(line)
        elif line.startswith("    ") and not sections:
            found += [line] if equation else ["", ".. code-block:: text", "", line]
            equation = True
        elif line.strip():
            label = _LABEL.match(line)
            head = f"**{label[1]}:** " if label else ""
            found += [""] if equation or label else []
            found.append(head + _escaped(line[label.end() if label else 0 :]))
            equation = False
        else:
            found.append(line)
    lines[:] = found


def _escaped(line: str) -> str:
    """What reST would take for marks, outside of `code`."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts
    )


def setup(app) -> None:  # noqa: ANN001 (a Sphinx, which need not be imported)
    """Connect; before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", plain, priority=400)
