"""gpt2_hf.data.sources and readers: every kind of text in, and an error that names the place where it is none."""

import bz2
import copy
import csv
import dataclasses
import errno
import gzip
import io
import json
import lzma
import os
import shlex
import shutil
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Value, exceptions
from datasets.arrow_writer import ArrowWriter
from datasets.data_files import get_data_patterns
from datasets.table import CastError, InMemoryTable
from hypothesis import given
from hypothesis import strategies as st

from gpt2_hf.checkpoints import written
from gpt2_hf.data import load_data, readers, tokenization
from gpt2_hf.data.encoding import Encoder
from gpt2_hf.data.folders import plain_folder, visible_files
from gpt2_hf.data.sources import Cursor, FileSource, RowSource, load_sources, split_document
from gpt2_hf.data.tokenization import tokenize
from gpt2_hf.errors import UserError
from gpt2_hf.options.arguments import DataArguments, Preferred

from ..data_fixtures import WIKITEXT, file_arguments

TEXTS = ["First document.\n", "", "Zweites Dokument, größer.\n", "三つ目の文書。\n", "Last one"]


def write_zst(path, raw):
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(raw)


COMPRESSORS = {
    "": lambda path, raw: path.write_bytes(raw),
    ".gz": lambda path, raw: path.write_bytes(gzip.compress(raw)),
    ".bz2": lambda path, raw: path.write_bytes(bz2.compress(raw)),
    ".xz": lambda path, raw: path.write_bytes(lzma.compress(raw)),
    ".zst": write_zst,
}


def write(folder: Path, ending: str, texts: list[str], column: str = "text", name: str = "data") -> Path:
    """Write documents as a file of a format."""
    kind, compression = [*ending.rsplit(".", 1), ""][:2] if ending.count(".") > 1 else (ending, "")
    path = folder / f"{name}{ending}"
    compression = compression and f".{compression}"
    if kind in (".txt", ".text", ".md"):
        content = "".join(text if text.endswith("\n") else text + "\n" for text in texts)
    elif kind in (".jsonl", ".ndjson"):
        content = "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts))
    elif kind == ".json":
        content = json.dumps([{"id": i, column: text} for i, text in enumerate(texts)], indent=1)
    elif kind in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if kind == ".tsv" else ",")
            writer.writerows([["id", column], *([i, text] for i, text in enumerate(texts))])
        content = path.read_bytes().decode()
    else:
        pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path, row_group_size=2)
        return path
    COMPRESSORS[compression](path, content.encode())
    return path


def write_arrow(path: Path, texts: list[str]) -> None:
    """Write documents as a file that only the datasets library reads."""
    with ArrowWriter(path=str(path), features=Features({"text": Value("string")})) as writer:
        writer.write_table(pa.table({"text": texts}))
        writer.finalize()


def card_of(files: dict[str, str]) -> str:
    """A README.md that says which files belong to which split."""
    splits = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in files.items())
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n"


def read(arguments: DataArguments, split: str = "train") -> list[str | None]:
    return [text for text, _ in load_sources(arguments)[split].documents()]


def error_of(arguments: DataArguments) -> str:
    with pytest.raises(UserError) as error:
        for source in load_sources(arguments).values():
            list(source.documents())
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- what can be read ----


