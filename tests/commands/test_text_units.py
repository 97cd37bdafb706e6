"""Bytes, words and line ends, counted from token ids, are those of the text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gpt2_hf import load_tokenizer
from gpt2_hf.commands.text_units import TextCounts, TextUnits

GPT2 = load_tokenizer()
UNITS = TextUnits.of(GPT2)


def counts_of(text):
    """What the text itself says."""
    data = text.encode()
    return TextCounts(len(data.split()) + data.count(b"\n"), data.count(b"\n"), len(data))


PIECES = ["a", "The ", "\n", "\n\n", " ", "\t", "日本", "\u3000", "\xa0", "é", "<unk>", "1"]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
@settings(max_examples=100)
def test_counts_are_those_of_the_text(text):
    """The whole text after a special token: white space of ASCII separates words, nothing else does."""
    ids = np.array(GPT2(text).input_ids, dtype=np.int64)
    previous = np.insert(ids[:-1], 0, GPT2.eos_token_id) if len(ids) else ids
    assert UNITS.count(previous, ids) == counts_of(text)


@given(st.text(max_size=30), st.data())
@settings(max_examples=100)
def test_counts_add_up_wherever_the_text_is_cut(text, data):
    """Two halves of the tokens give what the whole gives."""
    ids = np.array([GPT2.eos_token_id, *GPT2(text).input_ids], dtype=np.int64)
    cut = data.draw(st.integers(1, len(ids)))
    halves = UNITS.count(ids[: cut - 1], ids[1:cut]) + UNITS.count(ids[cut - 1 : -1], ids[cut:])
    assert halves == UNITS.count(ids[:-1], ids[1:]) == counts_of(text)


def test_special_tokens_are_no_text_and_end_words():
    """A word may begin after <|endoftext|>, which has no bytes."""
    ids = np.array(GPT2("end<|endoftext|>begin").input_ids)
    assert UNITS.count(ids[:-1], ids[1:]) == TextCounts(words=1, bytes=len("begin"))


def test_a_trained_tokenizer_counts_alike(tokenizer_folder, documents):
    """Another vocabulary cuts the text otherwise, and counts the same."""
    tokenizer = load_tokenizer(str(tokenizer_folder))
    units = TextUnits.of(tokenizer)
    text = "".join(documents[:50])
    ids = np.array([tokenizer.eos_token_id, *tokenizer(text).input_ids])
    assert units.count(ids[:-1], ids[1:]) == counts_of(text)


@pytest.mark.parametrize("change", ["add_prefix_space", "pre_tokenizer"])
def test_other_tokenizers_have_no_counts(tokenizer_folder, change):
    """A tokenizer that changes the text, or whose tokens are not its bytes, is not guessed at."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    backend = tokenizer.backend_tokenizer
    if change == "add_prefix_space":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert TextUnits.of(tokenizer) is None
