"""Attributes that have other values for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def temporarily(target: Any, **values: Any) -> Iterator[None]:
    """Give attributes of an object these values, and afterwards those that they had before, also after an error."""
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