@pytest.mark.parametrize(
    "ending",
    [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"]
    + [kind + packed for kind in (".jsonl", ".csv") for packed in COMPRESSORS if packed],
)
def test_rows_of_every_format(tmp_path, ending):
    """Every format with columns gives the very same documents, compressed or not."""
    assert read(file_arguments(write(tmp_path, ending, TEXTS))) == TEXTS


@pytest.mark.parametrize("ending", [".txt", ".text", *(".txt" + packed for packed in COMPRESSORS if packed)])
def test_lines_of_text(tmp_path, ending):
    """A text file gives its lines with their ends, compressed or not."""
    expected = [text if text.endswith("\n") else text + "\n" for text in TEXTS]
    assert read(file_arguments(write(tmp_path, ending, TEXTS))) == expected


@pytest.mark.parametrize(
    ("ending", "unit", "expected"),
    [
        (".txt", None, ["# A\n", "b\n", "\n", " \n", "c\n"]),
        (".txt", "line", ["# A\n", "b\n", "\n", " \n", "c\n"]),
        (".txt", "paragraph", ["# A\nb\n", "c\n"]),
        (".txt", "file", ["# A\nb\n\n \nc\n"]),
        (".md", None, ["# A\nb\n\n \nc\n"]),
        (".md", "paragraph", ["# A\nb\n", "c\n"]),
        (".jsonl", None, ["# A\nb\n\n \nc\n"]),
        (".jsonl", "row", ["# A\nb\n\n \nc\n"]),
        (".jsonl", "paragraph", ["# A\nb\n", "c\n"]),
        (".jsonl", "line", ["# A\n", "b\n", "\n", " \n", "c\n"]),
    ],
)
def test_document_units(tmp_path, ending, unit, expected):
    """A document is what --document_unit says; by default a line of txt, a file of md, a row of anything else."""
    path = write(tmp_path, ending, ["# A\nb\n\n \nc\n"])
    assert read(file_arguments(path, document_unit=unit)) == expected


@given(text=st.text(alphabet="ab \n\r\x0b\x85\u2028", max_size=30))
def test_lines_lose_nothing(text):
    """The lines of a row, joined, are the row, whatever else Unicode takes for the end of a line."""
    assert "".join(split_document(text, readers.DocumentUnit.LINE)) == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system(tmp_path, end):
    """Line ends of Windows and of old Macs become those of Unix."""
    (tmp_path / "a.txt").write_bytes(f"one{end}two{end}".encode())
    assert read(file_arguments(tmp_path / "a.txt")) == ["one\n", "two\n"]
    assert read(file_arguments(tmp_path / "a.txt", document_unit="file")) == ["one\ntwo\n"]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_line_ends_in_the_fields_of_rows(tmp_path, ending):
    """They become those of Unix as in a text file, and end a line or a paragraph as there."""
    path = write(tmp_path, ending, ["one\r\ntwo\rthree\n\r\nfour", "\r"])
    assert read(file_arguments(path)) == ["one\ntwo\nthree\n\nfour", "\n"]
    assert read(file_arguments(path, document_unit="line")) == ["one\n", "two\n", "three\n", "\n", "four", "\n"]
    assert read(file_arguments(path, document_unit="paragraph")) == ["one\ntwo\nthree\n", "four", "\n"]


@pytest.mark.parametrize("streaming", [False, True])
def test_line_ends_in_the_rows_of_a_dataset(streaming):
    """The same of what the datasets library holds or streams."""
    dataset = Dataset.from_dict({"text": ["one\r\ntwo\rthree", None, ""]})
    rows = dataset.to_iterable_dataset() if streaming else dataset
    source = RowSource("train", rows, "text", readers.DocumentUnit.ROW)
    assert [text for text, _ in source.documents()] == ["one\ntwo\nthree", None, ""]


def test_ids_of_other_line_ends_are_not_taken_from_the_cache(tmp_path, gpt2, monkeypatch):
    """The cache of a version that kept the line ends in fields is of another text."""
    source = load_sources(file_arguments(write(tmp_path, ".csv", ["one\r\ntwo"])))["train"]
    with monkeypatch.context() as earlier:
        earlier.setattr(tokenization, "_CACHE_VERSION", "4")
        earlier.setattr(readers.records, "with_line_feeds", str)
        assert gpt2.decode(tokenize(source, gpt2).read(0, 4)) == "one\r\ntwo"
    assert gpt2.decode(tokenize(source, gpt2).read(0, 3)) == "one\ntwo"


def test_byte_order_mark(tmp_path):
    """A byte order mark is no text."""
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n', encoding="utf-8-sig")
    assert read(file_arguments(tmp_path / "a.txt")) == ["one\n", "two\n"]
    assert read(file_arguments(tmp_path / "a.jsonl")) == ["one"]


@given(
    text=st.lists(st.sampled_from(["a", "é", "字", "🙂", "\n", "\r", "\r\n", "\ufeff"])).map("".join),
    size=st.integers(1, 9),
)
def test_pieces_of_a_document(tmp_path_factory, text, size):
    """In whatever pieces a whole file is read, no character and no line end is cut in two."""
    path = tmp_path_factory.mktemp("pieces") / "a.md"
    path.write_bytes(("begin" + text + "end").encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers.plain_text, "_PIECE_BYTES", size)
        documents = read(file_arguments(path))
    assert documents == ["begin" + text.replace("\r\n", "\n").replace("\r", "\n") + "end"]


def test_a_document_without_line_ends_is_read_in_few_pieces(tmp_path, monkeypatch):
    """Two megabytes of Chinese without a line end or a character of ASCII are not read byte by byte."""
    text, sizes = "字" * 700_000, []

    class Watched(io.BytesIO):
        def read(self, size):
            sizes.append(size)
            return super().read(size)

    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(readers.TextFile, "open", lambda file: Watched(text.encode()))
    assert read(file_arguments(tmp_path / "a.md")) == [text]
    assert len(sizes) < 10


def test_globs_may_mix_formats(tmp_path):
    """A glob takes files of several formats, in the order of their names; each split has its own."""
    write(tmp_path, ".txt", ["from txt"], name="b")
    write(tmp_path, ".jsonl.zst", ["from zst"], name="a")
    write(tmp_path, ".parquet", ["from parquet"], name="c")
    held_out = write(tmp_path, ".csv", ["held out"], name="held-out")
    arguments = file_arguments(tmp_path / "[abc].*", validation_file=str(held_out), test_file=str(held_out))
    assert read(arguments) == ["from zst", "from txt\n", "from parquet"]
    assert read(arguments, "validation") == read(arguments, "test") == ["held out"]


def test_recursive_glob(tmp_path):
    """Two asterisks reach into folders."""
    (tmp_path / "x" / "y").mkdir(parents=True)
    write(tmp_path / "x" / "y", ".txt", ["deep"])
    assert read(file_arguments(tmp_path / "**" / "*.txt")) == ["deep\n"]


def test_what_a_run_wrote_is_no_text_of_a_glob(tmp_path):
    """Its model cards lie where a pattern finds them: they are left out, which is said; a path takes them in."""
    (tmp_path / "README.md").write_text("Text of mine.\n")
    run = tmp_path / "checkpoints"
    (run / "best_model").mkdir(parents=True)
    for name in ("README.md", "best_model/README.md"):
        written.write_text(run, name, "# A model\n")
    arguments = file_arguments(tmp_path / "**" / "*.md")
    assert read(arguments) == ["Text of mine.\n"]
    layout = load_sources(arguments)["train"].layout
    assert "NOT READ: 2 that --train_file matches and a run wrote (" in layout
    assert f"{Path('checkpoints', 'best_model', 'README.md')}" in layout
    assert read(file_arguments(run / "README.md")) == ["# A model\n"]
    assert "only files that runs wrote" in error_of(file_arguments(run / "*.md"))
    (run / "README.md").write_text("Edited by hand.\n")
    assert read(arguments) == ["Text of mine.\n", "Edited by hand.\n"]


def test_marks_of_a_glob_in_a_name(tmp_path):
    """A file whose name looks like a glob is found by its name."""
    path = write(tmp_path, ".txt", ["text"], name="data[1]")
    assert read(file_arguments(path)) == ["text\n"]


def test_csv_fields_over_several_lines(tmp_path):
    """Quoted line ends and delimiters belong to the field."""
    texts = ["one\ntwo, three\n", 'say "so"', ""]
    assert read(file_arguments(write(tmp_path, ".csv", texts))) == texts


@pytest.mark.parametrize(("column", "wanted"), [("text", None), ("content", None), ("story", "story")])
def test_text_column(tmp_path, column, wanted):
    """The column is text or content, or the one that is asked for."""
    path = write(tmp_path, ".jsonl", TEXTS, column=column)
    assert read(file_arguments(path, text_column=wanted)) == TEXTS


def test_a_single_column_needs_no_name(tmp_path):
    """Where there is one column only, it holds the text."""
    (tmp_path / "a.jsonl").write_text('{"story": "one"}\n{"story": null}\n')
    assert read(file_arguments(tmp_path / "a.jsonl")) == ["one", None]


# ---- going on in the middle ----


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.zst", ".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("unit", ["line", "paragraph", None])
def test_reading_goes_on_anywhere(tmp_path, ending, unit):
    """From the cursor of any document on come exactly the documents that are left, over files."""
    texts = ["one\ntwo\n\nthree\n", "größer\n", "\n", "four\n\nfive"]
    write(tmp_path, ending, texts, name="a")
    write(tmp_path, ending, texts, name="b")
    source = load_sources(file_arguments(tmp_path / f"*{ending}", document_unit=unit))["train"]
    documents = list(source.documents())
    assert len(documents) >= 8 or ending.startswith(".json") or unit is None
    for i, (_, cursor) in enumerate(documents):
        assert list(source.documents(cursor)) == documents[i:]


@pytest.mark.wikitext
def test_reading_wikitext_goes_on_anywhere():
    """The same in a Parquet file of several row groups."""
    source = load_sources(DataArguments(dataset_name=str(WIKITEXT)))["validation"]
    documents = list(source.documents())
    assert len(documents) == 3760
    for i in (1, 999, 1000, 1024, 3759):
        assert list(source.documents(documents[i][1])) == documents[i:]


def test_rows_of_a_dataset_go_on_anywhere():
    """The same for a dataset of the datasets library."""
    source = load_sources(DataArguments(dataset_name="python-docs"))["train"]
    documents = list(source.documents())
    assert list(source.documents(Cursor(0, 17, 17))) == documents[17:]


# ---- folders ----


def test_folder_of_text(tmp_path):
    """A folder of text files is a dataset, its splits named by the files."""
    write(tmp_path, ".txt", ["training"], name="train")
    write(tmp_path, ".txt", ["testing"], name="test")
    sources = load_sources(DataArguments(dataset_name=str(tmp_path), dataset_config_name=None))
    assert {name: [text for text, _ in source.documents()] for name, source in sources.items()} == {
        "train": ["training\n"],
        "test": ["testing\n"],
    }


FOLDERS = [
    (("a.txt", "b.txt", "c.jsonl", "d.csv"), "2 of the 4 text files in the folder (c.jsonl, d.csv)"),
    (("train journeys.txt", "other.txt", "more.txt"), "2 of the 3 text files in the folder (more.txt, other.txt)"),
    (("train.txt", "train-2.txt", "val.txt", "extra.txt"), "1 of the 4 text files in the folder (extra.txt)"),
    (("a.md", "b.txt"), "1 of the 2 text files in the folder (a.md)"),
    (("a.txt", "../elsewhere/b.txt"), "1 of the 2 text files in the folder (link/b.txt)"),
    (
        ("a.txt", "b.txt", "0.csv", "0.json", "0.md", "0.tsv"),
        "4 of the 6 text files in the folder (0.csv, 0.json, 0.md, ...)",
    ),
    (("a.txt", "b.txt", "x.png", "0.md"), "1 of the 3 text files in the folder (0.md)"),
    (("a.txt", "b.txt", "0.md", "README.md"), "1 of the 3 text files in the folder (0.md)"),
    (("a.md", "sub/README.md"), "1 of the 2 text files in the folder (sub/README.md)"),
    (("a.md", "b.md", "sub/c.md"), None),
    (("a.txt", "sub/b.txt", "README.md", ".hidden.txt", ".hidden/c.txt", "dataset_info.json"), None),
]


@pytest.mark.parametrize(("names", "unread"), FOLDERS)
def test_files_of_a_folder_that_are_not_read(tmp_path, names, unread):
    """They are named once in what is said of the text; a glob is offered only where it reads all, and then it does."""
    folder = tmp_path / "folder"
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = {".csv": "text,id\none,1\n", ".tsv": "text\tid\none\t1\n", ".json": '[{"text": "one"}]'}
        path.write_text(rows.get(path.suffix, '{"text": "one"}\n'))
    if (tmp_path / "elsewhere").is_dir():
        (folder / "link").symlink_to(tmp_path / "elsewhere")
    sources = load_sources(DataArguments(str(folder), None))
    said = "; ".join(source.layout for source in sources.values())
    if unread is None:
        assert "NOT READ" not in said
        texts = [name for name in names if not name.startswith(".") and name not in ("README.md", "dataset_info.json")]
        assert len(list(sources["train"].documents())) == len(texts)
        return
    assert said.count("NOT READ") == 1 and f"NOT READ: {unread}; to read " in sources["train"].layout
    words = shlex.split(said.split("; to read ")[1].split(";")[0])
    if words[0] == "all":
        assert "README.md" not in names  # the glob would read it
        assert words[2] == "--train_file" and len(load_sources(file_arguments(words[3]))["train"].files) == len(names)
    else:
        assert "--validation_file" in said and {"val.txt", "x.png", "README.md"} & {*names}


@pytest.mark.parametrize("name", ["text", "csv"])
def test_a_folder_called_as_a_format(tmp_path, monkeypatch, name):
    """It alone is read, not what lies beside it."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    Path(name, "a.txt").write_text("one\n")
    Path("b.txt").write_text("two\n")
    assert read(DataArguments(name)) == ["one\n"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", [".txt", ".arrow"])
def test_a_file_of_a_folder_is_read_once(tmp_path, ending, streaming):
    """Several patterns of the library take it in, or a link beside it; whoever reads the files."""
    folder = tmp_path / "folder"
    place = folder / "train" / "train-clean"
    place.mkdir(parents=True)
    if ending == ".arrow":
        write_arrow(place / "a.arrow", ["one"])
    else:
        write(place, ending, ["one"], name="a")
    (place / f"b{ending}").symlink_to(place / f"a{ending}")
    texts = read(DataArguments(str(folder), streaming=streaming))
    assert [text.strip() for text in texts] == ["one"]


def test_a_folder_that_holds_itself(tmp_path):
    """A link to a folder above is not followed again and again."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "sub" / "nowhere.txt").symlink_to(tmp_path / "missing")
    assert visible_files(str(tmp_path)) == [str(tmp_path / "sub" / "a.txt")]


@pytest.mark.parametrize(
    ("option", "said"), [("data_files: a.txt", False), ("data_dir: sub", False), ("description: mine", True)]
)
def test_a_card_may_leave_files_out(tmp_path, option, said):
    """What the author of a dataset did not want is not said, and only that."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "sub/train.txt"):
        (folder / name).write_text("text\n")
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: own\n  {option}\n---\n")
    assert ("NOT READ" in load_sources(DataArguments(str(folder), None))["train"].layout) is said


@pytest.mark.parametrize("streaming", [False, True])
def test_text_beside_a_format_of_the_library(tmp_path, streaming):
    """Also where the datasets library reads the folder, what it leaves out is named."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write_arrow(folder / "a.arrow", ["one"])
    write(folder, ".txt.zst", ["two"], name="b")
    (folder / "b.arrow").write_bytes((folder / "a.arrow").read_bytes())
    source = load_sources(DataArguments(str(folder), None, streaming=streaming))["train"]
    assert "NOT READ: 1 of the 1 text files in the folder (b.txt.zst); to read them" in source.layout
    assert [text for text, _ in source.parts(2)[1].documents()] == ["one"]


def test_what_is_not_read_is_said_with_the_text(tmp_path, gpt2):
    """In the line of the run, and where the layouts of the splits differ."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train.txt", "train-2.txt", "val.txt", "extra.txt"):
        (folder / name).write_text("some text\n")
    summary = load_data(DataArguments(str(folder), None), gpt2, 16).summary()
    assert summary.count("NOT READ: 1 of the 4 text files in the folder (extra.txt)") == 1 and "\n" not in summary


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_another_format(tmp_path, streaming):
    """What only the datasets library can read is read by it, stored or streamed, and keyed by its content."""
    keys = set()
    for texts in (["one", "two", "three"], ["one", "two", "3"]):
        folder = tmp_path / texts[-1]
        folder.mkdir()
        write_arrow(folder / "train.arrow", texts)
        source = load_sources(DataArguments(str(folder), None, streaming=streaming))["train"]
        documents = list(source.documents())
        assert [text for text, _ in documents] == texts
        assert list(source.documents(documents[1][1])) == documents[1:]
        keys.add(source.key())
    assert len(keys) == 2


CARDS = [
    ("sample_by: document", "a.txt", b"one\ntwo"),
    ("skiprows: 1", "a.csv", b"no header\ntext\nhello\n"),
    ('quotechar: "\'"', "a.csv", b"id,text\n1,'a, \"b'\n"),
    ("encoding: latin-1", "a.csv", "id,text\n1,größer\n".encode("latin-1")),
    ("escapechar: '!'", "a.csv", b'id,text\n1,"a !" b"\n'),
    ("sep: '~'", "a.csv", b"id~text\n1~a, b\n"),
    ("column_names: [text]", "a.csv", b"one\ntwo\n"),
    ("field: rows", "a.json", b'{"rows": [{"text": "one"}]}'),
    ("filters: [[text, '>', one]]", "a.parquet", pa.table({"text": ["one", "two"]})),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("option", "name", "content"), CARDS, ids=[option.split(":")[0] for option, _, _ in CARDS])
def test_how_a_card_says_that_files_are_read(tmp_path, option, name, content, streaming):
    """A folder whose README.md names reading options gives what the datasets library gives."""
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: own\n  data_files: {name}\n  {option}\n---\n")
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(content, tmp_path / name)
    wanted = list(datasets.load_dataset(str(tmp_path))["train"]["text"])
    assert read(DataArguments(str(tmp_path), None, streaming=streaming)) == wanted


def test_paragraphs_that_a_card_asks_for_keep_the_blank_line_between_them(tmp_path):
    """The library takes it off; a text that is joined has it again."""
    card = "---\nconfigs:\n- config_name: own\n  data_files: a.txt\n  sample_by: paragraph\n---\n"
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert read(DataArguments(str(tmp_path), None)) == ["one\ntwo\n\n", "three\n\n"]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_library_reads_is_never_stale(tmp_path, streaming):
    """Its caches go by the card alone: another text in the same file, or in a folder of the same name, is read too."""
    keys = set()
    for place, text in (("a", "one\n"), ("a", "two\n"), ("b", "three\n")):
        folder = tmp_path / place / "folder"
        folder.mkdir(parents=True, exist_ok=True)
        card = "---\nconfigs:\n- config_name: own\n  data_files: a.txt\n  sample_by: document\n---\n"
        (folder / "README.md").write_text(card)
        (folder / "a.txt").write_text(text)
        arguments = DataArguments(str(folder), None, streaming=streaming)
        assert read(arguments) == [text]
        keys.add(load_sources(arguments)["train"].key())
    assert len(keys) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_library_reads_is_the_same_anywhere(tmp_path, streaming):
    """On another host, say: a copy in another place and of another date has the same key."""
    keys = set()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        with zipfile.ZipFile(tmp_path / place / "train.zip", "w") as archive:
            archive.writestr(zipfile.ZipInfo("a.txt"), "one\n")
        os.utime(tmp_path / place / "train.zip", (len(keys), len(keys)))
        keys.add(load_sources(DataArguments(str(tmp_path / place), None, streaming=streaming))["train"].key())
    assert len(keys) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_archives(tmp_path, streaming):
    """The datasets library reads zip files, as those of a set on the hub; also what replaces them."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for texts in (["one", "two"], ["three"]):
        with zipfile.ZipFile(folder / "train.zip", "w") as archive:
            archive.writestr("a.txt", "".join(f"{text}\n" for text in texts))
        assert read(DataArguments(str(folder), None, streaming=streaming)) == [f"{text}\n" for text in texts]


@pytest.mark.parametrize("streaming", [False, True])
def test_plain_text_in_an_archive(tmp_path, streaming):
    """It gives the documents that it gives unpacked, with line ends and blank lines; but no paragraphs."""
    text = "First Citizen:\nBefore we proceed\n\n\nAll:\nSpeak.\n"
    for name in ("packed", "unpacked"):
        (tmp_path / name).mkdir()
    (tmp_path / "unpacked" / "train.txt").write_text(text)
    with zipfile.ZipFile(tmp_path / "packed" / "train.zip", "w") as archive:
        archive.writestr("train.txt", text)
    packed = DataArguments(str(tmp_path / "packed"), None, streaming=streaming)
    assert read(packed) == read(DataArguments(str(tmp_path / "unpacked"), None)) == text.splitlines(keepends=True)
    packed.document_unit = "paragraph"
    assert error_of(packed).startswith("--document_unit paragraph: the datasets library reads ")


@pytest.mark.wikitext
def test_wikitext_in_the_layout_of_the_hub():
    """The splits, rows and blank rows of WikiText-2 are those the hub serves; our own readers read them."""
    sources = load_sources(DataArguments(dataset_name=str(WIKITEXT), dataset_config_name="wikitext-2-v1"))
    counts = {}
    for split, source in sources.items():
        texts = [text for text, _ in source.documents()]
        counts[split] = (len(texts), sum(bool(text.strip()) for text in texts))
    assert all(isinstance(source, FileSource) for source in sources.values())
    assert counts == {"train": (36718, 23767), "validation": (3760, 2461), "test": (4358, 2891)}


@pytest.mark.wikitext
def test_config_names():
    """A wrong config is refused with the right ones; one that was meant for another dataset is passed over."""
    name = "wikitext-103-v1"
    assert "available: wikitext-2-v1" in error_of(DataArguments(str(WIKITEXT), name))
    assert set(load_sources(DataArguments(str(WIKITEXT), Preferred(name)))) == {"train", "validation", "test"}


def test_a_folder_is_searched_once(tmp_path, monkeypatch):
    """Each search goes through all of its files some 65 times."""
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.csv").write_text("text,id\ntwo,2\n")
    searched = []

    def search(*args, **options):
        searched.append(args)
        return get_data_patterns(*args, **options)

    monkeypatch.setattr("datasets.load.get_data_patterns", search)
    assert "NOT READ" in load_sources(DataArguments(str(tmp_path)))["train"].layout
    assert len(searched) == 1


def test_a_config_meant_for_another_dataset_is_not_recorded(corpus_folder):
    """A local folder without the default's config: what a run records of it can be loaded again as it stands."""
    assert "available: default" in error_of(DataArguments(str(corpus_folder), "wikitext-2-v1"))
    arguments = DataArguments(dataset_name=str(corpus_folder))  # the config name is still WikiText-2's
    arguments = dataclasses.replace(copy.deepcopy(arguments))
    assert arguments.dataset_config_name == "wikitext-2-v1" and "test" in load_sources(arguments)
    recorded = DataArguments(dataset_name=arguments.dataset_name, dataset_config_name=arguments.dataset_config_name)
    assert "test" in load_sources(recorded)


@pytest.mark.parametrize("wanted", [None, Preferred("wikitext-2-v1")])
def test_several_configs(tmp_path, wanted):
    """None is chosen in silence; all are named."""
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.txt\n" for name in "ab")
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    message = error_of(DataArguments(str(tmp_path), wanted))
    assert message == f"--dataset_config_name: {tmp_path} has several configs; choose one of ['a', 'b']"
    assert read(DataArguments(str(tmp_path), "b")) == ["b\n"]


@pytest.fixture
def cached_configs(tmp_path, cache_folder):
    """Puts configs of a dataset into the library's cache, as if they had come from the hub."""

    def put(name: str, configs: list[str]) -> None:
        user, dataset = name.split("/")
        folder, stored = tmp_path / user / dataset, tmp_path / user / "stored"
        folder.mkdir(parents=True)
        described = "".join(f"- config_name: {config}\n  data_files: {config}.txt\n" for config in configs)
        (folder / "README.md").write_text(f"---\nconfigs:\n{described}---\n")
        for config in configs:
            (folder / f"{config}.txt").write_text(f"text of {config}\n")
            datasets.load_dataset(str(folder), config, cache_dir=str(stored))
        shutil.copytree(stored / dataset, cache_folder / f"{user}___{dataset}")

    return put


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", [str, Preferred])
def test_a_config_of_the_cache(cached_configs, kind, streaming):
    """Without a network a dataset that was loaded once is read again, also one config of several."""
    cached_configs("Salesforce/wikitext", ["wikitext-2-v1", "wikitext-103-v1"])
    arguments = DataArguments("Salesforce/wikitext", kind("wikitext-2-v1"), streaming=streaming)
    assert read(arguments) == ["text of wikitext-2-v1\n"]
    assert arguments.dataset_config_name == "wikitext-2-v1"


def test_another_config_of_the_cache(cached_configs):
    """Of the default dataset it never stands for the one that is meant; of others a preferred one is passed over."""
    cached_configs("Salesforce/wikitext", ["wikitext-103-v1"])
    message = error_of(DataArguments())
    assert message == error_of(DataArguments("Salesforce/wikitext", "wikitext-2-v1"))
    assert "the hub cannot be reached" in message and "no config 'wikitext-2-v1', only: wikitext-103-v1;" in message
    cached_configs("x/y", ["wikitext-103-v1"])
    arguments = DataArguments("x/y")
    assert read(arguments) == ["text of wikitext-103-v1\n"] and arguments.dataset_config_name is None


def test_python_docs():
    """The embedded corpus has a third of a megabyte of text, and next to no paragraph twice."""
    arguments = DataArguments(dataset_name="python-docs")
    texts = read(arguments)
    assert arguments.dataset_config_name is None  # nothing to record
    assert "python-docs has no configs; leave it out" in error_of(DataArguments("python-docs", "plain"))
    assert sum(map(len, texts)) > 330_000
    paragraphs = [part for text in texts for part in text.split("\n\n") if len(part) >= 60]
    assert sum(map(len, paragraphs)) < 1.03 * sum(map(len, {*paragraphs}))


# ---- what cannot be read ----


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".jsonl", ".csv", ".md"])
def test_not_utf8(tmp_path, ending):
    """Text in another encoding is refused with file, byte and line."""
    path = write(tmp_path, ending, ["good\n", "bad byte here\n"])
    raw = (gzip.decompress if ending.endswith(".gz") else bytes)(path.read_bytes())
    at = raw.index(b"byte")
    COMPRESSORS[".gz" if ending.endswith(".gz") else ""](path, raw[:at] + b"\xff" + raw[at + 1 :])
    message = error_of(file_arguments(path))
    line = raw[:at].count(b"\n") + 1
    assert f"--train_file: {path} is not UTF-8: byte 0xff at byte {at}" in message
    assert "iconv -f LATIN1 -t UTF-8 FILE > NEW" in message
    assert f"line {line}" in message or ending == ".md"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("ending", [".txt", ".md", ".csv", ".jsonl", ".json"])
