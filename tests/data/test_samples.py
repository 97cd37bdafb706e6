"""gpt2_hf.data.samples: any documents in, the same tokens out, each scored exactly once."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_hf.data import BlockSamples, DocumentSamples
from gpt2_hf.data.sampling import shifted

from ..data_fixtures import documents_of

SEPARATOR = 999
corpora = st.lists(st.lists(st.integers(0, 900), max_size=25), max_size=12)
lengths = st.integers(1, 30)


def samples_of(dataset):
    return [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]


@given(corpus=corpora, max_length=lengths)
def test_documents_are_continued(corpus, max_length):
    """Documents longer than max_length go on in further samples that overlap by their one token of context."""
    expected = [
        ids[start : start + max_length + 1] for ids in corpus for start in range(0, len(ids) - 1, max_length) if ids
    ]
    assert samples_of(DocumentSamples(documents_of(corpus), max_length)) == expected


@given(corpus=corpora, max_length=lengths)
def test_every_token_but_the_first_is_scored_once(corpus, max_length):
    """The targets of all samples, joined, are the documents without their first tokens."""
    samples = samples_of(DocumentSamples(documents_of(corpus), max_length))
    assert [t for ids in samples for t in ids[1:]] == [t for ids in corpus for t in ids[1:]]
    assert all(2 <= len(ids) <= max_length + 1 for ids in samples)


@given(corpus=corpora, max_length=lengths)
def test_documents_are_cut(corpus, max_length):
    """With truncate each document of two tokens or more gives one sample, its beginning."""
    samples = samples_of(DocumentSamples(documents_of(corpus), max_length, truncate=True))
    assert samples == [ids[: max_length + 1] for ids in corpus if len(ids) > 1]


@given(corpus=corpora, max_length=lengths)
def test_blocks_hold_the_whole_stream(corpus, max_length):
    """Blocks are the stream with a separator before each document, cut every max_length targets."""
    stream = [token for ids in corpus if ids for token in (SEPARATOR, *ids)]
    samples = samples_of(BlockSamples(documents_of(corpus), max_length, SEPARATOR))
    assert samples == [stream[i : i + max_length + 1] for i in range(0, len(stream) - 1, max_length)]
    assert [t for ids in samples for t in ids[1:]] == stream[1:]
    assert all(len(ids) == max_length + 1 for ids in samples[:-1])


@given(corpus=corpora, max_length=lengths)
def test_joined_blocks_have_no_separators_between_documents(corpus, max_length):
    """One separator, as the first token's context; then the text, every token a target once."""
    text = [token for ids in corpus for token in ids]
    stream = [SEPARATOR, *text] if text else []
    blocks = BlockSamples(documents_of(corpus), max_length, SEPARATOR, joined=True)
    assert samples_of(blocks) == [stream[i : i + max_length + 1] for i in range(0, len(stream) - 1, max_length)]
    assert blocks.accounting.scored_tokens == blocks.accounting.text_tokens == len(text)
    assert blocks.accounting.separator_tokens == bool(text)


@given(corpus=corpora, max_length=lengths, joined=st.booleans(), data=st.data())
def test_shifted_blocks_hold_the_whole_circle(corpus, max_length, joined, data):
    """Wherever the first block begins, the blocks are of the same lengths and every token is a target once."""
    separated = [token for ids in corpus if ids for token in (SEPARATOR, *ids)]
    text = [token for ids in corpus for token in ids]
    circle = ([SEPARATOR, *text] if text else []) if joined else separated
    blocks = BlockSamples(documents_of(corpus), max_length, SEPARATOR, joined, circular=True)
    assert blocks.accounting.scored_tokens == blocks.lengths.sum() == len(circle)
    if data.draw(st.booleans()) and len(blocks):
        blocks.limit(data.draw(st.integers(1, len(blocks))))
        circle = circle[: blocks.lengths.sum()]
    offset = data.draw(st.integers(0, max_length - 1))
    order = shifted(np.arange(len(blocks)), offset, max(len(blocks), 1))
    samples = [blocks[index]["input_ids"].tolist() for index in order]
    twice = circle + circle + circle
    place = offset % max(len(circle), 1)
    for ids, length in zip(samples, blocks.lengths, strict=True):
        assert ids == twice[place : place + length + 1]
        place = (place + length) % len(circle)
    assert sorted(token for ids in samples for token in ids[1:]) == sorted(circle)
    assert blocks.lengths_of(order).tolist() == blocks.lengths.tolist()


@given(corpus=corpora, joined=st.booleans(), data=st.data())
def test_any_span_of_the_block_stream(corpus, joined, data):
    """Any span of the stream with separators reads as the same span of a list."""
    blocks = BlockSamples(documents_of(corpus), 4, SEPARATOR, joined)
    separated = [token for ids in corpus if ids for token in (SEPARATOR, *ids)]
    text = [token for ids in corpus for token in ids]
    stream = ([SEPARATOR, *text] if text else []) if joined else separated
    start = data.draw(st.integers(0, len(stream)))
    stop = data.draw(st.integers(start, len(stream)))
    assert blocks.read(start, stop).tolist() == stream[start:stop]


