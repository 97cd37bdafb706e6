"""gpt2_hf.data.streaming: a corpus that is not stored, each document once an epoch, and exact after a stop."""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import get_worker_info

from gpt2_hf.data import FlatteningCollator, PaddingCollator, SequenceMode, fingerprints, load_data, readers
from gpt2_hf.data.cache import entry_key
from gpt2_hf.data.encoding import Encoder
from gpt2_hf.data.sources import load_sources
from gpt2_hf.data.streaming import StreamingLoader, StreamingSamples, set_aside_of_stream
from gpt2_hf.data.tokenization import tokenizer_key
from gpt2_hf.data.tokenizer import gpt2_tokenizer, separator_id
from gpt2_hf.errors import UserError
from gpt2_hf.options.arguments import DataArguments

from ..data_fixtures import file_arguments

EOS = 50256


@pytest.fixture
def corpus(tmp_path):
    """Two files of numbered documents of 1 to 12 words, with blank ones between."""
    for name, numbers in (("a", range(60)), ("b", range(60, 101))):
        lines = [f"{'x ' * (i % 12)}{i}\n" if i % 10 != 5 else "\n" for i in numbers]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    return load_sources(file_arguments(tmp_path / "*.txt"))["train"]


def documents_in(corpus) -> list[str]:
    return sorted(text for text, _ in corpus.documents() if text.strip())


def stream_of(corpus, gpt2, **options) -> StreamingSamples:
    return StreamingSamples(corpus, gpt2, **{"max_length": 64, "buffer_size": 16, "epochs": 1, **options})


def texts_of(samples, gpt2) -> list[str]:
    return [gpt2.decode(sample["input_ids"]) for sample in samples]


def ids_of(batches) -> list[list[int]]:
    return [batch["input_ids"].flatten().tolist() for batch in batches]


@pytest.mark.parametrize("buffer_size", [1, 7, 16, 1000])
def test_every_document_once_an_epoch(corpus, gpt2, buffer_size):
    """An epoch holds every document exactly once, in another order than that of the files."""
    texts = texts_of(stream_of(corpus, gpt2, buffer_size=buffer_size), gpt2)
    single = [text for text in documents_in(corpus) if len(gpt2(text).input_ids) < 2]
    assert single == []
    assert sorted(texts) == documents_in(corpus)
    in_order = [text for text, _ in corpus.documents() if text.strip()]
    assert (texts == in_order) == (buffer_size == 1)


def test_epochs_differ_and_seeds_differ(corpus, gpt2):
    """Each epoch has an order of its own, each seed too, and the same seed the same."""
    size = len(documents_in(corpus))
    both = texts_of(stream_of(corpus, gpt2, epochs=2), gpt2)
    assert sorted(both[:size]) == sorted(both[size:]) == documents_in(corpus)
    assert both[:size] != both[size:]
    assert both == texts_of(stream_of(corpus, gpt2, epochs=2), gpt2)
    assert both[:size] != texts_of(stream_of(corpus, gpt2, seed=1), gpt2)


def test_it_never_ends_by_itself(corpus, gpt2):
    """Without a number of epochs the stream goes on for ever."""
    samples = itertools.islice(stream_of(corpus, gpt2, epochs=None), 1000)
    assert len(list(samples)) == 1000


@pytest.mark.parametrize(("world_size", "num_workers"), [(3, 0), (2, 2)])
def test_shards_neither_overlap_nor_lose(corpus, gpt2, world_size, num_workers):
    """Over all processes and their workers, every document comes exactly once."""
    texts = []
    for rank in range(world_size):
        stream = stream_of(corpus, gpt2, rank=rank, world_size=world_size)
        for batch in StreamingLoader(stream, 4, PaddingCollator(EOS), num_workers):
            for inputs, targets in zip(batch["input_ids"], batch["shift_labels"], strict=True):
                kept = int((targets >= 0).sum())
                texts.append(gpt2.decode([*inputs[:kept].tolist(), int(targets[kept - 1])]))
    assert sorted(texts) == documents_in(corpus)


