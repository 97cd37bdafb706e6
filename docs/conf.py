"""Sphinx: `sphinx-build -W --keep-going -n docs docs/_build`, as .ci/run does."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import gpt2_hf

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

# Types of other packages: their documentation lies elsewhere, and the build needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|nn|transformers|datasets|evaluate|numpy|np|collections|pathlib|typing|Any|Callable)\b.*"),
    (r"py:.*", r"(Tensor|Cache|PreTrained\w+|TextStreamer|TrainerCallback|Trainer|TrainingArguments)"),
    (r"py:.*", r"(Iterator|Sequence|Mapping|Path|Dataset|LoadedData|JobContext|Stopwatch|\w*Samples|\w+Collator)"),
]
