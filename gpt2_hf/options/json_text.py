"""JSON that the user has written, in a file or on the command line: whatever is wrong with it is one line.

In: a path or a text. Out: what it says.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError, to_utf8


def read_json_file(path: str, option: str, remedy: str) -> Any:
    """What a JSON file says.

    Args:
        path: of the file.
        option: the option it was given by, for errors.
        remedy: what to do if it cannot be read.

    Raises:
        UserError: if it cannot be read, or `read_json` finds it wrong.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{option}: {path} cannot be read (it is not UTF-8); {to_utf8(error.object)}") from error
    except (OSError, ValueError) as error:  # what cannot be a path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{option}: {path} cannot be read ({reason}); {remedy}") from error
    return read_json(text, lambda problem: UserError(f"{option}: {path}: {problem}"))


def read_json(text: str, fail: Callable[[str], Exception]) -> Any:
    """What a JSON text says. A key that is given twice is an error; `json.loads` would let the last one win.

    Args:
        text: the JSON.
        fail: makes the error to raise from what is wrong with the text.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise fail(f"the key {twice!r} is given twice; keep one")
        return content

    try:
        return json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise fail(f"it is not JSON: {error.msg} in line {error.lineno}") from error
    except UserError:  # a ValueError too
        raise
    except RecursionError as error:
        raise fail("its brackets are nested too deeply; take some away") from error
    except ValueError as error:
        raise fail("an integer in it has too many digits; write a smaller one") from error
