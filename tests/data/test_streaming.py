"""gpt2_hf.data.streaming: a corpus that is not stored, each document once an epoch, and exact after a stop."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_hf.data import FlatteningCollator, PaddingCollator, SequenceMode, fingerprints, load_data
from gpt2_hf.data.sources import load_sources
from gpt2_hf.data.streaming import StreamingLoader, StreamingSamples, set_aside_of_stream
from gpt2_hf.errors import UserError

from ..data_fixtures import cache_folder, file_arguments, gpt2, modest  # noqa: F401

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


def stream_of(corpus, gpt2, **options) -> StreamingSamples:  # noqa: F811
    return StreamingSamples(corpus, gpt2, **{"max_length": 64, "buffer_size": 16, "epochs": 1, **options})


def texts_of(samples, gpt2) -> list[str]:  # noqa: F811
    return [gpt2.decode(sample["input_ids"]) for sample in samples]


def ids_of(batches) -> list[list[int]]:
    return [batch["input_ids"].flatten().tolist() for batch in batches]


@pytest.mark.parametrize("buffer_size", [1, 7, 16, 1000])
def test_every_document_once_an_epoch(corpus, gpt2, buffer_size):  # noqa: F811
    """An epoch holds every document exactly once, in another order than that of the files."""
    texts = texts_of(stream_of(corpus, gpt2, buffer_size=buffer_size), gpt2)
    single = [text for text in documents_in(corpus) if len(gpt2(text).input_ids) < 2]
    assert single == []
    assert sorted(texts) == documents_in(corpus)
    in_order = [text for text, _ in corpus.documents() if text.strip()]
    assert (texts == in_order) == (buffer_size == 1)


def test_epochs_differ_and_seeds_differ(corpus, gpt2):  # noqa: F811
    """Each epoch has an order of its own, each seed too, and the same seed the same."""
    size = len(documents_in(corpus))
    both = texts_of(stream_of(corpus, gpt2, epochs=2), gpt2)
    assert sorted(both[:size]) == sorted(both[size:]) == documents_in(corpus)
    assert both[:size] != both[size:]
    assert both == texts_of(stream_of(corpus, gpt2, epochs=2), gpt2)
    assert both[:size] != texts_of(stream_of(corpus, gpt2, seed=1), gpt2)


def test_it_never_ends_by_itself(corpus, gpt2):  # noqa: F811
    """Without a number of epochs the stream goes on for ever."""
    samples = itertools.islice(stream_of(corpus, gpt2, epochs=None), 1000)
    assert len(list(samples)) == 1000


@pytest.mark.parametrize(("world_size", "num_workers"), [(3, 0), (2, 2)])
def test_shards_neither_overlap_nor_lose(corpus, gpt2, world_size, num_workers):  # noqa: F811
    """Over all processes and their workers, every document comes exactly once."""
    texts = []
    for rank in range(world_size):
        stream = stream_of(corpus, gpt2, rank=rank, world_size=world_size)
        for batch in StreamingLoader(stream, 4, PaddingCollator(EOS), num_workers):
            for inputs, targets in zip(batch["input_ids"], batch["shift_labels"], strict=True):
                kept = int((targets >= 0).sum())
                texts.append(gpt2.decode([*inputs[:kept].tolist(), int(targets[kept - 1])]))
    assert sorted(texts) == documents_in(corpus)


@modest
@given(max_length=st.integers(1, 20), truncate=st.booleans(), buffer_size=st.integers(1, 40))
def test_documents_are_continued_or_cut(tmp_path_factory, gpt2, max_length, truncate, buffer_size):  # noqa: F811
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
def test_blocks_drop_nothing(corpus, gpt2, max_length):  # noqa: F811
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
def test_resumed_is_uninterrupted(corpus, gpt2, num_workers, mode):  # noqa: F811
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


def test_going_on_reads_nothing_before_the_window(corpus, gpt2, monkeypatch):  # noqa: F811
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
    documents = list(original(corpus))
    assert starts == [documents[3 * 16][1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": 1}, "not those of the checkpoint"), ({"world_size": 2}, "processes"), ({"max_length": 9}, "options")],
)
def test_another_stream_is_refused(corpus, gpt2, options, message):  # noqa: F811
    """A state goes with its text, its options and its number of processes and workers only."""
    state = StreamingLoader(stream_of(corpus, gpt2), 4, FlatteningCollator()).state_dict()
    with pytest.raises(UserError, match=message):
        StreamingLoader(stream_of(corpus, gpt2, **options), 4, FlatteningCollator()).load_state_dict(state)
    with pytest.raises(UserError, match="--num_workers"):
        StreamingLoader(stream_of(corpus, gpt2), 4, FlatteningCollator(), num_workers=3).load_state_dict(state)


def test_files_are_hashed_once(corpus, gpt2, monkeypatch):  # noqa: F811
    """Checkpoints and copies of the stream do not read the corpus again; a new process sees that it was changed."""
    hashed = []
    original = fingerprints._hash
    monkeypatch.setattr(fingerprints, "_hash", lambda path: hashed.append(path) or original(path))
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


def test_another_source_has_another_key(corpus, gpt2, tmp_path):  # noqa: F811
    """What is known of one text is not taken for another's."""
    stream = stream_of(corpus, gpt2)
    other = load_sources(file_arguments(tmp_path / "a.txt"))["train"]
    assert stream.key() != dataclasses.replace(stream, source=other).key() == stream_of(other, gpt2).key()


