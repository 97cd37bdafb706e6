"""A mix of several texts, as `--train_mix` states it: checked, and brought into one form.

In: a JSON object, or the path of a file that holds one. Out: a plain object by name, which is what a run writes down.

    {"news": {"train_file": "news/*.txt", "weight": 0.7}, "books": {"dataset_name": "books", "weight": 0.3}}
"""

import difflib
import json
import math
import sys
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from ..errors import UserError
from .json_text import read_json_file

DOCUMENT_UNITS = ("line", "paragraph", "file", "row")
# The text of each split, as files.
DATA_FILES = ("train_file", "validation_file", "test_file")
# What can be said of each text; all but the weight are options of a run with one text.
TEXT_KEYS = (*DATA_FILES, "dataset_name", "dataset_config_name", "text_column", "document_unit")
# Options that each say where text comes from.
SOURCES = (*DATA_FILES, "dataset_name", "train_mix")
# These would make a metric that has a meaning already, such as `eval_train_loss`.
_RESERVED = ("train", "validation", "test", "eval", "all")
_EXAMPLE = '{"news": {"train_file": "news.txt", "weight": 0.7}, "books": {"dataset_name": "books", "weight": 0.3}}'

Mix = dict[str, dict[str, Any]]


def read_mix(value: Any) -> Mix:
    """The texts of a mix by name, in the order of their names, each with a weight.

    Args:
        value: the object, or the path of a JSON file with it.

    Raises:
        UserError: if it is no mix; one line that names the text and the key.
    """
    remedy = f"give a JSON file, or the object itself: '{_EXAMPLE}'"
    content = read_json_file(value, "--train_mix", remedy) if isinstance(value, str) else value
    if not isinstance(content, dict):
        raise UserError(f"--train_mix must be a JSON object, such as '{_EXAMPLE}'")
    if not content:
        raise UserError(f"--train_mix is empty; name at least one text, such as '{_EXAMPLE}'")
    # by name, so that the order in which the texts are written down changes nothing
    mix = {name: _read_text(name, content[name]) for name in sorted(content)}
    if not math.isfinite(sum(text["weight"] for text in mix.values())):
        raise UserError("--train_mix: the sum of the weights is too large; only their proportions count")
    return mix


def shares_of(mix: Mix) -> dict[str, float]:
    """The weights, divided by their sum; as fractions, so that 0.6 and 0.3 give the very shares of 2 and 1."""
    weights = {name: Fraction(str(text["weight"])) for name, text in mix.items()}
    total = sum(weights.values())
    return {name: float(weight / total) for name, weight in weights.items()}


def _read_text(name: str, text: Any) -> dict[str, Any]:
    """Check what is said of one text."""
    if not (name.isascii() and name.isidentifier()) or name in _RESERVED:
        raise UserError(
            f"--train_mix: {name!r} cannot be the name of a text; use letters, digits and _, not a digit first, and "
            f"none of {', '.join(_RESERVED)}"
        )
    where = f"--train_mix {name}"
    if not isinstance(text, dict):
        raise UserError(f'{where}: an object is expected, such as {{"train_file": "{name}.txt", "weight": 1}}')
    for key, value in text.items():
        _check_key(where, key, value)
    stated = {key: text[key] for key in TEXT_KEYS if text.get(key) is not None}
    _check_source(where, stated)
    return {**stated, "weight": float(text.get("weight", 1.0))}


def _check_key(where: str, key: str, value: Any) -> None:
    known = (*TEXT_KEYS, "weight")
    if key not in known:
        raise UserError(f"{where}: unknown key {key!r}{_suggestion(key, known)}")
    if key == "weight":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= sys.float_info.max:
            raise UserError(f"{where}: the weight must be a finite number above 0, got {json.dumps(value)}")
    elif value is not None and not (isinstance(value, str) and value):
        raise UserError(f"{where}: {key} must be a string, got {json.dumps(value)}")
    elif key == "document_unit" and value is not None and value not in DOCUMENT_UNITS:
        raise UserError(
            f"{where}: invalid choice for document_unit: {value!r} (choose from {', '.join(DOCUMENT_UNITS)})"
        )


def _suggestion(key: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(known)}"


def _check_source(where: str, stated: dict[str, Any]) -> None:
    """Exactly one source of training text, and nothing beside it that would have no effect."""
    if "train_file" in stated and "dataset_name" in stated:
        raise UserError(f"{where}: dataset_name has no effect beside train_file; leave one of them out")
    if "train_file" not in stated and "dataset_name" not in stated:
        raise UserError(f"{where}: there is no training text; give train_file or dataset_name")
    beside = DATA_FILES if "dataset_name" in stated else ("dataset_config_name",)
    given = "dataset_name" if "dataset_name" in stated else "train_file"
    for key in beside:
        if key in stated:
            raise UserError(f"{where}: {key} has no effect beside {given}; leave one of them out")