@given(max_length=st.integers(1, 20), truncate=st.booleans(), buffer_size=st.integers(1, 40))
def test_documents_are_continued_or_cut(tmp_path_factory, gpt2, max_length, truncate, buffer_size):
    """Long documents go on in further samples, or are cut: the targets are those of the documents."""
    path = tmp_path_factory.mktemp("stream") / "a.txt"
    path.write_text("".join(f"{'word ' * i}end\n" for i in range(20)))
    source = load_sources(file_arguments(path))["train"]
    options = {"max_length": max_length, "truncate": truncate, "buffer_size": buffer_size}
    samples = [sample["input_ids"].tolist() for sample in stream_of(source, gpt2, **options)]
    documents = [gpt2(text).input_ids[: max_length + 1 if truncate else None] for text, _ in source.documents()]
    assert sorted(t for ids in samples for t in ids[1:]) == sorted(t for ids in documents for t in ids[1:])
    assert all(2 <= len(ids) <= max_length + 1 for ids in samples)


@pytest.mark.parametrize("max_length", [1, 5, 64, 1000])
def test_blocks_drop_nothing(corpus, gpt2, max_length):
    """In blocks every document stands in the stream behind a separator, and every token is a target once."""
    stream = stream_of(corpus, gpt2, mode=SequenceMode.BLOCKS, max_length=max_length, buffer_size=1000)
    samples = [sample["input_ids"].tolist() for sample in stream]
    joined = samples[0][:1] + [token for ids in samples for token in ids[1:]]
    assert all(len(ids) == max_length + 1 for ids in samples[:-1])
    assert sorted(gpt2.decode(joined).split("<|endoftext|>")[1:]) == documents_in(corpus)


@pytest.mark.parametrize(
    ("num_workers", "mode"),
    [(0, "padding_free"), (0, "blocks"), (2, "blocks"), pytest.param(2, "padding_free", marks=pytest.mark.slow)],
)
def test_resumed_is_uninterrupted(corpus, gpt2, num_workers, mode):
    """After any batch the state, written as JSON and read again, goes on with exactly the next batch."""

    def loader() -> StreamingLoader:
        stream = stream_of(corpus, gpt2, mode=SequenceMode(mode), max_length=10, epochs=2)
        return StreamingLoader(stream, 4, FlatteningCollator(), num_workers)

    whole = ids_of(loader())
    stops = range(1, len(whole), 7) if num_workers == 0 else (1, len(whole) // 2)
    for stop in stops:
        first = loader()
        begun = ids_of(itertools.islice(first, stop))
        second = loader()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert begun + ids_of(second) == whole, stop


def test_going_on_reads_nothing_before_the_window(corpus, gpt2, monkeypatch):
    """A resumed stream begins to read where the window of its position begins."""
    loader = StreamingLoader(stream_of(corpus, gpt2), 4, FlatteningCollator())
    list(itertools.islice(loader, 12))
    starts = []
    original = type(corpus).documents

    def watched(self, start):
        starts.append(start)
        return original(self, start)

    monkeypatch.setattr(type(corpus), "documents", watched)
    second = StreamingLoader(stream_of(corpus, gpt2), 4, FlatteningCollator())
    second.load_state_dict(loader.state_dict())
    next(iter(second))
    documents = [cursor for text, cursor in original(corpus) if text.strip()]
    assert starts == [documents[2 * 16]]


@pytest.fixture
def spaced(tmp_path):
    """A file with a blank line after each document."""
    path = tmp_path / "spaced.txt"
    path.write_text("".join(f"number {i}\n\n" for i in range(100)))
    return load_sources(file_arguments(path))["train"]


def test_blank_documents_have_no_number(spaced, gpt2):
    """Shards share the documents with text evenly, and those that are set aside have text."""
    shards = [texts_of(stream_of(spaced, gpt2, rank=rank, world_size=2), gpt2) for rank in range(2)]
    assert [len(texts) for texts in shards] == [50, 50]
    assert sorted(shards[0] + shards[1]) == documents_in(spaced)
    cut, _ = set_aside_of_stream(spaced, 5)
    expected = [f"number {i}\n" for i in (1, 21, 41, 61, 81)]
    assert [text for text, _ in cut.documents()] == expected
    rest = texts_of(stream_of(spaced, gpt2, set_aside_percentage=5), gpt2)
    assert sorted(rest + expected) == documents_in(spaced)


def test_a_state_of_an_earlier_version_is_refused(corpus, gpt2):
    """It goes by other numbers of documents, and would train on those that are set aside for validation now."""
    loader = StreamingLoader(stream_of(corpus, gpt2, set_aside_percentage=10), 4, FlatteningCollator())
    options = repr((False, 42, 16, 10))
    key = entry_key(corpus.key(), tokenizer_key(gpt2), "padding_free", "64", options)
    with pytest.raises(UserError, match="not those of the checkpoint"):
        loader.load_state_dict({**loader.state_dict(), "key": key})


def test_the_separator_is_part_of_the_key(corpus, gpt2):
    """Of `blocks`, which have it; nothing else that is known of a tokenizer follows it."""
    other = gpt2_tokenizer()
    other.eos_token = "!"
    assert tokenizer_key(other) == tokenizer_key(gpt2) and separator_id(other) != separator_id(gpt2)
    for mode, same in (("blocks", False), ("padding_free", True)):
        keys = {stream_of(corpus, tokenizer, mode=SequenceMode(mode)).key() for tokenizer in (gpt2, other)}
        assert (len(keys) == 1) == same


@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_that_tokenise(corpus, gpt2, num_threads, monkeypatch):
    """--preprocessing_num_workers is for the stream too."""
    seen = []
    original = Encoder.__init__
    monkeypatch.setattr(Encoder, "__init__", lambda self, *args: (seen.append(args[1]), original(self, *args))[1])
    next(iter(stream_of(corpus, gpt2, num_threads=num_threads)))
    assert seen == [num_threads]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": 1}, "not those of the checkpoint"), ({"world_size": 2}, "processes"), ({"max_length": 9}, "options")],
)
def test_another_stream_is_refused(corpus, gpt2, options, message):
    """A state goes with its text, its options and its number of processes and workers only."""
    state = StreamingLoader(stream_of(corpus, gpt2), 4, FlatteningCollator()).state_dict()
    with pytest.raises(UserError, match=message):
        StreamingLoader(stream_of(corpus, gpt2, **options), 4, FlatteningCollator()).load_state_dict(state)
    with pytest.raises(UserError, match="--num_workers"):
        StreamingLoader(stream_of(corpus, gpt2), 4, FlatteningCollator(), num_workers=3).load_state_dict(state)


