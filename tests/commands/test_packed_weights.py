"""Packed weights compute what the plain ones do, where they can be used, and leave nothing behind."""

import pytest
import torch
from torch import nn

from gpt2_hf.commands.packed_weights import packed_weights

from ..conftest import needs_bf16
from ..tiny_models import make_model, random_ids


def in_bf16(**options):
    """The tiny model in 16 bits."""
    return make_model(**options).to(torch.bfloat16)


@needs_bf16
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_are_those_of_plain_weights(tied):
    """To bf16's rounding, for one row and for several, with and without a head of its own."""
    model = in_bf16(tie_word_embeddings=tied)
    for shape in ((1, 1), (1, 7), (5, 9)):
        ids = random_ids(*shape)
        plain = model(ids).logits
        with packed_weights(model) as packed:
            assert packed
            assert torch.allclose(model(ids).logits, plain, atol=0.03, rtol=0.03)


@needs_bf16
@torch.no_grad()
def test_greedy_text_is_the_same():
    """Token by token with the cache."""
    model = in_bf16()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones(2, 5)}
    plain = model.generate(random_ids(2, 5), **options)
    with packed_weights(model):
        assert torch.equal(model.generate(random_ids(2, 5), **options), plain)


@needs_bf16
def test_nothing_is_left_behind():
    """Afterwards the model learns and computes as before, also after an error."""
    model = in_bf16()
    with pytest.raises(ZeroDivisionError), packed_weights(model):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())
    ids = random_ids(1, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_other_models_are_left_alone():
    """fp32 stays exact; a layer that was exchanged keeps its own way."""
    model = make_model()
    with packed_weights(model) as packed:
        assert not packed and not any("forward" in vars(module) for module in model.modules())

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = nn.Sequential(Doubled(8, 8)).to(torch.bfloat16)
    with packed_weights(layer) as packed:
        assert not packed