def test_utf_16(tmp_path, ending, encoding):
    """What Windows may write, with its mark in either order of the bytes, is refused with how to convert it."""
    path = write(tmp_path, ending, ["good\n"])
    path.write_bytes(("\ufeff" * (encoding != "utf-16") + path.read_text()).encode(encoding))
    message = error_of(file_arguments(path))
    assert message.startswith(f"--train_file: {path} ") and "iconv -f UTF-16 -t UTF-8 FILE > NEW" in message


@pytest.mark.parametrize("ending", [".txt", ".md", ".csv", ".jsonl"])
def test_nul_byte(tmp_path, ending):
    """A NUL byte is refused with file and byte."""
    path = write(tmp_path, ending, ["good\n", "bad byte\n"])
    raw = path.read_bytes()
    at = raw.index(b"byte")
    path.write_bytes(raw[:at] + b"\0" + raw[at + 1 :])
    assert f"{path} holds a NUL byte at byte {at}" in error_of(file_arguments(path))


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".txt.gz"])
def test_line_of_9_megabytes(tmp_path, ending):
    """It is refused with file and line."""
    path = write(tmp_path, ending, ["short\n", "word " * 1_800_000])
    message = error_of(file_arguments(path))
    assert f"{path}: line" in message and "longer than 8,388,608 characters" in message
    assert ("break the line, or use --document_unit file, up to 512 MiB" in message) == ending.startswith(".txt")