@given(corpus=corpora, max_length=lengths, truncate=st.booleans())
def test_accounting_of_documents(corpus, max_length, truncate):
    """Rows and tokens of the accounting are those of a count by hand, and nothing is missing."""
    samples = DocumentSamples(documents_of(corpus), max_length, truncate)
    accounting = samples.accounting
    assert accounting.rows == len(corpus)
    assert accounting.blank_rows == sum(not ids for ids in corpus)
    assert accounting.short_rows == sum(len(ids) == 1 for ids in corpus)
    assert accounting.continued_rows == sum(len(ids) > max_length + 1 for ids in corpus)
    assert accounting.text_tokens == sum(map(len, corpus))
    in_samples = sum(min(len(ids), max_length + 1) if truncate else len(ids) for ids in corpus if len(ids) > 1)
    assert accounting.dropped_tokens == accounting.text_tokens - in_samples
    assert accounting.samples == len(samples)
    assert accounting.scored_tokens == sum(len(ids) - 1 for ids in samples_of(samples))
    assert accounting.separator_tokens == 0


@given(corpus=corpora, max_length=lengths)
def test_accounting_of_blocks(corpus, max_length):
    """Blocks drop nothing: every text token and every separator but the first is scored."""
    samples = BlockSamples(documents_of(corpus), max_length, SEPARATOR)
    accounting = samples.accounting
    assert accounting.dropped_tokens == accounting.short_rows == 0
    assert accounting.text_tokens == sum(map(len, corpus))
    assert accounting.separator_tokens == sum(bool(ids) for ids in corpus)
    assert accounting.scored_tokens == sum(len(ids) - 1 for ids in samples_of(samples))
    assert accounting.scored_tokens == max(accounting.text_tokens + accounting.separator_tokens - 1, 0)


@given(corpus=corpora, max_length=lengths)
def test_samples_go_to_workers(corpus, max_length):
    """A pickled copy, as a worker process gets it, gives the same samples."""
    for samples in (
        DocumentSamples(documents_of(corpus), max_length),
        BlockSamples(documents_of(corpus), max_length, SEPARATOR),
    ):
        copy = pickle.loads(pickle.dumps(samples))
        assert samples_of(copy) == samples_of(samples)


@pytest.mark.parametrize("make", [lambda d: DocumentSamples(d, 4), lambda d: BlockSamples(d, 4, SEPARATOR)])
def test_an_index_beyond_the_end(make):
    """An index beyond the end is an IndexError, so that plain iteration stops."""
    samples = make(documents_of([[1, 2, 3], [4, 5, 6, 7, 8, 9]]))
    assert len(list(samples)) == len(samples)
    with pytest.raises(IndexError):
        samples[len(samples)]


def test_samples_are_int64():
    """Samples are int64 whatever the width of the cache."""
    assert DocumentSamples(documents_of([[1, 2, 3]]), 4)[0]["input_ids"].dtype == np.int64
    assert BlockSamples(documents_of([[1, 2, 3]]), 4, SEPARATOR)[0]["input_ids"].dtype == np.int64


def test_samples_are_indexed_like_a_list():
    """-1 is the last sample and no filler; slices, also of numpy's integers, are lists of samples."""
    for samples in (
        DocumentSamples(documents_of([[1, 2, 3], [4, 5], [6, 7, 8, 9]]), 8),
        BlockSamples(documents_of([[1, 2, 3], [4, 5], [6, 7, 8, 9]]), 3, 0),
    ):
        everything = [sample["input_ids"].tolist() for sample in samples]
        assert len(everything) == len(samples)
        for index in range(-len(samples), len(samples)):
            for kind in (int, np.int64, np.int32):
                assert samples[kind(index)]["input_ids"].tolist() == everything[index]
        for part in (slice(None), slice(1, -1), slice(None, None, -1), slice(-2, 99), slice(5, 2)):
            assert [sample["input_ids"].tolist() for sample in samples[part]] == everything[part]
        assert not any("is_filler" in sample for sample in samples[:])
        for index in (len(samples), -len(samples) - 1):
            with pytest.raises(IndexError):
                samples[index]
        with pytest.raises(TypeError):
            samples[1.5]
        samples.limit(2)
        assert samples[-1]["input_ids"].tolist() == everything[1]


@given(corpus=corpora, max_length=lengths, mode=st.sampled_from(["documents", "cut", "blocks", "joined"]))
def test_places_of_targets_and_documents_in_the_stream(corpus, max_length, mode):
    """A sample's first target lies at its place in the stream, a document's first token at its own."""
    documents = documents_of(corpus)
    if mode in ("documents", "cut"):
        samples, stream = DocumentSamples(documents, max_length, mode == "cut"), [t for ids in corpus for t in ids]
    else:
        samples = BlockSamples(documents, max_length, SEPARATOR, mode == "joined")
        stream = samples.read(0, samples.accounting.scored_tokens + 1).tolist() if len(samples) else []
    assert [stream[place] for place in samples.first_targets] == [ids[1] for ids in samples_of(samples)]
    filled = [ids for ids in corpus if ids]
    if stream:
        assert [stream[place] for place in samples.document_starts] == [ids[0] for ids in filled]
    samples.limit(1)
    assert len(samples.first_targets) == len(samples)
