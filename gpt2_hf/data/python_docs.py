"""The embedded corpus `python-docs`: the language reference that every CPython carries.

A third of a megabyte of English prose with code samples, from the standard library's `pydoc_data.topics`
(what `help("assert")` prints). It lets the first run start with no download, and ships no text.

Some topics consist of sections of other topics, with small changes. Each of these is taken once, or a part of the
validation text would be known from the training.
"""

import itertools
import re

from datasets import Dataset

NAME = "python-docs"

# Shorter paragraphs, such as "For example:", belong to no section alone.
_LONG_PARAGRAPH = 60


def load_python_docs() -> Dataset:
    """One row per section of the language reference, in the column `text`, in alphabetical order of topics.

    A section of which the most stands in an earlier one is left out. The text depends a little on the Python version.
    """
    from pydoc_data.topics import topics

    rows: list[str] = []
    known: set[str] = set()  # paragraphs of the sections so far
    for section in itertools.chain.from_iterable(_sections(topic) for _, topic in sorted(topics.items())):
        paragraphs = {part for part in section.split("\n\n") if len(part) >= _LONG_PARAGRAPH}
        if 2 * sum(map(len, paragraphs - known)) >= sum(map(len, paragraphs)):
            rows.append(section)
        known |= paragraphs
    return Dataset.from_dict({"text": rows})


def _sections(topic: str) -> list[str]:
    """Cut a topic before each heading, a line underlined with `*`, `=` or `-`."""
    parts = re.split(r"\n(?=[^\n]+\n(?:\*{3,}|={3,}|-{3,})\n)", topic)
    return [part.strip() + "\n" for part in parts if part.strip()]
