"""Sphinx: `sphinx-build -W --keep-going -n docs docs/_build`, as .ci/run does."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import gpt2_hf  # noqa: E402

project = "gpt2_hf"
author = "the gpt2_hf authors"
version = release = gpt2_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "options_directive"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gpt2_hf {version}"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_rtype = False

# Types of other packages and subpackages: the build needs no network, and documents the public names alone.
nitpick_ignore_regex = [
    (r"py:.*", r"(os|torch|transformers|datasets|accelerate|evaluate|numpy|collections|pathlib|typing)\b.*"),
    (r"py:.*", r"gpt2_hf\.(data|options|runtime|trainer)\..*"),
    (r"py:class", r"dict\[str"),  # the half of a type that transformers writes as a string
    (r"py:exc", r"\w+Error"),  # docstrings name them without their module, see Errors in reference/python.md
]

# A link to a page of the repository that is not in docs/, right for readers of the repository: a file here.
_OUTSIDE = re.compile(r"\]\((?=(?:\.\./)+)([^)#]+\.md)\)")


def link_files_outside(app: Sphinx, name: str, source: list[str]) -> None:
    """Make such links downloads, which Sphinx checks too."""

    def link(match: re.Match[str]) -> str:
        target = (Path(app.srcdir) / name).parent / match[1]
        is_page = target.resolve().is_relative_to(app.srcdir)
        return match[0] if is_page else f"](path:{match[1]})"

    source[0] = _OUTSIDE.sub(link, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_files_outside)