def test_a_document_of_a_gigabyte(tmp_path, monkeypatch):
    """It is refused, and sent to lines only where they are short enough to be read."""
    monkeypatch.setattr("gpt2_hf.data.readers.plain_text.MAX_FILE_BYTES", 1 << 20)
    path = write(tmp_path, ".txt", ["word " * 300_000])
    message = error_of(file_arguments(path, document_unit="file"))
    assert "larger than 1 MiB, too much for one document; split it, or use --document_unit line where no" in message


def test_a_long_line_that_is_cut_within_a_character(tmp_path):
    """The limit in bytes may fall into a character: the line is too long, and still UTF-8."""
    path = write(tmp_path, ".txt", ["a" + "文" * 11_500_000])
    assert "longer than 8,388,608 characters" in error_of(file_arguments(path))


def test_paragraph_without_end(tmp_path):
    """A paragraph beyond the limit is refused with its first line."""
    path = tmp_path / "a.txt"
    path.write_text("first\n\n" + "some words of a line\n" * 500_000)
    assert "the paragraph from line 3 on is longer" in error_of(file_arguments(path, document_unit="paragraph"))


TO_JSON = 'df.to_json(path, orient="records", lines=True)'


def test_broken_json_line(tmp_path):
    """A broken line of JSON is named by its number."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two}\n{"text": "three"}\n')
    message = error_of(file_arguments(path))
    assert f"{path} is broken in line 3" in message and "one JSON object" in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('["a", "b"]', 'element 0 is str, not an object; write objects, such as {"text": "..."}'),
        ('"a"\n"b"\n', 'line 1 holds str, not an object; each line must be one JSON object, such as {"text": "..."}'),
        *(
            (columns, f"{place}choose another column, or write one text per row, in pandas with {TO_JSON}")
            for columns, place in (
                ('{"text": ["a", "b"]}\n', "column 'text' holds list, not text, in line 1; "),
                ('{"text": {"0": "a", "1": "b"}}', "column 'text' holds dict, not text, in line 1; "),
                ('[{"text": ["a", "b"]}]', "column 'text' holds list, not text, in element 0; "),
            )
        ),
        ('{\n "text": ["a", "b"]\n}\n', f"each line must be one JSON object, in pandas {TO_JSON}"),
        ('[{"text": "a"}, {"text" "b"}]', "is broken in line 1"),
        ('{"text": "a"}\n17\n', "line 2 holds int"),
        ('{"text": "a"}\n{"text": 17}\n', "column 'text' holds int, not text, in line 2"),
        ('{"text": "a"}\n{"text": "\\ud800"}\n', "line 2 holds half of a surrogate pair"),
    ],
)
def test_json_that_is_no_text(tmp_path, content, problem):
    """JSON of another shape is refused with its place."""
    path = tmp_path / "a.json"
    path.write_text(content)
    assert problem in error_of(file_arguments(path))


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_damaged_compression(tmp_path, packed, damage):
    """A compressed file that is cut or overwritten is refused by name."""
    texts = [f"line {i} {i * 7919 % 1000003}\n" for i in range(20_000)]
    path = write(tmp_path, ".txt" + packed, texts)
    raw = bytearray(path.read_bytes())
    if damage == "cut":
        raw = raw[: len(raw) // 2]
    else:
        raw[len(raw) // 2 : len(raw) // 2 + 64] = b"\xaa" * 64
    path.write_bytes(bytes(raw))
    assert str(path) in error_of(file_arguments(path))


@pytest.mark.parametrize("ending", [".txt.gz", ".txt.zst", ".txt.bz2", ".txt.xz", ".parquet"])
def test_not_what_the_ending_says(tmp_path, ending):
    """A file that is not of its ending's format is refused by name."""
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"plain text all along\n" * 10)
    message = error_of(file_arguments(path))
    assert f"--train_file: {path}" in message


def test_csv_with_unquoted_delimiters(tmp_path):
    """A row with more fields than the header is refused with its line: half of its text would be lost."""
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,fine\n2,not, so fine\n")
    assert "the row in line 3 has 3 fields, the header has 2" in error_of(file_arguments(path))