def test_set_aside_documents_are_not_trained_on(corpus, gpt2):  # noqa: F811
    """What is set aside for validation is missing from the stream, and nothing else."""
    validation, line = set_aside_of_stream(corpus, 10)
    held_out = [text for text, _ in validation.documents() if text.strip()]
    trained = texts_of(stream_of(corpus, gpt2, set_aside_percentage=10), gpt2)
    assert len(held_out) >= 8 and "10 %" in line
    assert sorted(trained + held_out) == documents_in(corpus)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_text_is_one_line(tmp_path, gpt2, num_workers):  # noqa: F811
    """An error in the middle of the stream is one line that names the place, also from a worker."""
    (tmp_path / "a.txt").write_bytes(b"good line\n" * 50 + b"b\xffd\n")
    source = load_sources(file_arguments(tmp_path / "a.txt"))["train"]
    loader = StreamingLoader(stream_of(source, gpt2, buffer_size=10), 4, FlatteningCollator(), num_workers)
    with pytest.raises(UserError) as error:
        list(loader)
    assert str(error.value).startswith(f"--train_file: {tmp_path / 'a.txt'} is not UTF-8: byte 0xff at byte 501")
    assert "\n" not in str(error.value)


def test_blank_stream(tmp_path, gpt2):  # noqa: F811
    """A stream without any text ends with an error instead of running for ever."""
    (tmp_path / "a.txt").write_text("\n \n")
    source = load_sources(file_arguments(tmp_path / "a.txt"))["train"]
    with pytest.raises(UserError, match="no text"):
        next(iter(stream_of(source, gpt2, epochs=None)))


def test_streaming_stores_no_training_text(tmp_path, gpt2, cache_folder):  # noqa: F811
    """With --streaming only the validation documents are in the cache."""
    (tmp_path / "a.txt").write_text("".join(f"Number {i} of the lines.\n" for i in range(400)))
    data = load_data(file_arguments(tmp_path / "a.txt", streaming=True), gpt2, 64)
    assert isinstance(data.samples["train"], StreamingSamples)
    assert len(data.samples["validation"]) == 20
    arrow = list(cache_folder.rglob("*.arrow"))
    assert len(arrow) == 1 and arrow[0].stat().st_size < 2000
    assert any("streamed" in line for line in data.lines)
    assert len(list(itertools.islice(data.samples["train"], 380))) == 380
