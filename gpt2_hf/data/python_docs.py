"""The embedded corpus `python-docs`: the language reference that every CPython carries.

Half a megabyte of English prose with code samples, from the standard library's `pydoc_data.topics`
(what `help("assert")` prints). It lets the first run start with no download, and ships no text.
"""

import re

from datasets import Dataset

NAME = "python-docs"


def load_python_docs() -> Dataset:
    """One row per section of the language reference, in the column `text`, in alphabetical order of topics.

    The text depends a little on the Python version.
    """
    from pydoc_data.topics import topics

    rows = [section for _, topic in sorted(topics.items()) for section in _sections(topic)]
    return Dataset.from_dict({"text": rows})


def _sections(topic: str) -> list[str]:
    """Cut a topic before each heading, a line underlined with `*`, `=` or `-`."""
    parts = re.split(r"\n(?=[^\n]+\n(?:\*{3,}|={3,}|-{3,})\n)", topic)
    return [part.strip() + "\n" for part in parts if part.strip()]