@pytest.mark.parametrize(
    ("name", "lines", "is_remedy"),
    [
        ("a.jsonl", ['{"text": "one"}', '{"text": "two"}'], True),
        ("a.csv", ["text,id", "one,1", "two,2"], True),
        ("a.csv", ['"text","id"', '"one","1"'], True),
        ("a.csv", ['text,id\n"one', 'two",1\n"a "stray" quote",1\n'], False),
        ("a.tsv", ["text\tid\none", "two\t1\n"], False),
        ("a.jsonl", ['{"text": "one', 'two"'], False),
    ],
)
def test_rows_that_end_with_a_lone_carriage_return(tmp_path, name, lines, is_remedy):
    """The remedy is that for line ends, unless a field holds them and something else is wrong."""
    (tmp_path / name).write_bytes("\r".join(lines).encode() + b"\r")
    message = error_of(file_arguments(tmp_path / name))
    assert message.endswith(r"; end the rows with \n: tr '\r' '\n' < FILE > NEW") == is_remedy


@pytest.mark.parametrize("row", ['"never closed\nand on\n', '"a "stray" quote"\n'])
def test_csv_with_an_open_quote(tmp_path, row):
    """A quote that is never closed, or not doubled, is refused with the line where its row begins."""
    path = tmp_path / "a.csv"
    path.write_text(f'text\n"fine\ntext"\n{row}')
    message = error_of(file_arguments(path))
    assert f"{path} cannot be read as csv: " in message and "in the row from line 4 on; " in message
    assert "double each quote" in message


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_missing_column(tmp_path, ending):
    """A column that is not there is refused, and the columns that are there are listed."""
    path = write(tmp_path, ending, TEXTS, column="story")
    assert f"--text_column: {path} has no column 'txt'; it has id, story" in error_of(
        file_arguments(path, text_column="txt")
    )
    assert "holds the text? It has id, story" in error_of(file_arguments(path))


def test_column_of_another_type(tmp_path):
    """A column of numbers is refused before training."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert "holds int64, not text" in error_of(file_arguments(path))


# Rows whose text the datasets library stores as JSON, because not each of them is a string.
MIXED = [{"text": "one\ntwo"}, {"text": 3}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("streaming", [False, True])
def test_values_of_several_types_of_the_library(tmp_path, name, streaming):
    """Refused, as our own reader refuses them: their source has quotes and escapes. The library may learn it late."""
    card = f"---\nconfigs:\n- config_name: own\n  data_files: {name}\n  chunksize: 999\n---\n"
    (tmp_path / "README.md").write_text(card)
    rows = "\n".join(map(json.dumps, MIXED)) if name == "a.jsonl" else json.dumps(MIXED)
    (tmp_path / name).write_text(rows)
    message = error_of(DataArguments(str(tmp_path), None, streaming=streaming))
    assert message.startswith("--text_column: column 'text' holds JSON values, not text, in the train split of ")


def test_values_of_several_types_that_are_stored(tmp_path):
    """The same of what save_to_disk wrote, and of Parquet."""
    Dataset.from_list(MIXED, on_mixed_types="use_json").save_to_disk(str(tmp_path / "saved"))
    assert "holds JSON values, not text" in error_of(DataArguments(str(tmp_path / "saved"), None))
    values = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"one\\ntwo"', "3"]))
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    assert "holds extension<arrow.json" in error_of(file_arguments(tmp_path / "a.parquet"))


def not_utf8(rows: list[bytes]) -> pa.Table:
    """A table whose column of text, as a careless program wrote it, holds other bytes."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(rows))]
    return pa.table({"text": pa.Array.from_buffers(pa.string(), len(rows), buffers)})


def test_parquet_that_is_not_utf8(tmp_path):
    """A column of text that holds other bytes is refused with file and row."""
    path = tmp_path / "a.parquet"
    pq.write_table(not_utf8([b"good", b"good", b"b\xffd", b"good"]), path, row_group_size=2)
    assert f"--train_file: {path} is not UTF-8 in row 3; " in error_of(file_arguments(path))


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_are_not_utf8(streaming):
    """The same of what the datasets library holds or streams, which reads parquet files as they are."""
    dataset = Dataset(InMemoryTable(not_utf8([b"good", b"b\xffd"])))
    rows = dataset.to_iterable_dataset() if streaming else dataset
    source = RowSource("train", rows, "text", readers.DocumentUnit.ROW)
    with pytest.raises(UserError, match=r"--dataset_name: column 'text' of the train split .* after row [01] .*0xff"):
        list(source.documents())


def test_other_columns_of_a_stream_are_not_decoded():
    """An image that no program could open is not looked at."""
    rows = Dataset.from_dict({"text": ["a"], "image": [{"bytes": b"broken", "path": None}]})
    rows = rows.cast_column("image", datasets.Image()).to_iterable_dataset()
    source = RowSource("train", rows, "text", readers.DocumentUnit.ROW)
    assert [text for text, _ in source.documents()] == ["a"]


def test_text_has_no_columns(tmp_path):
    """--text_column with plain text has no effect, and is refused."""
    path = write(tmp_path, ".txt", TEXTS)
    assert "leave the option out" in error_of(file_arguments(path, text_column="story"))
    assert "leave the option out" in error_of(file_arguments(path, document_unit="row"))


def test_plain_text_beside_files_with_columns(tmp_path):
    """What is said of columns and rows holds for the files that have them, in any split."""
    table, plain = write(tmp_path, ".csv", ["one"], column="body"), write(tmp_path, ".txt", ["two"])
    arguments = file_arguments(table, validation_file=str(plain), text_column="body", document_unit="row")
    assert read(arguments) == ["one"] and read(arguments, "validation") == ["two\n"]
    assert read(file_arguments(tmp_path / "data.*", text_column="body")) == ["one", "two\n"]


@pytest.mark.parametrize(("ending", "unit"), [(".txt", "row"), (".jsonl", "file")])
def test_units_that_a_format_lacks(tmp_path, ending, unit):
    """A unit that the format does not have is refused with those it has."""
    message = error_of(file_arguments(write(tmp_path, ending, TEXTS), document_unit=unit))
    assert message.startswith(f"--document_unit {unit}: ") and "line" in message


def test_unknown_ending(tmp_path):
    """A file of an unknown kind is refused with the kinds that are known."""
    (tmp_path / "a.docx").write_text("text")
    message = error_of(file_arguments(tmp_path / "a.docx"))
    assert ".jsonl" in message and ".zst" in message


@pytest.mark.parametrize("name", ["missing.txt", "missing/*.txt", "$SCRATCH/a.txt"])
def test_missing_file(tmp_path, name):
    """A file that is not there is refused by the option and name."""
    message = f"--train_file: no file matches {str(tmp_path / name)!r}; give a path or a quoted glob"
    assert error_of(file_arguments(tmp_path / name)) == message


def test_what_is_no_file_of_this_machine(tmp_path):
    """An address and a pipe are called what they are."""
    for address in ("https://example.com/a.txt", "hf://datasets/a/b.txt"):
        assert f"{address} is an address; download it" in error_of(DataArguments(train_file=address))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.txt")
        assert "is no regular file" in error_of(file_arguments(tmp_path / "pipe.txt"))


def test_a_note_for_a_spreadsheet(tmp_path):
    """The line that names the delimiter to Excel is no header."""
    (tmp_path / "a.csv").write_text("\ufeffsep=;\r\nid;text\r\n1;a text\r\n", encoding="utf-8")
    assert "'sep=;', is a note for a spreadsheet; delete that line" in error_of(file_arguments(tmp_path / "a.csv"))


def test_unreadable_file(tmp_path, monkeypatch):
    """A file that may not be read is refused by name, by the key of its content too, which comes first."""
    path = write(tmp_path, ".txt", TEXTS)
    source = load_sources(file_arguments(path))["train"]

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("gpt2_hf.data.fingerprints._hash", refuse)
    with pytest.raises(UserError) as error:
        source.key()
    assert str(error.value).startswith(f"--train_file: {path} cannot be read (Permission denied); check")


def test_folder_as_file(tmp_path):
    """A folder where a file is expected is refused with both ways to give a folder."""
    message = error_of(file_arguments(tmp_path))
    assert f"--dataset_name {tmp_path}" in message and "*.txt" in message


def test_empty_file(tmp_path):
    """A file without bytes is refused; beside others it is passed over."""
    (tmp_path / "a.txt").touch()
    assert f"{tmp_path / 'a.txt'} is empty" in error_of(file_arguments(tmp_path / "a.txt"))
    write(tmp_path, ".txt", ["text"], name="b")
    assert read(file_arguments(tmp_path / "*.txt")) == ["text\n"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(b"")),
        ("a.csv.gz", gzip.compress(b"")),
        ("a.txt.xz", lzma.compress(b"")),
        ("a.jsonl", b"\n"),
        ("a.json", b"[]"),
        ("a.csv", b"\n"),
    ],
    # gzip writes the time of day into its bytes
    ids=["empty jsonl.gz", "empty csv.gz", "empty txt.xz", "blank jsonl", "empty array", "blank csv"],
)
def test_a_file_without_rows(tmp_path, name, content):
    """An empty shard, also a compressed one, is passed over beside others, and named where it is the only one."""
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name} is empty" in error_of(file_arguments(tmp_path / name))
    write(tmp_path, ".jsonl", ["text"], name="b")
    assert read(file_arguments(tmp_path / "*")) == ["text"]


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_a_json_row_without_the_field(tmp_path, ending):
    """A row whose text has another name is refused, not taken for blank; null is a row without text."""
    path, rows = tmp_path / f"a{ending}", [{"text": "one"}, {"text": None}, {"content": "two", "id": 3}]

    def write_rows(rows):
        path.write_text(json.dumps(rows) if ending == ".json" else "".join(json.dumps(row) + "\n" for row in rows))

    write_rows(rows)
    assert "has no field 'text'; it has content, id" in error_of(file_arguments(path))
    write_rows(rows[:2])
    assert read(file_arguments(path)) == ["one", None]