def test_files_are_looked_at_once(corpus, gpt2, monkeypatch):
    """Checkpoints and copies of the stream do not read the corpus again; a new process sees that it was changed."""
    hashed = []
    original = fingerprints.sample_key
    monkeypatch.setattr(
        "gpt2_hf.data.sources.source.sample_key",
        lambda path, **options: hashed.append(path) or original(path, **options),
    )
    stream = stream_of(corpus, gpt2)
    stream.key()
    loader = StreamingLoader(dataclasses.replace(stream, rank=1, world_size=2), 4, FlatteningCollator())
    next(iter(loader))
    state = [loader.state_dict() for _ in range(3)][-1]
    assert len(hashed) == len(corpus.files) == 2
    with Path(corpus.files[0].path).open("a") as file:
        file.write("one line more\n")
    resumed = StreamingLoader(stream_of(corpus, gpt2, rank=1, world_size=2), 4, FlatteningCollator())
    with pytest.raises(UserError, match="not those of the checkpoint"):
        resumed.load_state_dict(state)


@pytest.mark.parametrize("kind", ["files", "folder", "saved"])
def test_a_start_does_not_read_all_of_a_stream(tmp_path, gpt2, monkeypatch, kind):
    """Whoever reads its files, and with a part of it set aside."""
    lines = [f"Number {i} of the lines.\n" for i in range(100)]
    place = tmp_path / "place"
    if kind == "saved":
        Dataset.from_dict({"text": lines}).save_to_disk(str(place))
    else:
        place.mkdir()
        card = "---\nconfigs:\n- config_name: own\n  data_files: a.txt\n  keep_linebreaks: true\n---\n"
        (place / "README.md").write_text(card)
        (place / "a.txt").write_text("".join(lines))
    hashed = []
    original = fingerprints._hash
    monkeypatch.setattr(fingerprints, "_hash", lambda path: hashed.append(str(path)) or original(path))
    arguments = DataArguments(str(place), None, streaming=True)
    if kind == "files":
        arguments = file_arguments(place / "a.txt", streaming=True)
    data = load_data(arguments, gpt2, 64)
    assert len(data.samples["validation"]) == 5
    assert not [path for path in hashed if path.startswith(str(place))]


