"""Prompts of the command line, of a file or of a pipe, and the lines of JSON in which they are passed on.

In: the options of `generate`. Out: records with the key `prompt`.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.readers import with_line_feeds
from ..errors import UserError, to_utf8
from ..options.arguments import GenerationArguments

# What `generate --output_file` adds to a record.
_OUTPUT_KEYS = ("sample", "completion")
# Endings of what other commands read, but not this one.
_OTHER_FORMATS = (".json", ".csv", ".tsv", ".parquet", ".gz", ".zst", ".bz2", ".xz", ".zip")


def read_prompts(args: GenerationArguments) -> list[dict[str, Any]]:
    """What to continue: records with the key `prompt`."""
    if args.prompt is not None:
        return [{"prompt": argument_text(args.prompt, "--prompt")}]
    if args.prompt_file is None:
        return [{"prompt": _piped_prompt()}]
    path = Path(os.path.expanduser(args.prompt_file))
    ending = path.suffix.lower()
    if ending in _OTHER_FORMATS:
        raise UserError(f"--prompt_file: {path}: {ending} is not read here; write one prompt per line, or .jsonl")
    try:
        raw = path.read_bytes()
        text = _decoded(raw, f"--prompt_file: {path} cannot be read (it", to_utf8(raw))
    except OSError as error:
        raise UserError(f"--prompt_file: {path} cannot be read ({error.strerror}); give a file of prompts") from error
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise UserError(f"--prompt_file: {path} is empty; write one prompt per line")
    if ending not in (".jsonl", ".ndjson"):
        return [{"prompt": line} for _, line in numbered]
    reserved = _OUTPUT_KEYS if args.output_file is not None else ()
    with _integers_of_any_length():
        return [_read_record(line, f"--prompt_file: {path}, line {number}", reserved) for number, line in numbered]


def argument_text(text: str, option: str) -> str:
    """A text of the command line. Bytes that the locale has no characters for (LC_ALL=C) are read as UTF-8.

    Python passes such bytes on as lone surrogates (PEP 383).
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        try:
            raw = os.fsencode(text)
        except UnicodeEncodeError:  # half of a surrogate pair, from a config file
            return require_text(text, option)
    return _decoded(raw, f"{option} cannot be read (it", normal_line_ends=False)


def _piped_prompt() -> str:
    """Standard input, which is UTF-8 whatever the locale says, without the one line end that ends its last line."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:  # a stream of text that another program has put in its place
        text = with_line_feeds(require_text(sys.stdin.read(), "the prompt from standard input"))
    else:
        text = _decoded(stream.read(), "the prompt from standard input cannot be read (it")
    return text.removesuffix("\n")


def _decoded(raw: bytes, problem: str, remedy: str = "give it in UTF-8", normal_line_ends: bool = True) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at byte {error.start}"
        raise UserError(f"{problem} is not UTF-8); {byte}: {remedy}") from error
    return with_line_feeds(text) if normal_line_ends else text


@contextlib.contextmanager
def _integers_of_any_length() -> Iterator[None]:
    """Lift Python's limit of 4,300 digits, for what stands beside a prompt and is passed on as it is."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def _read_record(line: str, where: str, reserved: Sequence[str]) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{where} has too many brackets inside each other to be passed on; leave them out") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(f'{where} must be an object like {{"prompt": "..."}}')
    require_text(record["prompt"], f"{where}: the prompt")
    for key in reserved:
        if key in record:
            raise UserError(f"{where} has the key {key!r}, which --output_file writes; rename it, or leave it out")
    return record


def as_json(record: dict[str, Any]) -> str:
    """A line of JSON, in plain characters as far as there are some for it."""
    with _integers_of_any_length():
        line = json.dumps(record, ensure_ascii=False)
        try:
            line.encode("utf-8")
        except UnicodeEncodeError:  # what stands beside the prompt may hold half of a surrogate pair
            line = json.dumps(record)
    return line + "\n"


def require_text(text: str, where: str) -> str:
    """Refuse what has no characters: half of a surrogate pair, of JSON or of another program."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start : error.start + 1]
        raise UserError(f"{where} holds half of a surrogate pair ({half!r}), which is no text; repair it") from error
    return text