def test_links_are_followed_once(tmp_path):
    """A link to a folder of the glob gives no text twice, even where it leads in a circle; others are followed."""
    inside, outside = tmp_path / "texts", tmp_path / "others"
    for folder in (inside / "2024", outside):
        folder.mkdir(parents=True)
        write(folder, ".txt", [folder.name])
    (inside / "latest").symlink_to(inside / "2024")
    (inside / "self").symlink_to(inside)
    (inside / "others").symlink_to(outside)
    assert read(file_arguments(inside / "**" / "*.txt")) == ["2024\n", "others\n"]


def test_directory_without_data(tmp_path):
    """A folder without data is refused with what belongs into it."""
    message = error_of(DataArguments(dataset_name=str(tmp_path), dataset_config_name=None))
    assert message.startswith("--dataset_name: ") and "jsonl" in message


def test_texts_of_which_the_library_makes_no_split(tmp_path):
    """It is said, with a glob that reads them: one name makes it look for files of another kind."""
    for name in ("a.txt", "b.txt", "instruction.md"):
        (tmp_path / name).write_text("one\n")
    message = error_of(DataArguments(str(tmp_path), None))
    assert message.startswith(f"--dataset_name: the datasets library finds no split in the folder {tmp_path} (")
    assert read(file_arguments(shlex.split(message.split("--train_file ")[1])[0])) == ["one\n", "one\n"]


def test_a_file_of_a_name_that_save_to_disk_uses(tmp_path):
    """Alone it is a file as others are."""
    for name in ("state.json", "other.json"):
        (tmp_path / name).write_text(json.dumps([{"text": name}]))
    assert read(DataArguments(str(tmp_path), None)) == ["other.json", "state.json"]


@pytest.mark.parametrize(
    ("error", "answers", "message"),
    [
        (exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset.\nMore"), True, "a gated dataset); check"),
        (exceptions.DataFilesNotFoundError("No data files found"), True, "a/b cannot be loaded: No data files found"),
        (exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"), False, "the hub cannot be reached"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), True, "the hub cannot be reached"),
    ],
)
def test_not_on_the_hub(monkeypatch, error, answers, message):
    """A name that the hub does not know, or not without a login, is told from a hub that cannot be reached."""

    def refuse(*args):
        raise error

    monkeypatch.setattr("gpt2_hf.data.sources.named.ensure_hub_or_offline", lambda: answers)
    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    line = error_of(DataArguments(dataset_name="a/b", dataset_config_name=None))
    assert line.startswith("--dataset_name: ") and message in line
    assert ("hf auth login" in line) == ("gated" in message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corpus.txt", "corpus.txt is a file; give --train_file corpus.txt"),
        ("./corpus.txt", "./corpus.txt is a file; give --train_file ./corpus.txt"),
        ("https://huggingface.co/datasets/a/b/tree/main", "is an address; give the name on the hub, a/b"),
        ("https://example.org/text", "is an address; give the name on the hub, USER/NAME"),
        ("json", "json is a format, and there is no such folder; give --train_file"),
    ],
)
def test_what_is_no_name_of_a_dataset(tmp_path, monkeypatch, name, message):
    """A file, an address or a format is refused with what to give in its place, before the hub is asked."""
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("one\n")
    assert message in error_of(DataArguments(name))


def test_folder_with_a_script(tmp_path):
    """A data set that is made by a script is refused by name: the library no longer runs it."""
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("x = 1\n")
    (folder / "train.txt").write_text("some text\n")
    message = error_of(DataArguments(dataset_name=str(folder), dataset_config_name=None))
    assert message.startswith(f"--dataset_name: {folder} cannot be loaded: ") and "scripted.py" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_a_card_that_counts_other_rows(tmp_path, streaming):
    """A part of a dataset is read, whatever its card says of the whole."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write_arrow(folder / "a.arrow", ["one", "two"])
    splits = "".join(f"  - name: {split}\n    num_examples: 5\n    num_bytes: 9\n" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\ndataset_info:\n  splits:\n{splits}---\n")
    assert read(DataArguments(str(folder), None, streaming=streaming)) == ["one", "two"]


@pytest.fixture
def part_of_a_dataset(tmp_path):
    """A folder whose card names two configs of three splits each, as a part of it was downloaded."""
    described = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in ("test", "train", "validation"))
        for config in ("first", "second")
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nconfigs:\n{described}---\n")

    def fetch(config: str, splits: tuple[str, ...], ending: str = ".parquet") -> Path:
        (folder / config).mkdir(exist_ok=True)
        for split in splits:
            path = folder / config / f"{split}-0{ending}"
            if ending == ".arrow":
                write_arrow(path, [split])
            else:
                pq.write_table(pa.table({"text": [split]}), path)
        return folder

    return fetch


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize("splits", [("train", "validation"), ("train", "validation", "test")])
@pytest.mark.parametrize("others", [(), ("train",), ("train", "validation", "test")])
def test_a_card_that_names_other_files(part_of_a_dataset, splits, others, ending):
    """Of the configs and splits of a dataset those are read that are here, whatever else its card names."""
    part_of_a_dataset("first", others, ending)
    folder = part_of_a_dataset("second", splits, ending)
    sources = load_sources(DataArguments(str(folder), Preferred("second")))
    assert {split: [text for text, _ in source.documents()] for split, source in sources.items()} == {
        split: [split] for split in splits
    }


def test_a_card_that_names_no_file_of_a_folder(part_of_a_dataset):
    """It is said of the card; without the name of a config the configs are named."""
    folder = part_of_a_dataset("second", ("train",))
    assert "for the config 'first' none is here; fetch" in error_of(DataArguments(str(folder), "first"))
    assert "choose one of ['first', 'second']" in error_of(DataArguments(str(folder), None))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": "one\n", "README.md": "---\ntitle: My notes: part 1\n---\n"}, "are no YAML (mapping values"),
        ({"a.lance": "one\n"}, "cannot be loaded: No module named 'lance'"),
    ],
)
def test_what_the_library_cannot_load(tmp_path, files, message):
    """One line, whatever it raises."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    line = error_of(DataArguments(str(folder), None))
    assert line.startswith(f"--dataset_name: {folder} ") and message in line


def test_missing_folder(tmp_path):
    """A folder that is not there is not looked up at the hub."""
    message = error_of(DataArguments(dataset_name=str(tmp_path / "missing")))
    assert "--dataset_name: there is no folder" in message


@given(texts=st.lists(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])), min_size=1))
def test_any_text_comes_back(tmp_path_factory, texts):
    """Whatever Unicode text is written as jsonl, csv or parquet is read as it was."""
    folder = tmp_path_factory.mktemp("texts")
    for ending in (".jsonl", ".parquet", ".csv"):
        assert read(file_arguments(write(folder, ending, texts))) == texts


# ---- nothing misread ----

PAGE = "First page\x0c\nsecond page, same paragraph.\nA\u2028\u2029B\x85C\x1c\x1d\x1eD\x0bE, the same line\n"


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("unit", ["paragraph", "line"])
def test_only_line_feeds_end_a_line(tmp_path, ending, unit):
    """Form feeds, U+2028 and their like are text in every format: they end neither a line nor a paragraph."""
    path = write(tmp_path, ending, [PAGE + "\nNew paragraph.\n"])
    lines = [line + "\n" for line in PAGE.split("\n")[:-1]]
    expected = [PAGE, "New paragraph.\n"] if unit == "paragraph" else [*lines, "\n", "New paragraph.\n"]
    assert read(file_arguments(path, document_unit=unit)) == expected


@given(text=st.text(alphabet="ab \n\r\x0b\x0c\x1c\x85\u2028", max_size=30))
def test_paragraphs_lose_blank_lines_only(text):
    """The paragraphs of a row, joined, are its lines that are not blank."""
    lines = [line for line in io.StringIO(text, newline="\n") if not line.isspace()]
    joined = "".join(split_document(text, readers.DocumentUnit.PARAGRAPH))
    assert joined == ("".join(lines) or text)