def test_a_sample_of_a_file(tmp_path):
    """Its name follows its size, its two ends and its middle; with the dates any change."""
    path = tmp_path / "a.txt"
    size = 64 << 20
    keys, dated = set(), set()
    for place in (None, 0, size // 2, size - 1, size // 4):
        with path.open("wb") as file:
            file.truncate(size)
            if place is not None:
                file.seek(place)
                file.write(b"x")
        os.utime(path, ns=(0, 0 if place is None else place + 1))
        keys.add(fingerprints.sample_key(path))
        dated.add(fingerprints.sample_key(path, dated=True))
    assert len(keys) == 4 and len(dated) == 5
    path.write_text("short")
    assert fingerprints.sample_key(path) not in keys


def test_another_source_has_another_key(corpus, gpt2, tmp_path):
    """What is known of one text is not taken for another's."""
    stream = stream_of(corpus, gpt2)
    other = load_sources(file_arguments(tmp_path / "a.txt"))["train"]
    assert stream.key() != dataclasses.replace(stream, source=other).key() == stream_of(other, gpt2).key()


def test_set_aside_documents_are_not_trained_on(corpus, gpt2):
    """What is set aside for validation is missing from the stream, and nothing else."""
    validation, line = set_aside_of_stream(corpus, 10)
    held_out = [text for text, _ in validation.documents() if text.strip()]
    trained = texts_of(stream_of(corpus, gpt2, set_aside_percentage=10), gpt2)
    assert len(held_out) >= 8 and "10 %" in line
    assert sorted(trained + held_out) == documents_in(corpus)


def test_a_look_that_breaks_off_sets_aside_the_same(corpus, gpt2, monkeypatch):
    """A lost connection, or Ctrl-C, while the beginning of the text is read: the next look reads it again."""
    stream = stream_of(corpus, gpt2, set_aside_percentage=10)
    original = type(corpus).documents

    def breaks_off(self):
        yield from itertools.islice(original(self), 3)
        raise OSError("the connection is lost")

    with monkeypatch.context() as broken:
        broken.setattr(type(corpus), "documents", breaks_off)
        with pytest.raises(OSError, match="the connection is lost"):
            next(iter(stream))
    held_out = [text for text, _ in set_aside_of_stream(corpus, 10)[0].documents()]
    assert sorted(texts_of(stream, gpt2) + held_out) == documents_in(corpus)


def test_what_is_set_aside_is_that_of_the_text_and_the_percentage(corpus, gpt2, tmp_path):
    """A copy of a stream that was read has its own, if it is of another text or has another share."""
    stream = stream_of(corpus, gpt2, set_aside_percentage=10)
    next(iter(stream))
    other = load_sources(file_arguments(tmp_path / "b.txt"))["train"]
    for changed in ({"source": other}, {"set_aside_percentage": 30}, {"set_aside_percentage": None}):
        fresh = dataclasses.replace(stream_of(corpus, gpt2, set_aside_percentage=10), **changed)
        assert texts_of(dataclasses.replace(stream, **changed), gpt2) == texts_of(fresh, gpt2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_text_is_one_line(tmp_path, gpt2, num_workers):
    """An error in the middle of the stream is one line that names the place, also from a worker."""
    (tmp_path / "a.txt").write_bytes(b"good line\n" * 50 + b"b\xffd\n")
    source = load_sources(file_arguments(tmp_path / "a.txt"))["train"]
    loader = StreamingLoader(stream_of(source, gpt2, buffer_size=10), 4, FlatteningCollator(), num_workers)
    with pytest.raises(UserError) as error:
        list(loader)
    assert str(error.value).startswith(f"--train_file: {tmp_path / 'a.txt'} is not UTF-8: byte 0xff at byte 501")
    assert "\n" not in str(error.value)


def test_blank_stream(tmp_path, gpt2):
    """A stream without any text ends with an error instead of running for ever."""
    (tmp_path / "a.txt").write_text("\n \n")
    source = load_sources(file_arguments(tmp_path / "a.txt"))["train"]
    with pytest.raises(UserError, match="no text"):
        next(iter(stream_of(source, gpt2, epochs=None)))


def test_streaming_stores_no_training_text(tmp_path, gpt2, cache_folder):
    """With --streaming only the validation documents are in the cache."""
    (tmp_path / "a.txt").write_text("".join(f"Number {i} of the lines.\n" for i in range(400)))
    data = load_data(file_arguments(tmp_path / "a.txt", streaming=True), gpt2, 64)
    assert isinstance(data.samples["train"], StreamingSamples)
    assert len(data.samples["validation"]) == 20
    arrow = list(cache_folder.rglob("*.arrow"))
    assert len(arrow) == 1 and arrow[0].stat().st_size < 2000
    assert any("streamed" in line for line in data.lines)
    assert "train streamed; " in data.summary()
    assert len(list(itertools.islice(data.samples["train"], 380))) == 380


# ---- files of one's own for each shard ----


@pytest.fixture
def many_files(tmp_path):
    """Seven files of different sizes, 155 documents in all."""
    numbers = iter(range(1000))
    for name, count in zip("abcdefg", (3, 50, 1, 20, 44, 7, 30), strict=True):
        (tmp_path / f"{name}.txt").write_text("".join(f"Document number {next(numbers)}.\n" for _ in range(count)))
    return load_sources(file_arguments(tmp_path / "?.txt"))["train"]


def count_opened(monkeypatch, folder: Path) -> Callable[[], dict[str, list[str]]]:
    """From here on, write down which process opens which file to read its text; returns what was written."""
    original = readers.TextFile.open

    def watched(file):
        info = get_worker_info()
        (folder / "opened").open("a").write(f"{info.id if info else '-'} {Path(file.path).name}\n")
        return original(file)

    monkeypatch.setattr(readers.TextFile, "open", watched)

    def opened() -> dict[str, list[str]]:
        by_file: dict[str, list[str]] = {}
        for line in (folder / "opened").read_text().splitlines():
            worker, name = line.split()
            by_file.setdefault(name, []).append(worker)
        return by_file

    return opened


@pytest.mark.parametrize("num_workers", [2, 7])
def test_each_file_is_opened_by_one_worker(many_files, gpt2, monkeypatch, tmp_path, num_workers):
    """With at least as many files as workers, each file is opened once a pass, by a single worker."""
    opened = count_opened(monkeypatch, tmp_path)
    list(StreamingLoader(stream_of(many_files, gpt2), 4, FlatteningCollator(), num_workers))
    assert {name: len(workers) for name, workers in opened().items()} == {f"{name}.txt": 1 for name in "abcdefg"}
    assert {worker for workers in opened().values() for worker in workers} == {str(i) for i in range(num_workers)}


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (7, 0), (3, 2)])
def test_processes_divide_the_files(many_files, gpt2, monkeypatch, tmp_path, world_size, num_workers):
    """Over all processes and workers each file is opened once, and every document comes once."""
    opened = count_opened(monkeypatch, tmp_path)
    tokens = []
    for rank in range(world_size):
        stream = stream_of(many_files, gpt2, rank=rank, world_size=world_size)
        for batch in StreamingLoader(stream, 4, FlatteningCollator(), num_workers):
            tokens += batch["shift_labels"].flatten().tolist()
    assert all(len(workers) == 1 for workers in opened().values()) and len(opened()) == 7
    expected = [token for text in documents_in(many_files) for token in gpt2(text).input_ids[1:]]
    assert sorted(tokens) == sorted(expected)


