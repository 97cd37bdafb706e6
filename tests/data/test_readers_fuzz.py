"""gpt2_hf.data.readers under arbitrary bytes: documents or one line of error, and what is valid comes back as it was.

A few seconds by default. `GPT2_HF_FUZZ_MINUTES=10 .ci/slow tests/data/test_readers_fuzz.py -s` goes on for as
long as that; hypothesis prints the example that fails, and how to run it again.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2_hf.data.sources import load_sources
from gpt2_hf.errors import UserError

from ..data_fixtures import file_arguments

MINUTES = float(os.environ.get("GPT2_HF_FUZZ_MINUTES", "10"))
fuzz = settings(max_examples=60, suppress_health_check=list(HealthCheck))

KINDS = [".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".parquet"]
PACKED = ["", ".gz", ".bz2", ".xz", ".zst"]
ENDINGS = [kind + packed for kind in KINDS for packed in PACKED if kind != ".parquet" or not packed]
UNITS = [None, "line", "paragraph", "file", "row"]


def zst(raw: bytes) -> bytes:
    return pa.Codec("zstd").compress(raw, asbytes=True)


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}

# What readers have stumbled over: ends of lines that are none, marks of a byte order, halves of characters, quotes.
PIECES = st.sampled_from(
    [
        *'\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\0\ufeff",;\t|\\{}[]: é字🙂',
        "\r\n",
        '""',
        "text",
        "content",
        '"text"',
        "NaN",
        "7" * 99,
    ]
)
texts = st.lists(PIECES | st.text(max_size=5)).map("".join)
dirty = st.lists(
    PIECES.map(str.encode)
    | st.binary(max_size=8)
    | st.sampled_from(
        [b"\xff", b"\xfe\xff", b"\xed\xa0\x80", b"\xf0\x9f", b'{"text": "a"}\n', b'{"text": "\\ud800"}\n']
    )
    | st.sampled_from(
        [b'"n": ' + b"7" * 5000, b"[" * 5000, b"text,b\n", b"1;2\n", b'{"text": "', b'"}\n', b"1e999999"]
    )
).map(b"".join)
headed = st.tuples(
    st.sampled_from(
        [b"", b"text\n", b"id,text\n", b"id;text\n", b"id\ttext\n", b'[{"text": "a"}, ', b'{"text": "a"}\n']
    ),
    dirty,
).map(b"".join)


def damaged(raw: bytes, seed: int) -> bytes:
    """The bytes with a few of them overwritten, left out or put in."""
    numbers, out = random.Random(seed), bytearray(raw)
    for _ in range(numbers.randint(1, 6)):
        at = numbers.randrange(len(out) + 1)
        out[at : at + numbers.choice([0, 1, 1, 9])] = numbers.randbytes(numbers.choice([0, 1, 1, 4]))
    return bytes(out[: numbers.choice([len(out), len(out), max(len(out) - numbers.randrange(60), 0)])])


def parquet(columns: dict) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=3)
    return sink.getvalue()


def documents_or_error(path: Path, **options) -> list[str | None] | None:
    """What is read of a file; an error must be a single line that names an option."""
    try:
        return [text for text, _ in load_sources(file_arguments(path, **options))["train"].documents()]
    except UserError as error:
        message = str(error)
        assert message.startswith("--") and message.isprintable(), message
        return None


def written(folder: Path, ending: str, raw: bytes) -> Path:
    kind = next(kind for kind in sorted(KINDS, key=len, reverse=True) if ending.startswith(kind))
    path = folder / f"a{ending}"
    path.write_bytes(PACK[ending.removeprefix(kind)](raw))
    return path


def check_any_bytes(folder: Path, ending: str, raw: bytes, unit: str | None, column: str | None) -> None:
    options = {"document_unit": unit, "text_column": column}
    for path in (written(folder, ending, raw), folder / f"b{ending}"):
        if path.name.startswith("b"):
            path.write_bytes(raw)  # not even compressed
        found = documents_or_error(path, **options)
        for text in found or []:
            if text is not None:
                text.encode("utf-8")


def check_damage(folder: Path, ending: str, rows: list[str], seed: int) -> None:
    raw = encoded(ending, rows)
    path = folder / f"a{ending}"
    kind, packed = ending.split(".")[1], ending.split(".")[2:]
    whole = PACK["." + packed[0] if packed else ""](raw)
    path.write_bytes(damaged(whole, seed))
    documents_or_error(path)
    if kind != "parquet":
        written(folder, ending, damaged(raw, seed))
        documents_or_error(path)


def encoded(ending: str, rows: list[str]) -> bytes:
    """Documents as a file of a format, other fields beside them."""
    kind = "." + ending.split(".")[1]
    if kind in (".txt", ".md"):
        return "".join(row + "\n" for row in rows).encode()
    if kind == ".parquet":
        return parquet({"text": pa.array(rows, pa.string()), "n": [1] * len(rows)})
    if kind == ".jsonl":
        return "".join(
            json.dumps({"n": 1, "text": row, "m": [row]}, ensure_ascii=False) + "\n" for row in rows
        ).encode()
    if kind == ".json":
        return json.dumps([{"n": 1, "text": row, "m": {"text": row}} for row in rows], indent=1).encode()
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter="\t" if kind == ".tsv" else ",")
    writer.writerows([["n", "text"], *([i, row] for i, row in enumerate(rows))])
    return stream.getvalue().encode()


def unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_round_trip(folder: Path, ending: str, rows: list[str]) -> None:
    """Rows, lines and whole files come back as they were, but for the ends of their lines."""
    kind = "." + ending.split(".")[1]
    if kind in (".csv", ".tsv", ".txt", ".md"):
        rows = [row.replace("\0", "") for row in rows]
    path = written(folder, ending, encoded(ending, rows))
    text = unix("".join(row + "\n" for row in rows)).removeprefix("\ufeff")
    if kind == ".md":
        assert "".join(documents_or_error(path) or []) == text
    elif kind == ".txt":
        lines = [line + "\n" for line in text.split("\n")[:-1]]
        if rows:
            assert documents_or_error(path) == lines
            paragraphs = documents_or_error(path, document_unit="paragraph")
            blank_is_left_out = [line for line in lines if line.strip()]
            kept = "".join(paragraph for paragraph in paragraphs if not paragraph.isspace())
            assert kept == "".join(blank_is_left_out)
    elif rows or kind == ".parquet":
        assert documents_or_error(path) == list(map(unix, rows))
        lines = documents_or_error(path, document_unit="line")
        assert "".join(lines) == "".join(map(unix, rows))


PROPERTIES = {
    check_any_bytes: (st.sampled_from(ENDINGS), dirty | headed, st.sampled_from(UNITS), st.none() | texts),
    check_damage: (st.sampled_from(ENDINGS), st.lists(texts, min_size=1), st.integers(0, 1 << 32)),
    check_round_trip: (st.sampled_from(ENDINGS), st.lists(texts)),
}


@pytest.mark.parametrize("check", PROPERTIES)
def test_fuzz(check, tmp_path_factory):
    """Any bytes, and any damage, are documents or one line of error; what is valid comes back as it was."""

    @fuzz
    @given(st.tuples(*PROPERTIES[check]))
    def holds(arguments):
        check(tmp_path_factory.mktemp("fuzz"), *arguments)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("check", PROPERTIES)
def test_fuzz_for_minutes(check, tmp_path_factory):
    """The same with ever new examples, for a third of `GPT2_HF_FUZZ_MINUTES` each."""
    end = time.monotonic() + MINUTES * 60 / len(PROPERTIES)
    while time.monotonic() < end:

        @settings(fuzz, max_examples=1000, print_blob=True, database=None)
        @given(st.tuples(*PROPERTIES[check]))
        def holds(arguments):
            folder = tmp_path_factory.mktemp("fuzz")
            check(folder, *arguments)
            shutil.rmtree(folder)

        holds()
