"""Texts while they are made: what is shown at last is what `generate_text` returns."""

import threading
import time

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from gpt2_hf.commands.generate import generate_text
from gpt2_hf.commands.text_streaming import stream_texts
from gpt2_hf.errors import UserError

from ..tiny_models import make_model

SETTINGS = {"max_new_tokens": 12, "seed": 7, "top_p": 0.9}


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    ids = {"eos_token_id": tiny_tokenizer.eos_token_id, "bos_token_id": tiny_tokenizer.bos_token_id}
    return make_model(vocab_size=384, n_layer=1, n_positions=64, **ids).eval()


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("prompt", ["The assert statement", ""])
def test_the_last_texts_are_those_of_generate(model, tiny_tokenizer, prompt, temperature):
    """Several samples at once, a step for each token, and the caller's random numbers are left alone."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    steps = list(stream_texts(model, tiny_tokenizer, prompt, num_samples=3, temperature=temperature, **SETTINGS))
    assert torch.equal(torch.get_rng_state(), before)
    whole = generate_text(
        model, tiny_tokenizer, prompt, num_samples=3, batch_size=3, temperature=temperature, **SETTINGS
    )
    assert [prompt + text for text in steps[-1]] == whole
    assert len(steps) > 5 and all(len(texts) == 3 for texts in steps)
    assert steps[-1][0].startswith(steps[3][0])


def test_characters_are_written_several_samples_at_a_time(tiny_tokenizer):
    """A tokenizer without an end and without padding, as that of nanoGPT's characters, needs none."""
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    assert bare.pad_token_id is bare.eos_token_id is None
    model = make_model(vocab_size=384, n_layer=1, n_positions=64, bos_token_id=None, eos_token_id=None).eval()
    steps = list(stream_texts(model, bare, "The", num_samples=3, temperature=1.5, **SETTINGS))
    whole = generate_text(model, bare, "The", num_samples=3, batch_size=3, temperature=1.5, **SETTINGS)
    assert ["The" + text for text in steps[-1]] == whole and len(set(whole)) == 3
    assert len(steps) == SETTINGS["max_new_tokens"] + 1


def test_texts_that_are_made_one_by_one_are_shown_when_they_are_done(tiny_tokenizer):
    """Several samples of a model that has an end, with a tokenizer that has none and no padding."""
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    model = make_model(vocab_size=384, n_layer=1, n_positions=64, bos_token_id=None, eos_token_id=383).eval()
    (step,) = stream_texts(model, bare, "The", num_samples=3, temperature=1.5, **SETTINGS)
    whole = generate_text(model, bare, "The", num_samples=3, temperature=1.5, **SETTINGS)
    assert ["The" + text for text in step] == whole


def test_beams_are_shown_when_they_are_done(model, tiny_tokenizer, monkeypatch):
    """A generation config that asks for beam search gives one step, the texts themselves."""
    monkeypatch.setattr(model.generation_config, "num_beams", 2)
    (step,) = stream_texts(model, tiny_tokenizer, "The", num_samples=2, temperature=0.0, **SETTINGS)
    whole = generate_text(model, tiny_tokenizer, "The", num_samples=2, temperature=0.0, **SETTINGS)
    assert ["The" + text for text in step] == whole


def test_a_text_that_is_given_up_ends(model, tiny_tokenizer):
    """Stop: the thread makes at most a token more, and the next text does not wait for it."""
    texts = stream_texts(model, tiny_tokenizer, "The", max_new_tokens=60)
    next(texts)
    texts.close()
    deadline = time.monotonic() + 30
    while any(thread.name.startswith("gpt2_hf-text") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(stream_texts(model, tiny_tokenizer, "The", max_new_tokens=2))


def test_what_does_not_fit_is_said(model, tiny_tokenizer):
    """The error of `generate_texts`, where the texts are read."""
    with pytest.raises(UserError, match="64 positions"):
        next(stream_texts(model, tiny_tokenizer, "The", max_new_tokens=64))