def test_parts_are_of_about_the_same_size(many_files):
    """No part is larger than the largest file or twice the mean; each has a file; too many parts are none."""
    sizes = [Path(file.path).stat().st_size for file in many_files.files]
    for count in range(1, 8):
        parts = many_files.parts(count)
        assert sorted(number for part in parts for number in part.numbers) == list(range(7))
        loads = [sum(sizes[number] for number in part.numbers) for part in parts]
        assert min(loads) > 0 and max(loads) <= max(max(sizes), 2 * sum(sizes) / count)
    assert many_files.parts(8) is None


def test_over_the_passes_no_part_is_read_more_often(many_files, gpt2):
    """After as many passes as there are shards, each shard has read every document exactly once."""
    for rank in range(3):
        texts = texts_of(stream_of(many_files, gpt2, rank=rank, world_size=3, epochs=3), gpt2)
        assert sorted(texts) == documents_in(many_files)


@pytest.mark.parametrize(("num_workers", "percentage"), [(2, None), (2, 10), (0, 10)])
def test_resumed_with_files_of_its_own(many_files, gpt2, num_workers, percentage):
    """After any batch the state goes on with exactly the next one, over the ends of passes."""

    def loader(**options) -> StreamingLoader:
        options = {"epochs": 2, "set_aside_percentage": percentage, **options}
        stream = stream_of(many_files, gpt2, rank=1, world_size=2, buffer_size=32, **options)
        return StreamingLoader(stream, 4, FlatteningCollator(), num_workers)

    whole = ids_of(loader())
    for stop in (1, len(whole) // 2, len(whole) - 2):
        first = loader()
        begun = ids_of(itertools.islice(first, stop))
        second = loader()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert begun + ids_of(second) == whole, stop


@pytest.mark.parametrize("world_size", [2, 3])
def test_set_aside_documents_are_not_trained_on_by_any_shard(many_files, gpt2, world_size):
    """What is set aside is the same however the files are divided, and no shard trains on it."""
    held_out = [text for text, _ in set_aside_of_stream(many_files, 10)[0].documents()]
    trained = []
    for rank in range(world_size):
        stream = stream_of(many_files, gpt2, rank=rank, world_size=world_size, set_aside_percentage=10)
        trained += texts_of(stream, gpt2)
    assert len(held_out) >= 15 and sorted(trained + held_out) == documents_in(many_files)


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize(("percentage", "looked_at"), [(None, False), (10, False), (10, True)])
def test_rows_of_the_library_with_workers(tmp_path, gpt2, files, percentage, looked_at):
    """Of what the datasets library streams every row comes once too, though it divides rows among workers itself.

    Also after a look at one sample in this process, for which the text is not divided.
    """
    (tmp_path / "rows").mkdir()
    for number in range(files):
        table = pa.table({"text": [f"Row {number} {i}.\n" for i in range(40)]})
        with pa.ipc.new_file(str(tmp_path / "rows" / f"train-{number}.arrow"), table.schema) as writer:
            writer.write_table(table)
    source = load_sources(DataArguments(str(tmp_path / "rows"), None, streaming=True))["train"]
    assert (source.parts(2) is None) == (files == 1)
    stream = stream_of(source, gpt2, set_aside_percentage=percentage)
    if looked_at:
        next(iter(stream))
    tokens = []
    for batch in StreamingLoader(stream, 4, FlatteningCollator(), 2):
        tokens += batch["shift_labels"].flatten().tolist()
    held_out = [text for text, _ in set_aside_of_stream(source, percentage)[0].documents()] if percentage else []
    expected = [text for text in documents_in(source) if text not in held_out]
    assert sorted(tokens) == sorted(token for text in expected for token in gpt2(text).input_ids[1:])


def test_parts_of_stored_rows():
    """A dataset that is stored is divided into consecutive rows."""
    source = load_sources(DataArguments("python-docs", None))["train"]
    whole = [text for text, _ in source.documents()]
    assert [text for part in source.parts(3) for text, _ in part.documents()] == whole
    part = source.parts(3)[1]
    documents = list(part.documents())
    assert list(part.documents(documents[9][1])) == documents[9:]


def test_batches_go_to_the_device_without_a_wait(gpt2, corpus):
    """Every tensor of a batch is copied while the host goes on; lengths and position stay with the host."""
    copies = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default:
                copies.append(kwargs)
            return func(*args, **(kwargs or {}))

    loader = StreamingLoader(stream_of(corpus, gpt2), 4, FlatteningCollator(), device=torch.device("meta"))
    with Copies():
        batch = next(iter(loader))
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == len(copies) == 5 and all(tensor.is_meta for tensor in tensors)
    assert all(copy["non_blocking"] for copy in copies)
    assert batch["document_lengths"].sum() == batch["input_ids"].shape[1]
