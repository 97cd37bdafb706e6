"""The results that `evaluate --output_file` has left in folders of runs: is a difference between two significant?

In: folders. Out: lines.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.files import read_object
from .significance import paired_difference

_SAME_MEASUREMENT = ("fingerprint", "protocol", "context", "stride", "precision")


def compare_evaluations(folders: Sequence[Path], labels: Sequence[str]) -> list[str]:
    """Compare the first of several runs with each other one, by the files of one name that both have.

    Args:
        folders: of the runs.
        labels: what the runs are called.

    Returns:
        A line for each pair of files.
    """
    (label, first), *others = zip(labels, map(_evaluations, folders), strict=True)
    return [
        f"{name}: {_in_words(first[name], other[name], label, other_label)}"
        for other_label, other in others
        for name in sorted(first.keys() & other.keys())
    ]


def _evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder, by the names of their files."""
    found = {}
    for path in folder.glob("*.json"):
        content = read_object(path)
        if {"pieces", *_SAME_MEASUREMENT} <= content.keys():
            pieces = content["pieces"]
            if isinstance(pieces, dict) and all(isinstance(pieces.get(name), list) for name in ("tokens", "nll")):
                found[path.name] = content
    return found


def _in_words(first: dict[str, Any], second: dict[str, Any], label: str, other_label: str) -> str:
    tokens = first["pieces"]["tokens"]
    if tokens != second["pieces"]["tokens"] or any(first[name] != second[name] for name in _SAME_MEASUREMENT):
        return (
            f"{label} and {other_label} cannot be compared: they were scored on other tokens, or in another way "
            f"({', '.join(_SAME_MEASUREMENT)})"
        )
    losses = [np.array(result["pieces"]["nll"], dtype=float) for result in (first, second)]
    return paired_difference(losses[0], losses[1], np.array(tokens)).in_words(label, other_label)
