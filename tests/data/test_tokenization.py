"""gpt2_hf.data.tokenization, encoding and cache: ids once, exact, never stale, never half."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PythonBackend

from gpt2_hf.data import cache, encoding, fingerprints, tokenization
from gpt2_hf.data.encoding import Encoder
from gpt2_hf.data.sources import FileSource, load_sources
from gpt2_hf.data.tokenization import TokenizedDocuments, is_set_aside, tokenize, tokenize_and_cut, tokenizer_key
from gpt2_hf.data.tokenizer import gpt2_tokenizer
from gpt2_hf.errors import UserError
from gpt2_hf.runtime import file_lock
from gpt2_hf.runtime.file_lock import locked

from ..conftest import needs_fork_server
from ..data_fixtures import documents_of, file_arguments
from ..faults import harness

if sys.platform != "win32":
    import fcntl

corpora = st.lists(st.lists(st.integers(0, 65535), max_size=9), max_size=12)


def source_of(path, **options):
    return load_sources(file_arguments(path, **options))["train"]


def stream_of(documents: TokenizedDocuments) -> list[int]:
    return documents.read(0, documents.num_tokens).tolist()


def entries() -> list[Path]:
    """The complete entries of the cache."""
    return sorted(path.parent for path in fingerprints.cache_root().glob("*/record.json"))


def leftovers() -> list[str]:
    """What is in the cache besides complete entries and locks."""
    whole = {path.name for path in entries()}
    return [
        path.name for path in fingerprints.cache_root().iterdir() if path.name not in whole and path.suffix != ".lock"
    ]


@pytest.fixture
def corpus(tmp_path):
    """A small text file."""
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"Line {i} has {i * i} as its number squared.\n\n" for i in range(50)))
    return path


@pytest.fixture(scope="module")
def encoder(gpt2):
    """An encoder of GPT-2's ids."""
    return Encoder(gpt2)