def test_line_ends_inside_csv_fields(tmp_path):
    """Those in quotes end no row: they are text."""
    (tmp_path / "a.csv").write_bytes(b'text\r\n"one\r\ntwo"\r\n"three\rfour"\r\n"five\n"\r\n')
    assert read(file_arguments(tmp_path / "a.csv")) == ["one\ntwo", "three\nfour", "five\n"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_the_delimiter_is_found(tmp_path, delimiter, name):
    """Whichever delimiter makes the header name the column is the delimiter, and a line says so."""
    rows = [["id", "text", "label"], *([str(i), f"{text}; a, b | c\t", "x"] for i, text in enumerate(TEXTS))]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    packed = name.endswith(".gz")
    (tmp_path / name).write_bytes((gzip.compress if packed else bytes)(stream.getvalue().encode()))
    source = load_sources(file_arguments(tmp_path / name))["train"]
    assert [text for text, _ in source.documents()] == [row[1] for row in rows[1:]]
    kind = "tsv" if name == "a.tsv" else "csv"
    word = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}[delimiter]
    assert source.layout == (
        f"1 file: column 'text' of {kind} is the text, the delimiter is a {word}, the first row is the header"
    )


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("The first line of a text\nThe second\n", None, "has a single column, which its first line calls 'The first"),
        ("story\none\n", None, "has a single column, which its first line calls 'story'; give --text_column"),
        ("id;body\n1;one\n", None, "holds the text? It has id, body"),
        ("id;body\n1;one\n", "text", "has no column 'text'; it has id, body"),
        ("text,text\na,b\n", None, "has 2 columns 'text'; rename them"),
        ("a,text,b;text;c\n", None, "can be read in 2 ways, with the delimiters ',' and ';'"),
    ],
)
def test_a_csv_header_that_could_be_read_wrongly(tmp_path, content, column, message):
    """No guess is made about the column: it is refused with the option that decides."""
    (tmp_path / "a.csv").write_text(content)
    error = error_of(file_arguments(tmp_path / "a.csv", text_column=column))
    assert message in error and (error.startswith("--text_column: ") or "delimiters" in error)


def test_a_single_csv_column_is_taken_when_it_is_named(tmp_path):
    """A lone column that is called text, or that is asked for, is the text; semicolons in it are text."""
    for name, wanted in (("text", None), ("story", "story"), ("a;b", "a;b")):
        (tmp_path / "a.csv").write_text(f"{name}\none; two\n")
        assert read(file_arguments(tmp_path / "a.csv", text_column=wanted)) == ["one; two"]


OTHER_FIELDS = {
    "integer of 5,000 digits": b"7" * 5000,
    "negative": b"-" + b"7" * 5000,
    "not a number": b"NaN",
    "infinite": b"-Infinity",
    "huge float": b"1" * 400 + b"e999999999",
    "nested": b"[" * 20_000 + b"]" * 20_000,
    "nested objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "nested with text": b'[{"text": "other", "a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}]",
    "the same name twice": b'1, "n": 2, "n": {"text": "x", "text": "y"}',
    "half a pair": b'"\\ud83d"',
    "not UTF-8": b'"caf\xe9"',
    "NUL": b'"a\0b"',
    "many megabytes": b'"' + b"A" * (9 << 20) + b'"',
}


@pytest.mark.parametrize("field", OTHER_FIELDS)
@pytest.mark.parametrize("form", ["lines", "array"])
def test_other_fields_of_json(tmp_path, field, form):
    """Whatever stands in another field of a row, the text is read."""
    row = b'{"n": %b, "text": "one"}' % OTHER_FIELDS[field]
    more = b'{"text": "two", "n": %b}' % OTHER_FIELDS[field]
    (tmp_path / "a.json").write_bytes(b"[%b,\n%b]" % (row, more) if form == "array" else row + b"\n" + more + b"\n")
    assert read(file_arguments(tmp_path / "a.json")) == ["one", "two"]


@pytest.mark.parametrize("field", [b"caf\xe9", b"a\0b", b'"' + b"A" * (9 << 20) + b'"', b"\xed\xa0\x80", b"7" * 5000])
def test_other_fields_of_csv(tmp_path, field):
    """The same of a CSV file."""
    (tmp_path / "a.csv").write_bytes(b"n,text,m\n%b,one,%b\n%b,two,%b\n" % (field, field, field, field))
    assert read(file_arguments(tmp_path / "a.csv")) == ["one", "two"]


def test_other_columns_of_parquet(tmp_path):
    """The same of a parquet file, one with names that look like a path or stand twice."""
    odd = [pa.array([b"\xff", None]), pa.array([[1], [2, 3]]), pa.array([{"text": "x"}] * 2), pa.nulls(2)]
    names = ["bytes", "text.x", "struct", "struct"]
    pq.write_table(pa.table([*odd, pa.array(["one", "two"])], names=[*names, "text"]), tmp_path / "a.parquet")
    assert read(file_arguments(tmp_path / "a.parquet")) == ["one", "two"]


@pytest.mark.parametrize(
    "content", ['{"text": "a", "text": "b"}\n', '[{"text": "a"}, {"text": "b", "n": 1, "text": "c"}]']
)
def test_text_that_stands_twice(tmp_path, content):
    """A row with two texts is refused, because one of them would be lost in silence."""
    (tmp_path / "a.json").write_text(content)
    assert "has the field 'text' twice" in error_of(file_arguments(tmp_path / "a.json"))


@pytest.mark.parametrize("bad", [b"b\xffd", b"b\0d"])
def test_the_place_of_a_bad_byte_in_a_row(tmp_path, bad):
    """In rows over several lines and after a byte order mark the byte and the line are those of the file."""
    raw = b'\xef\xbb\xbfid,text\n1,good\n2,"two\nlines ' + bad + b'"\n'
    (tmp_path / "a.csv").write_bytes(raw)
    message = error_of(file_arguments(tmp_path / "a.csv"))
    assert f"at byte {raw.index(bad) + 1}, line 4" in message


ARROW_TEXT = {
    "string": pa.array(["one", None, "größer"]),
    "large_string": pa.array(["one", None, "größer"], pa.large_string()),
    "string_view": pa.array(["one", None, "größer"], pa.string_view()),
    "dictionary": pa.array(["one", None, "größer"]).dictionary_encode(),
    "dictionary of large": pa.array(["one", None, "größer"], pa.dictionary(pa.int8(), pa.large_string())),
    "binary": pa.array([b"one", None, "größer".encode()]),
    "large_binary": pa.array([b"one", None, "größer".encode()], pa.large_binary()),
    "binary_view": pa.array([b"one", None, "größer".encode()], pa.binary_view()),
}


@pytest.mark.parametrize("kind", ARROW_TEXT)
def test_every_type_of_text_in_parquet(tmp_path, kind):
    """Every Arrow type that can hold text is text; bytes are read as UTF-8."""
    pq.write_table(pa.table({"text": ARROW_TEXT[kind]}), tmp_path / "a.parquet")
    assert read(file_arguments(tmp_path / "a.parquet")) == ["one", None, "größer"]


@pytest.mark.parametrize("kind", ARROW_TEXT)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_type_of_text_in_arrow_folders(tmp_path, kind, streaming):
    """The same of a folder of Arrow files."""
    table = pa.table({"text": ARROW_TEXT[kind]})
    (tmp_path / "data").mkdir()
    with pa.ipc.new_file(str(tmp_path / "data" / "train.arrow"), table.schema) as writer:
        writer.write_table(table)
    arguments = DataArguments(str(tmp_path / "data"), None, streaming=streaming)
    assert read(arguments) == ["one", None, "größer"]


def test_bytes_that_are_not_utf8(tmp_path):
    """Bytes of an Arrow column that are not UTF-8 are refused with their row."""
    pq.write_table(pa.table({"text": [b"good", b"b\xffd"]}), tmp_path / "a.parquet")
    assert "is not UTF-8 in row 2" in error_of(file_arguments(tmp_path / "a.parquet"))


@pytest.mark.parametrize("splits", [False, True])
def test_what_save_to_disk_wrote(tmp_path, splits):
    """A folder that the datasets library wrote is read, with its splits if it has any."""
    rows = Dataset.from_dict({"text": ["one", "two"]})
    (DatasetDict({"train": rows, "test": rows}) if splits else rows).save_to_disk(str(tmp_path / "saved"))
    sources = load_sources(DataArguments(str(tmp_path / "saved"), None))
    assert list(sources) == (["train", "test"] if splits else ["train"])
    assert read(DataArguments(str(tmp_path / "saved"), None)) == ["one", "two"]
    assert "without configs" in error_of(DataArguments(str(tmp_path / "saved"), "plain"))


@pytest.mark.parametrize("name", ["val", "valid", "dev"])
def test_a_validation_split_by_another_name(tmp_path, name):
    """It is taken and named, and what is left out too: else training text would be set aside in its place."""
    rows = {split: Dataset.from_dict({"text": [split]}) for split in ("train", name, "extra")}
    DatasetDict(rows).save_to_disk(str(tmp_path / "saved"))
    arguments = DataArguments(str(tmp_path / "saved"), None)
    assert read(arguments, "validation") == [name]
    layout = load_sources(arguments)["train"].layout
    assert f"the split '{name}' is the validation text; NOT READ: the split 'extra'" in layout


def test_two_splits_that_may_be_the_validation_text(tmp_path):
    """Neither is taken, and both are named."""
    rows = {split: Dataset.from_dict({"text": [split]}) for split in ("train", "val", "dev")}
    DatasetDict(rows).save_to_disk(str(tmp_path / "saved"))
    sources = load_sources(DataArguments(str(tmp_path / "saved"), None))
    assert list(sources) == ["train"] and "NOT READ: the splits 'val', 'dev'" in sources["train"].layout


