"""Surprisal of each token: the numbers are the loss's, the pieces are the text."""

import math

import pytest
import torch

from gpt2_hf.commands.surprisal import class_of, token_surprisals

from ..tiny_models import make_model

TEXT = "The assert statement is a naïve 日本 test 😀.\n\n  return x"


@pytest.fixture(scope="module")
def model():
    return make_model(vocab_size=384, n_layer=2, n_positions=128).eval()


@torch.no_grad()
def test_the_mean_is_the_loss_of_the_text(model, tiny_tokenizer):
    """Nats are −ln p of each token but the first, which nothing predicts."""
    tokens = token_surprisals(model, tiny_tokenizer, TEXT)
    ids = torch.tensor([tiny_tokenizer(TEXT).input_ids])
    assert tokens[0].nats is None and len(tokens) == ids.shape[1] < 128
    mean = sum(token.nats for token in tokens[1:]) / (len(tokens) - 1)
    assert mean == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-5)


def test_the_pieces_are_the_text(model, tiny_tokenizer):
    """Also where a character takes several tokens; nothing is lost at an end within a character."""
    tokens = token_surprisals(model, tiny_tokenizer, TEXT)
    assert "".join(token.text for token in tokens) == TEXT
    assert any(token.text == "" for token in tokens)
    for text in ("\ufffd", "a\ufffd", "x"):
        assert "".join(token.text for token in token_surprisals(model, tiny_tokenizer, text)) == text
    assert token_surprisals(model, tiny_tokenizer, "") == []


@torch.no_grad()
def test_alternatives_are_the_likeliest_tokens(model, tiny_tokenizer):
    """The first has the largest probability; the surprisal is that of the token which is there."""
    ids = torch.tensor([tiny_tokenizer(TEXT).input_ids])
    probabilities = model(ids).logits[0].softmax(dim=-1)
    for i, token in enumerate(token_surprisals(model, tiny_tokenizer, TEXT, num_alternatives=3)[1:]):
        assert token.nats == pytest.approx(-probabilities[i, ids[0, i + 1]].log().item(), abs=1e-4)
        values = [probability for _, probability in token.alternatives]
        assert values == pytest.approx(probabilities[i].topk(3).values.tolist(), abs=1e-6)
        text = tiny_tokenizer.decode([probabilities[i].argmax().item()])
        assert token.alternatives[0][0] == text or "\ufffd" in text


@torch.no_grad()
def test_a_long_text_is_read_in_windows(model, tiny_tokenizer):
    """Each token once; the first window as by itself, and later ones with at least half a window before them."""
    text = "assert statements are a convenient way to insert debugging. " * 20
    ids = tiny_tokenizer(text).input_ids
    assert len(ids) > 3 * 128
    tokens = token_surprisals(model, tiny_tokenizer, text)
    assert len(tokens) == len(ids) and "".join(token.text for token in tokens) == text
    alone = token_surprisals(model, tiny_tokenizer, tiny_tokenizer.decode(ids[:128]))
    assert [token.nats for token in tokens[1:100]] == pytest.approx([token.nats for token in alone[1:100]], abs=1e-4)
    last = model(torch.tensor([ids[-128:-1]])).logits[0, -1].log_softmax(dim=-1)[ids[-1]]
    assert tokens[-1].nats == pytest.approx(-last.item(), abs=1e-4)
    assert all(math.isfinite(token.nats) for token in tokens[1:])


def test_classes_have_no_gaps():
    """Every surprisal has a class, also an infinite one's neighbour."""
    assert [class_of(nats) for nats in (0.0, 0.999, 1.0, 4.0, 7.9, 8.0, 100.0)] == [
        *("under 1 nat", "under 1 nat", "1 to 3", "3 to 5", "5 to 8", "8 and over", "8 and over")
    ]