def wordlevel(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` ids, of which all but the last are numbers."""
    vocabulary = {**{str(i): i for i in range(size - 1)}, "[UNK]": size - 1}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


# ---- the stream of ids ----


@given(corpus=corpora, rows_per_chunk=st.integers(1, 5), data=st.data())
def test_reading_over_chunk_borders(corpus, rows_per_chunk, data):
    """Any span reads as the same span of a list, over any number of chunks and empty rows."""
    documents = documents_of(corpus, rows_per_chunk)
    stream = [token for ids in corpus for token in ids]
    start = data.draw(st.integers(0, len(stream)))
    stop = data.draw(st.integers(start, len(stream)))
    assert documents.read(start, stop).tolist() == stream[start:stop]
    assert documents.lengths.tolist() == [len(ids) for ids in corpus if ids]
    assert (documents.num_rows, documents.num_blank_rows) == (len(corpus), sum(not ids for ids in corpus))


@given(corpus=corpora)
def test_fingerprint_follows_tokens_and_borders(corpus):
    """The fingerprint does not depend on chunks, and changes with a token or a border."""
    assert documents_of(corpus, 1).fingerprint() == documents_of(corpus, 5).fingerprint()
    filled = [ids for ids in corpus if ids]
    if filled:
        changed = [*filled[:-1], [*filled[-1][:-1], (filled[-1][-1] + 1) % 65536]]
        assert documents_of(changed).fingerprint() != documents_of(filled).fingerprint()
    if len(filled) > 1:
        joined = [filled[0] + filled[1], *filled[2:]]
        assert documents_of(joined).fingerprint() != documents_of(filled).fingerprint()


def test_which_ids_are_used():
    """Each once and in order, whatever the chunks; those of blank documents are none."""
    documents = documents_of([[5, 3, 3], [], [9], [3, 0]], 2)
    assert documents.used_ids(10).tolist() == [0, 3, 5, 9]


def test_workers_map_the_cache_again(corpus, gpt2):
    """What a worker process gets is the name of the cache file, not its content."""
    documents = tokenize(source_of(corpus), gpt2)
    pickled = pickle.dumps(documents)
    copy = pickle.loads(pickled)
    assert stream_of(copy) == stream_of(documents)
    assert copy.fingerprint() == documents.fingerprint()
    assert str(entries()[0]).encode() in pickled


# ---- the ids ----


@given(texts=st.lists(st.one_of(st.none(), st.text()), max_size=20))
def test_ids_are_those_of_the_tokenizer(gpt2, encoder, texts):
    """Each document has exactly the ids that the tokenizer itself gives; white space alone has none."""
    batch = encoder.encode(texts)
    expected = [[] if not text or text.isspace() else gpt2(text).input_ids for text in texts]
    assert batch.lengths.tolist() == [len(ids) for ids in expected]
    assert batch.ids.tolist() == [token for ids in expected for token in ids]


@given(
    text=st.lists(
        st.sampled_from(["word", "it's", " ", "  ", "\n", "\n\n", "...", "12", "你好", "。", "é", "\t"])
    ).map("".join)
)
def test_long_documents_in_pieces(gpt2, encoder, text):
    """A document that is tokenised in pieces gets the very same ids."""
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_PIECE_CHARACTERS", 3)
        pieces = encoder._pieces(text)
        assert "".join(pieces) == text
        expected = gpt2(text).input_ids if text.strip() else []
        assert encoder.encode([text]).ids.tolist() == expected


def test_a_long_document_is_encoded_in_groups(gpt2, monkeypatch):
    """The tokenizer gets a bounded amount of text at a time, however long the document; the ids are the same."""
    monkeypatch.setattr(encoding, "_PIECE_CHARACTERS", 20)
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 100)
    long, short = "Some words, and a line end.\n" * 200, "A few words."
    encoder = Encoder(gpt2)
    sizes = []
    original = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda texts: sizes.append(sum(map(len, texts))) or original(texts))
    batch = encoder.encode([short, None, long, " ", short])
    expected = [gpt2(text).input_ids for text in (short, long, short)]
    assert batch.lengths.tolist() == [len(expected[0]), 0, len(expected[1]), 0, len(expected[2])]
    assert batch.ids.tolist() == [*expected[0], *expected[1], *expected[2]] and batch.ids.dtype == np.uint16
    assert sum(sizes) == len(long) + 2 * len(short) and max(sizes) < 150


def test_a_word_without_end(gpt2):
    """Three million characters without a place to cut are tokenised, and every one of them comes back."""
    text = "ab" * 1_500_000
    assert gpt2.decode(Encoder(gpt2).encode([text]).ids) == text


def test_a_tokenizer_that_cannot_work_in_pieces():
    """A huge document is refused where it would have to be tokenised at once, with the remedy."""
    with pytest.raises(UserError, match="--document_unit line or paragraph, and break longer lines"):
        Encoder(wordlevel(10)).encode(["1 " * 5_000_000])


class WordsAlone(PythonBackend):
    """A tokenizer without a Rust backend and without an unknown token."""

    def __init__(self, **options):
        self.words = {"one": 0, "two": 1}
        super().__init__(unk_token=None, **options)

    vocab_size = 2

    def get_vocab(self):
        """The words."""
        return dict(self.words)

    def _tokenize(self, text):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.words.get(token)


class Merging(WordsAlone):
    """One with merges, which stand in a file of their own."""

    def __init__(self, merges, **options):
        self.merges = merges
        super().__init__(**options)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        """The merges alone."""
        (path := Path(save_directory) / "merges.txt").write_text(self.merges)
        return (str(path),)


def test_merges_are_in_the_key_of_a_tokenizer_without_a_rust_backend():
    """They decide the ids, and no vocabulary shows them."""
    keys = [tokenizer_key(Merging(merges)) for merges in ("o n", "o n", "n e")]
    assert keys[0] == keys[1] != keys[2]


LACKING = {
    "word level": models.WordLevel({"one": 0}),
    "unigram": models.Unigram([("one", -1.0), *((mark, -9.0) for mark in "one")], None, False),
    "python": None,
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_character_that_a_tokenizer_lacks(kind):
    """One line with a remedy, for a tokenizer without an unknown token."""
    model = LACKING[kind]
    tokenizer = WordsAlone() if model is None else PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    assert Encoder(tokenizer).encode(["one"]).ids.tolist() == [0]
    with pytest.raises(UserError, match=r"the tokenizer cannot encode the text \(.+\); .* with an unknown token"):
        Encoder(tokenizer).encode(["three"])


def test_the_place_of_a_tokenizer_is_not_in_its_key():
    """How it was loaded changes no ids; how it takes a text apart may."""
    places = [{}, {"name_or_path": "/a", "is_local": True, "vocab_file": "/a/vocab"}, {"local_files_only": True}]
    assert len({tokenizer_key(WordsAlone(**place)) for place in places}) == 1
    assert tokenizer_key(WordsAlone(lower=True)) != tokenizer_key(WordsAlone())


@pytest.mark.parametrize(("size", "width"), [(65536, 2), (65537, 4)])
def test_bytes_of_an_id(tmp_path, size, width):
    """Ids take two bytes as long as the vocabulary allows, and every id of it survives."""
    path = tmp_path / "a.txt"
    path.write_text(" ".join([*map(str, range(size - 1)), "other"]))
    documents = tokenize(source_of(path), wordlevel(size))
    assert stream_of(documents) == list(range(size))
    stored = (entries()[0] / "documents.arrow").stat().st_size
    assert size * width <= stored < size * width * 1.1 + 4096


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(corpus, gpt2, workers, monkeypatch):
    """The ids and their order do not depend on the number of threads."""
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 7)
    texts = corpus.read_text().splitlines(keepends=True)
    expected = [token for text in texts if text.strip() for token in gpt2(text).input_ids]
    assert stream_of(tokenize(source_of(corpus), gpt2, workers)) == expected


# ---- the cut ----


@given(count=st.integers(2, 400), percent=st.fractions(min_value=Fraction(1, 10), max_value=99, max_denominator=10))
def test_share_that_is_set_aside(count, percent):
    """The share is met to one document at any length, and both sides have a document from the second on."""
    share = percent / 100
    chosen = sum(is_set_aside(i, share) for i in range(count))
    assert abs(chosen - count * share) <= 1
    assert 0 < chosen < count


@pytest.mark.parametrize("percentage", ["0.1", "5", "12.5", "33.333333333333336", "50", "66.6", "99"])
def test_which_documents_are_set_aside(percentage):
    """Those at which the sum of the shares passes a whole number, in exact fractions."""
    share = Fraction(percentage) / 100
    offset = 1 - 2 * share if share < Fraction(1, 2) else Fraction(0)
    sums = [i * share + offset for i in range(10_001)]
    expected = [after >= before // 1 + 1 for before, after in itertools.pairwise(sums)]
    assert [is_set_aside(i, share) for i in range(10_000)] == expected


def test_cut_is_by_document_and_loses_none(corpus, gpt2):
    """The two parts of the cut are the documents, each in one part, in their order."""
    rest, cut, known, count = tokenize_and_cut(source_of(corpus), gpt2, 10)
    lines = [line for line in corpus.read_text().splitlines(keepends=True) if line.strip()]
    ids = [gpt2(line).input_ids for line in lines]
    chosen = [i for i in range(50) if is_set_aside(i, Fraction(1, 10))]
    assert len(chosen) == 5
    assert stream_of(cut) == [token for i in chosen for token in ids[i]]
    assert stream_of(rest) == [token for i in range(50) if i not in chosen for token in ids[i]]
    assert rest.num_rows + cut.num_rows == 100 and rest.num_blank_rows == 50 and (known, count) == (0, 50)


def test_cut_of_a_text_whose_lines_are_joined(corpus, gpt2):
    """The same documents are set aside; the blank lines between them stay with the rest."""
    cut = tokenize_and_cut(source_of(corpus), gpt2, 10).cut
    with_white_space = tokenize_and_cut(source_of(corpus), gpt2, 10, keep_white_space=True)
    assert with_white_space.cut.fingerprint() == cut.fingerprint()
    assert with_white_space.documents == 50
    lines = corpus.read_text().splitlines(keepends=True)
    chosen = [2 * i for i in range(50) if is_set_aside(i, Fraction(1, 10))]
    rest = with_white_space.rest
    assert gpt2.decode(stream_of(rest)) == "".join(lines[i] for i in range(100) if i not in chosen)
    assert (len(rest), rest.num_blank_rows) == (95, 0)


def test_white_space_alone_is_no_text(tmp_path, gpt2, monkeypatch):
    """It has ids only beside other text, which may come late."""
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 2)
    (tmp_path / "a.txt").write_text("\n \n\n\n\n")
    blank = tokenize(source_of(tmp_path / "a.txt"), gpt2, keep_white_space=True)
    assert (len(blank), blank.num_blank_rows, blank.num_tokens) == (0, 5, 0)
    with (tmp_path / "a.txt").open("a") as stream:
        stream.write("text\n\n")
    documents = tokenize(source_of(tmp_path / "a.txt"), gpt2, keep_white_space=True)
    assert gpt2.decode(stream_of(documents)) == "\n \n\n\n\ntext\n\n" and documents.num_rows == 7


def test_repeated_documents_are_found(tmp_path, gpt2):
    """Of the documents that are set aside those that the rest has too, unless they are short; also from the cache."""
    long = [" ".join(f"{word} {i}" for word in range(20)) for i in range(100)]
    chosen = [i for i in range(100) if is_set_aside(i, Fraction(1, 10))]
    long[chosen[2] + 1], long[chosen[5] - 1], long[3] = long[chosen[2]], long[chosen[5]], long[2]
    path = tmp_path / "a.txt"
    path.write_text("\n".join([*long, *["Yes."] * 100]), encoding="utf-8")
    known = sum(len(gpt2(long[i] + "\n").input_ids) for i in (chosen[2], chosen[5]))
    assert [tokenize_and_cut(source_of(path), gpt2, 10).known_tokens for _ in range(2)] == [known, known]


# ---- the cache ----


def made_at(documents: TokenizedDocuments) -> int:
    """When the cache file under documents was made."""
    return Path(documents._dataset.cache_files[0]["filename"]).stat().st_mtime_ns


def test_short_documents_are_stored_together(tmp_path, gpt2):
    """Record batches of the cache have many documents: reading looks for the one with a token each time."""
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{i}\n" for i in range(10_000)))
    assert tokenize(source_of(path), gpt2)._dataset.data.column("input_ids").num_chunks == 1


def test_second_start_reads_the_cache(corpus, gpt2):
    """The same text, wherever it lies and whatever it is called, is not tokenised again."""
    first = tokenize(source_of(corpus), gpt2)
    shutil.copy(corpus, corpus.with_name("copy.txt"))
    second = tokenize(source_of(corpus.with_name("copy.txt")), gpt2)
    assert made_at(first) == made_at(second)
    assert first.fingerprint() == second.fingerprint()
    assert len(entries()) == 1


def test_changed_file_is_never_stale(corpus, gpt2):
    """A byte that changes is seen, even if size and time of the file stay."""
    before = corpus.stat()
    old = stream_of(tokenize(source_of(corpus), gpt2))
    corpus.write_text(corpus.read_text().replace("Line 7 ", "Lime 7 "))
    os.utime(corpus, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert corpus.stat().st_size == before.st_size
    assert stream_of(tokenize(source_of(corpus), gpt2)) != old


def test_large_files_are_hashed_once(corpus, cache_folder, monkeypatch):
    """The remembered hash of a large file is used only while the file is untouched, and not right after a change."""
    monkeypatch.setattr(fingerprints, "ALWAYS_HASHED_BYTES", 0)
    first = fingerprints.file_key(corpus)
    assert not (cache_folder / "gpt2_hf" / "file-hashes").exists()  # just written: not to be trusted yet
    monkeypatch.setattr(fingerprints, "_CLOCK_GRAIN_SECONDS", 0.0)
    assert fingerprints.file_key(corpus) == first
    memo = next((cache_folder / "gpt2_hf" / "file-hashes").iterdir())
    remembered = json.loads(memo.read_text())
    memo.write_text(json.dumps({**remembered, "hash": "from memory"}))
    assert fingerprints.file_key(corpus) == "from memory"
    status = corpus.stat()
    elsewhere = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
    with monkeypatch.context() as patch:  # another node, where the shared disk has another number
        patch.setattr(os, "stat", lambda path: SimpleNamespace(**{**elsewhere, "st_dev": status.st_dev + 1}))
        assert fingerprints.file_key(corpus) == "from memory"
    time.sleep(0.02)
    corpus.write_text(corpus.read_text().replace("Line", "Lime"))
    os.utime(corpus, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprints.file_key(corpus) not in (first, "from memory")
    memo.write_text("{half")
    assert fingerprints.file_key(corpus) not in (first, "from memory")


def test_a_text_of_megabytes_is_hashed_once(tmp_path, monkeypatch):
    """A start asks for its key several times, and so does the next one; right after a change it is hashed again."""
    path = tmp_path / "a.txt"
    path.write_text("A line of text.\n" * 100_000)
    hashed = []
    original = fingerprints._hash
    monkeypatch.setattr(fingerprints, "_hash", lambda path: hashed.append(path) or original(path))
    monkeypatch.setattr(fingerprints, "_CLOCK_GRAIN_SECONDS", 3600.0)  # just written
    assert len({source_of(path).key() for _ in range(2)}) == 1 and len(hashed) == 2
    monkeypatch.setattr(fingerprints, "_CLOCK_GRAIN_SECONDS", 0.0)
    assert len({source_of(path).key() for _ in range(3)}) == 1 and len(hashed) == 3


def test_a_large_file_of_any_name(tmp_path, monkeypatch):
    """One whose name is not UTF-8 is hashed and remembered as others are."""
    monkeypatch.setattr(fingerprints, "ALWAYS_HASHED_BYTES", 0)
    paths = [tmp_path / "plain.txt", tmp_path / "not utf8 \udcff.txt"]
    try:
        for path in paths:
            path.write_text("text")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this system has no such names")
    assert len({fingerprints.file_key(path) for path in paths}) == 1


def test_changed_tokenizer_is_never_stale(tmp_path):
    """Two tokenizers of one size do not share a cache; settings of an earlier call change nothing."""
    path = tmp_path / "a.txt"
    path.write_text("1 2 3\n")
    tokenizer, other = wordlevel(10), wordlevel(10)
    other.backend_tokenizer.model = models.WordLevel({str(i): 9 - i for i in range(10)}, unk_token="9")
    assert stream_of(tokenize(source_of(path), tokenizer)) == [1, 2, 3]
    assert stream_of(tokenize(source_of(path), other)) == [8, 7, 6]
    tokenizer("1 2 3 4", truncation=True, max_length=2)
    assert stream_of(tokenize(source_of(path), tokenizer)) == [1, 2, 3]
    assert len(entries()) == 2


@pytest.mark.parametrize("options", [{"document_unit": "file"}, {"document_unit": "paragraph"}])
def test_changed_option_is_never_stale(corpus, gpt2, options):
    """Another way to cut the text is another cache entry."""
    lines = tokenize(source_of(corpus), gpt2)
    assert tokenize(source_of(corpus, **options), gpt2).num_rows != lines.num_rows


def test_changed_column_and_percentage_are_never_stale(tmp_path, gpt2):
    """Another column, and another share that is set aside, are entries of their own."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"a": f"one {i}", "b": f"two {i}"}) + "\n" for i in range(40)))
    a, b = (tokenize(source_of(path, text_column=column), gpt2) for column in "ab")
    assert stream_of(a) != stream_of(b)
    assert [len(tokenize_and_cut(source_of(path, text_column="a"), gpt2, p)[1]) for p in (5, 10, 50)] == [2, 4, 20]


@pytest.mark.parametrize("damage", ["cut", "changed byte", "removed", "no record", "broken record", "other record"])
def test_damaged_cache_is_made_again(corpus, gpt2, damage):
    """Whatever happens to an entry, it is noticed, and the entry is made again."""
    expected = stream_of(tokenize(source_of(corpus), gpt2))
    entry = entries()[0]
    arrow, record = entry / "documents.arrow", entry / "record.json"
    raw = bytearray(arrow.read_bytes())
    if damage == "cut":
        arrow.write_bytes(raw[: len(raw) // 2])
    elif damage == "changed byte":
        raw[len(raw) // 2] ^= 1
        arrow.write_bytes(raw)
    elif damage == "removed":
        arrow.unlink()
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("{half" if damage == "broken record" else "[]")
    assert stream_of(tokenize(source_of(corpus), gpt2)) == expected
    assert entries() == [entry] and leftovers() == []


def test_half_written_cache_is_no_entry(corpus, gpt2):
    """What a killed process leaves is removed by the next one, after a day also on another machine."""
    expected = stream_of(tokenize(source_of(corpus), gpt2))
    entry = entries()[0]
    for age, machine in ((0, cache._machine()), (100_000, "other"), (0, "other")):
        staging = entry.with_name(f"{entry.name}.{machine}.1.tmp")
        entry.rename(staging)
        (staging / "record.json").unlink()
        for path in (*staging.iterdir(), staging):
            os.utime(path, (time.time() - age, time.time() - age))
        assert stream_of(tokenize(source_of(corpus), gpt2)) == expected
        assert entries() == [entry] and leftovers() == ([] if age or machine != "other" else [staging.name])


@pytest.mark.parametrize("damaged", [False, True])
def test_machines_that_do_not_see_each_others_locks(corpus, gpt2, monkeypatch, damaged):
    """Both make the entry, neither in the other's folder; the later one takes the entry that is there by then."""
    monkeypatch.setattr(cache, "locked", lambda path, say_waiting: contextlib.nullcontext(True))
    if damaged:
        tokenize(source_of(corpus), gpt2)
        (entries()[0] / "documents.arrow").write_bytes(b"")
    machines, made = ["first"], []
    monkeypatch.setattr(cache, "_machine", lambda: machines[-1])

    @dataclasses.dataclass(frozen=True)
    class MadeMeanwhile(FileSource):
        def documents(self, *start):
            yield from super().documents(*start)
            machines.append("second")
            made.append(tokenize(source_of(corpus), gpt2))
            machines.pop()

    source = source_of(corpus)
    documents = tokenize(MadeMeanwhile(source.name, source.files), gpt2)
    assert made_at(documents) == made_at(made[0]) and stream_of(documents) == stream_of(made[0]) != []
    assert len(entries()) == 1 and leftovers() == []


def test_file_that_changes_while_it_is_read(corpus, gpt2):
    """Text that is being written while it is read gets no entry, which would be stale from the beginning."""

    @dataclasses.dataclass(frozen=True)
    class Growing(FileSource):
        def documents(self, *start):
            yield from super().documents(*start)
            with corpus.open("a") as stream:
                stream.write("One line more.\n")

    source = source_of(corpus)
    with pytest.raises(UserError, match="changed while it was read"):
        tokenize(Growing(source.name, source.files), gpt2)
    assert entries() == [] and leftovers() == []


def test_fingerprint_made_while_writing(corpus, gpt2):
    """The fingerprint in the record is that of the ids in the file."""
    documents = tokenize(source_of(corpus), gpt2)
    assert TokenizedDocuments(documents._dataset).fingerprint() == documents.fingerprint()


@pytest.mark.parametrize("content", [b"good\nb\xffd\n", b"good\nb\0d\n"])
def test_bad_text_leaves_nothing_behind(tmp_path, gpt2, content):
    """An error in the middle of the text leaves no entry and no staging folder."""
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match="--train_file"):
        tokenize(source_of(tmp_path / "a.txt"), gpt2)
    assert entries() == [] and leftovers() == []


TOKENIZE = """
import sys
from gpt2_hf.options.arguments import DataArguments
from gpt2_hf.data import tokenization
from gpt2_hf.data.sources import Cursor, FileSource, load_sources
from gpt2_hf.data.tokenizer import gpt2_tokenizer

arguments = DataArguments(dataset_name=None, train_file=sys.argv[1])
documents = tokenization.tokenize(load_sources(arguments)["train"], gpt2_tokenizer())
print(documents.fingerprint())
"""


def tokenise_in_process(path: Path, cache_folder: Path, log: Path, waits: bool) -> None:
    """Write to a file that it begins, then the fingerprint; one that waits does not come so far."""
    datasets.config.HF_DATASETS_CACHE = cache_folder
    with log.open("w", buffering=1) as file:

        class Loud(Encoder):
            def __init__(self, *args):
                print("tokenising", file=file)
                if waits:
                    threading.Event().wait()
                super().__init__(*args)

        tokenization.Encoder = Loud
        print(tokenize(source_of(path), gpt2_tokenizer()).fingerprint(), file=file)


@needs_fork_server
def test_two_processes_at_once(tmp_path, cache_folder):
    """Of two processes that start together one tokenises; both read the same, and there is one entry."""
    path, logs = tmp_path / "a.txt", [tmp_path / "log0", tmp_path / "log1"]
    path.write_text("".join(f"Number {i} and {i * i}.\n" for i in range(10_000)))
    processes = [harness.start_function(tokenise_in_process, path, cache_folder, log, False) for log in logs]
    assert harness.join(processes) == [0, 0]
    outputs = [log.read_text().split() for log in logs]
    assert sorted(map(len, outputs)) == [1, 2], "one of them tokenises"
    assert outputs[0][-1] == outputs[1][-1]
    assert len(entries()) == 1 and leftovers() == []


@needs_fork_server
def test_killed_process_does_not_block_the_next(tmp_path, gpt2, cache_folder):
    """A process that is killed while it tokenises leaves no entry, and no lock that holds."""
    path = tmp_path / "a.txt"
    path.write_text("".join(f"Number {i} and {i * i}.\n" for i in range(4000)))
    process = harness.start_function(tokenise_in_process, path, cache_folder, tmp_path / "log", True)
    harness.wait_for(tmp_path / "log", "tokenising\n")
    process.kill()
    process.join(30)
    assert entries() == [] and leftovers() != []
    documents = tokenize(source_of(path), gpt2)
    assert len(documents) == 4000
    assert len(entries()) == 1 and leftovers() == []


def tokenise_without_locks(host: str, *arguments: object) -> None:
    """As on a node whose disk has no locks, such as Lustre mounted without `-o flock`."""

    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    fcntl.flock = flock
    socket.gethostname = lambda: host
    tokenise_in_process(*arguments)


@needs_fork_server
def test_process_killed_where_there_are_no_locks_does_not_block_another_host(tmp_path, cache_folder):
    """Without locks each makes the entry in a folder of its own; that of the killed process may be one at work."""
    path, logs = tmp_path / "a.txt", [tmp_path / "killed", tmp_path / "next"]
    path.write_text("One line.\n")
    first = harness.start_function(tokenise_without_locks, "node1", path, cache_folder, logs[0], True)
    harness.wait_for(logs[0], "tokenising\n")
    first.kill()
    first.join(30)
    left = leftovers()
    second = harness.start_function(tokenise_without_locks, "node2", path, cache_folder, logs[1], False)
    assert harness.join([second], timeout=30) == [0]
    assert len(entries()) == 1 and leftovers() == left != []


def hold_lock(path: Path, log: Path) -> None:
    """Hold a lock until killed."""
    with locked(path, lambda: None):
        log.write_text("held\n")
        threading.Event().wait()


@needs_fork_server
def test_waiting_for_another_process_is_said(tmp_path, monkeypatch, capfd):
    """Tokenising takes minutes: who waits for it says so, once, and goes on when the other one is gone."""
    monkeypatch.setattr(file_lock, "_SILENT_SECONDS", 0.1)
    said = threading.Event()
    process = harness.start_function(hold_lock, tmp_path / "lock", tmp_path / "log")
    harness.wait_for(tmp_path / "log", "held\n")
    threading.Thread(target=lambda: (said.wait(30), process.kill())).start()

    def say_waiting():
        cache._say_waiting(tmp_path / "entry")
        said.set()

    with locked(tmp_path / "lock", say_waiting) as is_locked:
        assert is_locked
    assert capfd.readouterr().err == f"waiting for another process, which is making {tmp_path / 'entry'}\n"


def test_full_disk(tmp_path, gpt2):
    """When the cache cannot be written there is one line with the remedies, and nothing half is left."""
    resource = pytest.importorskip("resource", reason="the system cannot limit the size of files")
    path = tmp_path / "a.txt"
    path.write_text("".join(f"Number {i} and {i * i}.\n" for i in range(40_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\).*HF_DATASETS_CACHE.*--streaming"):
            tokenize(source_of(path), gpt2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert entries() == [] and leftovers() == []


def test_read_only_cache(corpus, gpt2, cache_folder):
    """A cache folder that cannot be made is an error with the remedy; streamed training needs one too."""
    cache_folder.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"; set HF_DATASETS_CACHE to a folder that can be$"):
        tokenize(source_of(corpus), gpt2)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Ten times the text takes no more than a few megabytes more: text and ids stream through.

    Linux counts VmHWM from when the program was started; ru_maxrss begins with that of the process which started it.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the system does not tell a program its peak")
    peaks = []
    for lines in (20_000, 200_000):
        path = tmp_path / f"{lines}.txt"
        path.write_text("".join(f"Number {i} is the same word again and again.\n" for i in range(lines)))
        code = TOKENIZE + f"print(open({str(status)!r}).read().partition('VmHWM:')[2].split()[0])"
        environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "memory-cache")}
        result = subprocess.run(
            [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, timeout=240
        )
        peaks.append(int(result.stdout.split()[-1]) // 1024)
    assert np.diff(peaks)[0] < 64