def test_splits_of_other_names_alone(tmp_path):
    """They are named, whether the datasets library or `readers` would read them."""
    rows = Dataset.from_dict({"text": ["one"]})
    DatasetDict({"train_sft": rows, "test_sft": rows}).save_to_disk(str(tmp_path / "saved"))
    message = error_of(DataArguments(str(tmp_path / "saved"), None))
    assert "has the splits 'train_sft', 'test_sft', and none of train, validation, test; give" in message
    (tmp_path / "folder" / "data").mkdir(parents=True)
    rows.to_parquet(str(tmp_path / "folder" / "data" / "corpus-00000-of-00001.parquet"))
    assert "has the split 'corpus', and none of" in error_of(DataArguments(str(tmp_path / "folder"), None))


def test_a_card_may_call_the_validation_split_otherwise(tmp_path):
    """As those of many sets on the hub do."""
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "README.md").write_text(card_of({"train": "a.txt", "dev": "b.txt"}))
    assert read(DataArguments(str(tmp_path), None), "validation") == ["two\n"]


def test_a_file_that_is_trained_on_and_scored(tmp_path):
    """A pattern may take in the validation file; the run says so."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text\n")
    arguments = DataArguments(train_file=str(tmp_path / "*.txt"), validation_file=str(tmp_path / "b.txt"))
    assert "1 of the files of --validation_file is trained on too (b.txt)" in load_sources(arguments)["train"].layout
    arguments = DataArguments(train_file=str(tmp_path / "a.txt"), validation_file=str(tmp_path / "b.txt"))
    assert "trained on" not in load_sources(arguments)["train"].layout
    for name in ("c.txt", "d.txt"):
        (tmp_path / name).write_text("text\n")
    arguments = DataArguments(train_file=str(tmp_path / "*.txt"), test_file=str(tmp_path / "*.txt"))
    assert "4 of the files of --test_file are trained on too (a.txt, b.txt, c.txt, ...):" in (
        load_sources(arguments)["train"].layout
    )


@pytest.mark.parametrize("ending", [".txt", ".arrow"])
@pytest.mark.parametrize("has_card", [False, True])
def test_a_file_of_a_folder_that_is_trained_on_and_scored(tmp_path, ending, has_card):
    """The datasets library puts `train_val` into both splits, and a card may; whoever reads the files, it is said."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (names := ("first", "val") if has_card else ("train", "train_val")):
        if ending == ".arrow":
            write_arrow(folder / f"{name}.arrow", [name])
        else:
            write(folder, ending, [name], name=name)
    if has_card:
        files = {"train": f"'*{ending}'", "validation": f"val{ending}"}
        (folder / "README.md").write_text(card_of(files))
    layout = load_sources(DataArguments(str(folder), None))["train"].layout
    assert f"1 of the validation files is trained on too ({names[1]}{ending}): the validation loss is" in layout


def test_what_save_to_disk_wrote_later(tmp_path):
    """The key follows the content of the files: the library's fingerprint may be that of an earlier text."""
    arguments, keys = DataArguments(str(tmp_path / "saved"), None), []
    for text in ("one", "two"):
        rows = Dataset.from_dict({"text": [text]})
        rows._fingerprint = "the same"
        rows.save_to_disk(str(tmp_path / "saved"))
        assert read(arguments) == [text]
        keys.append(load_sources(arguments)["train"].key())
        keys.append(load_sources(arguments)["train"].key())
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_what_save_to_disk_wrote_in_memory(tmp_path, monkeypatch):
    """Two folders have two keys also where the library is set to keep small datasets in memory."""
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 1 << 30)
    keys = []
    for text in ("one", "two"):
        Dataset.from_dict({"text": [text]}).save_to_disk(str(tmp_path / text))
        keys.append(load_sources(DataArguments(str(tmp_path / text), None))["train"].key())
    assert keys[0] != keys[1]


def test_a_connection_that_breaks(gpt2, monkeypatch):
    """What breaks while a data set is read is no fault of the cache."""
    rows = RowSource("train", Dataset.from_dict({"text": ["one", "two"]}), "text", readers.DocumentUnit.ROW, "", "x/y")

    def broken(self, first):
        yield "one"
        raise ConnectionError("Connection reset by peer")

    monkeypatch.setattr(RowSource, "_column", broken)
    with pytest.raises(UserError) as error:
        tokenize(rows, gpt2)
    message = "--dataset_name: the train split of x/y cannot be read after row 1 (Connection reset by peer); try again"
    assert str(error.value).startswith(message)


ANOTHER_COLUMN = CastError("another column", table_column_names=["a"], requested_column_names=["b"])


@pytest.mark.parametrize("error", [ANOTHER_COLUMN, KeyError("text"), ValueError("3 fields, saw 4")])
def test_a_streamed_row_of_another_shape(monkeypatch, error):
    """A later file of the set has other columns: one line, and the row before it."""
    rows = RowSource("train", Dataset.from_dict({"text": ["one"]}), "text", readers.DocumentUnit.ROW, "", "x/y")

    def broken(self, first):
        yield "one"
        raise error

    monkeypatch.setattr(RowSource, "_column", broken)
    with pytest.raises(UserError, match=r"cannot be read after row 1 .*its files do not all have the same columns"):
        list(rows.documents())


NAMES = [
    *("my data [v1]", "[0-9]", "a*b", "q?x", "line\nend", "quo'te\"s", "emoji 🙂", "-dash", "not utf8 \udcff\udc80"),
    *("c::d", "{split}", " spaces  ", "tab\tx", "back\\slash", "#%41", "~home", "$HOME;&", "e\u0301", "file:x"),
]


def named(folder: Path, name: str) -> Path:
    """The path, if the system has such names."""
    try:
        (folder / name).mkdir()
    except (OSError, UnicodeEncodeError):
        pytest.skip("this system has no such names")
    return folder / name


@pytest.mark.parametrize("name", NAMES)
def test_names_of_folders_and_files(tmp_path, name, monkeypatch):
    """Folders and files may be called anything: as a folder, as a file, and in a glob; errors stay one line."""
    folder = named(tmp_path, name)
    for split in ("train", "validation"):
        (folder / f"{split} {name}.jsonl").write_text(json.dumps({"text": split}) + "\n")
    sources = load_sources(DataArguments(str(folder), None))
    assert {split: [text for text, _ in source.documents()] for split, source in sources.items()} == {
        "train": ["train"],
        "validation": ["validation"],
    }
    monkeypatch.chdir(tmp_path)
    assert read(file_arguments(folder / f"train {name}.jsonl")) == ["train"]
    assert read(file_arguments(f"./{name}/tr*.jsonl")) == ["train"]
    assert read(DataArguments(f"./{name}", None), "validation") == ["validation"]
    (folder / f"train {name}.jsonl").write_text("{")
    assert error_of(DataArguments(str(folder), None)).isprintable()


@pytest.mark.parametrize("name", ["notes.md~", ".~lock.a.csv#", ".git/HEAD~1"])
def test_a_stray_file_of_another_name(tmp_path, name):
    """It does not matter where the library reads the folder; no hidden file is copied where it cannot."""
    folder = tmp_path / "folder"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).touch()
    write_arrow(folder / "a.arrow", ["one"])
    assert read(DataArguments(str(folder), None)) == ["one"]
    shutil.move(folder, tmp_path / "folder [v1]")
    with plain_folder(str(tmp_path / "folder [v1]")) as copy:
        assert copy.is_copy and sorted(os.listdir(copy.path)) == [
            "a.arrow",
            *(["notes.md_"] if "notes" in name else []),
        ]


def test_a_name_that_is_also_a_pattern(tmp_path):
    """Where a name matches other files as a pattern, neither is chosen in silence; the name can be written so."""
    for name in ("data[1]", "data1"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    message = error_of(file_arguments(tmp_path / "data[1].txt"))
    assert "also a pattern" in message and "data[[]1].txt" in message
    assert read(file_arguments(tmp_path / "data[[]1].txt")) == ["data[1]\n"]


@pytest.mark.parametrize("option", ["train_file", "validation_file", "dataset_name"])
def test_blank_text_is_named(tmp_path, option, gpt2):
    """A text of blank lines only is refused with its option and file."""
    (tmp_path / "train.txt").write_text("\n \n\x0c\n" if option != "validation_file" else "text of it\n")
    (tmp_path / "validation.txt").write_text("\n \n")
    arguments = DataArguments(str(tmp_path), None)
    if option != "dataset_name":
        arguments = file_arguments(tmp_path / "train.txt", validation_file=str(tmp_path / "validation.txt"))
    with pytest.raises(UserError) as error:
        load_data(arguments, gpt2, 16)
    name = "validation.txt" if option == "validation_file" else "train.txt"
    assert str(error.value).startswith(f"--{option}: {tmp_path / name}: ")
    assert "no text to use (" in str(error.value) and "blank" in str(error.value)


def test_settings_of_the_process_are_left_alone(tmp_path, gpt2, monkeypatch):
    """Half-read files and texts leave none behind."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    before = csv.field_size_limit()
    path = write(tmp_path, ".csv", TEXTS * 1000)
    documents = load_sources(file_arguments(path))["train"].documents()
    encoded = [Encoder(gpt2, 2).encode_stream(f"text {i}" for i in range(9000)) for _ in range(2)]
    next(documents)
    for stream in encoded:
        next(stream)
    for stream in encoded:
        stream.close()
    load_data(file_arguments(path), gpt2, 16)
    assert csv.field_size_limit() == before
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    assert not datasets.are_progress_bars_disabled()
